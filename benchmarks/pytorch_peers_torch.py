"""The PyTorch side of `pytorch_peers`: times steps of PyTorch networks on request.

Run by its path in the environment of the peers: it imports neither this package nor TensorFlow. The
module `pytorch_peers` describes requests and responses.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import torch

# The compiled operators of torchvision do not load with every build of PyTorch, and torchvision
# cannot be imported without their names. The networks here call none of them.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import segmentation_models_pytorch as smp  # noqa: E402

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Network:
    """A network with SGD and a batch of random data."""

    def __init__(self, model: torch.nn.Module, size: int, batch: int, classes: int) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        images = torch.randn(batch, 3, size, size)
        self._images = images.to(memory_format=torch.channels_last)
        self._labels = torch.randint(0, classes, (batch, size, size))

    def step(self, phase: str, precision: str) -> float:
        """Runs a step and returns its seconds."""
        began = time.perf_counter()
        if phase == "training":
            self._train_step(precision)
        else:
            self._predict_step(precision)
        return time.perf_counter() - began

    def _train_step(self, precision: str) -> None:
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self._logits(precision).float(), self._labels)
        loss.backward()
        self._optimizer.step()
        loss.item()

    def _predict_step(self, precision: str) -> None:
        self.model.eval()
        with torch.inference_mode():
            torch.log_softmax(self._logits(precision).float(), 1)[0, 0, 0, 0].item()

    def _logits(self, precision: str) -> Any:
        kind = TYPES[precision]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is not torch.float32):
            return self.model(self._images)


def multiply_adds(model: torch.nn.Module, size: int) -> int:
    """Returns the multiply-adds of convolutions and linear layers per image."""
    total = 0

    def count(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        positions = output.numel() // layer.weight.shape[0]
        total += positions * math.prod(layer.weight.shape)

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    model.eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total


def networks(size: int, batch: int, classes: int) -> dict[str, Network]:
    """Returns the peer networks, all on ResNet-50 dilated to output stride 8."""
    pspnet = smp.PSPNet("resnet50", encoder_weights=None, encoder_depth=5, classes=classes)
    pspnet.encoder = smp.encoders.get_encoder("resnet50", weights=None, depth=5, output_stride=8)
    deeplab = smp.DeepLabV3(
        "resnet50", encoder_weights=None, encoder_output_stride=8, classes=classes
    )
    models = {"PSPNet": pspnet, "DeepLabV3": deeplab}
    return {name: Network(model, size, batch, classes) for name, model in models.items()}


def main() -> None:
    """Prints versions and networks, then times the step requested by each line of input."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings.pop("threads"))
    torch.manual_seed(0)
    timed = networks(**settings)
    size = settings["size"]
    _emit(
        versions={"torch": torch.__version__, "segmentation-models-pytorch": smp.__version__},
        gmac={name: multiply_adds(net.model, size) / 1e9 for name, net in timed.items()},
    )
    for line in sys.stdin:
        request = json.loads(line)
        seconds = timed[request["network"]].step(request["phase"], request["precision"])
        _emit(seconds=seconds)


def _emit(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
