from __future__ import annotations

import subprocess
import sys

import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import parts
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.datasets.scenes import TAXONOMY
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample


def samples(count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"{i:03d}", f"{i}.jpg", f"{i}.png") for i in range(count))


def share(count: int, val_share: float, seed: int = 0, **kin: str) -> parts.Parts:
    listing = Listing(TAXONOMY, samples(count), None, (), kin)
    reader = parts.Reader(lambda *_: listing, None, None)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parts.READERS, "scenes", reader)
        return parts.read_parts(DataConfig(format="scenes", val_share=val_share), seed)


@pytest.mark.parametrize(
    ("count", "val_share", "held"),
    [(100, 0.1, 10), (100, 0.0, 0), (5, 0.01, 1), (3, 0.5, 2), (2, 0.5, 1)],
)
def test_share_of_the_training_part(count: int, val_share: float, held: int) -> None:
    found = share(count, val_share)
    assert len(found.val) == held
    assert sorted(found.train + found.val, key=lambda s: s.name) == list(samples(count))
    assert list(found.train) == sorted(found.train, key=lambda s: s.name)
    assert found == share(count, val_share)
    assert found.test == ()


def test_seed_chooses_the_share() -> None:
    assert len({share(100, 0.1, seed).val for seed in range(5)}) == 5


def test_kin_stay_together() -> None:
    kin = {f"{i:03d}": f"family {i // 4}" for i in range(40)}
    for seed in range(5):
        val = [int(s.name) for s in share(40, 0.25, seed, **kin).val]
        assert len(val) == 8  # whole families of four, as many as fit in ten
        assert all((i - i % 4 + j) in val for i in val for j in range(4))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_share(count: int) -> None:
    with pytest.raises(DataError, match=r"data\.val_share"):
        share(count, 0.1)


def test_empty_training_part() -> None:
    with pytest.raises(DataError, match="training part is empty"):
        share(0, 0.0)


def test_datasets_do_not_import_tensorflow() -> None:
    code = "import sys, ccfnet_tf.datasets.check; print('tensorflow' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout.strip() == b"False"
