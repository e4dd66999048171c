"""The CCFNet side of `pytorch_peers`: responds to the same requests with the paper's network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from benchmarks.pytorch_peers import OURS, PRECISIONS
from ccfnet_tf.cli.benchmark import PAPER
from ccfnet_tf.config import RunConfig
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow


def main() -> None:
    """Prints versions and networks, then times the step requested by each line of input."""
    settings = json.loads(sys.argv[1])
    start_tensorflow()
    import tensorflow as tf

    for setter in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        getattr(tf.config.threading, setter)(settings["threads"])
    from ccfnet_tf.benchmark.flops import cost
    from ccfnet_tf.benchmark.speed import Network, read_some

    size, batch = settings["size"], settings["batch"]
    config = _config(size, batch)
    data = read_some(config)
    networks = {kind: Network(config, data, kind) for kind in PRECISIONS}
    images = tf.cast(tf.random.uniform([batch, size, size, 3], maxval=256), tf.uint8)
    classes = len(data.parts.taxonomy.names)
    labels = tf.random.uniform([batch, size, size], maxval=classes, dtype=tf.int32)
    versions = {"tensorflow": tf.__version__}
    gmac = cost(next(iter(networks.values())).model, size, size).total
    _emit(versions=versions, gmac={OURS: gmac})
    for line in sys.stdin:
        request = json.loads(line)
        _emit(seconds=networks[request["precision"]].step(request["phase"], (images, labels)))


def _config(size: int, batch: int) -> RunConfig:
    return replace(
        PAPER, data=replace(PAPER.data, crop=size), train=replace(PAPER.train, batch=batch)
    )


def _emit(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
