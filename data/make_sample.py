"""Draws data/sample, a dozen scenes as files in the folder layout: python data/make_sample.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ccfnet_tf.datasets.scenes.scene import TAXONOMY, draw
from ccfnet_tf.labels import VOID

ROOT = Path(__file__).parent / "sample"
FIRST_SEED = 500_000  # between the test scenes and the training scenes of every run
PARTS = {"train": 8, "val": 2, "test": 2}
SIZE = (180, 240)
VOID_VALUE = 255


def main() -> None:
    """Writes images as JPEG, masks as palette PNG, and the class list."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(TAXONOMY.palette)] = TAXONOMY.palette
    palette[VOID_VALUE] = 255
    seed = FIRST_SEED
    for part, count in PARTS.items():
        for side in ("images", "masks"):
            (ROOT / part / side).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, label = draw(seed, SIZE)
            name = f"{part}_{number:02d}"
            Image.fromarray(image).save(ROOT / part / "images" / f"{name}.jpg", quality=85)
            mask = Image.fromarray(np.where(label == VOID, VOID_VALUE, label).astype(np.uint8))
            mask.putpalette(palette.tobytes())
            mask.save(ROOT / part / "masks" / f"{name}.png", optimize=True)
            seed += 1
    (ROOT / "classes.txt").write_text("\n".join(TAXONOMY.names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
