"""Generated outdoor scenes: a synthetic data set that needs no download.

The same seed and size give the same scene. Most pixels can be classified by colour, texture and
position; boundaries, reflections in water, hills in haze, trees in front of woods, shadows and thin
poles are hard.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import published_classes
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.datasets.scenes.canvas import Canvas, planes
from ccfnet_tf.datasets.scenes.choose_lighting import Lighting, choose_lighting
from ccfnet_tf.datasets.scenes.objects import (
    GRASS,
    HILL,
    ROAD,
    SKY,
    THING,
    TREE,
    WATER,
    foliage,
    house,
    standing_place,
    things,
    tree,
)
from ccfnet_tf.labels import Sample

TAXONOMY = published_classes.taxonomy("scenes")

TEST_SCENES = 100
_SEEDS_PER_RUN = 1_000_000  # above the maximum of data.scenes, so that seeds never share a scene


def signs(root: Path) -> str:
    """Returns an empty string: scenes are generated, not stored in a folder."""
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists `data.scenes` training scenes for this seed, and the common test scenes.

    The test split is scenes 0..99 for every seed, so that runs can be compared. Training scenes
    start at one million and overlap neither with the test scenes nor with those of other seeds.
    """
    first = (seed + 1) * _SEEDS_PER_RUN
    train = tuple(_sample(f"train/{i:05d}", first + i) for i in range(data.scenes))
    test = tuple(_sample(f"test/{i:05d}", i) for i in range(TEST_SCENES))

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return draw(int(sample.image.removeprefix("scene:")), data.scene_size)

    def as_png(sample: Sample) -> bytes:
        return cv2.imencode(".png", load(sample)[0][..., ::-1])[1].tobytes()

    return Listing(
        TAXONOMY,
        train,
        None,
        test,
        load,
        lambda s: load(s)[1],
        read_bytes=as_png,
        fingerprint=lambda s: f"{s.image} {data.scene_size[0]}x{data.scene_size[1]}",
    )


def _sample(name: str, seed: int) -> Sample:
    return Sample(name, f"scene:{seed}", f"scene:{seed}")


def draw(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene.

    Args:
        seed: Number of the scene.
        size: (H, W) in pixels, at least 32.

    Returns:
        image uint8 [H, W, 3] RGB, label int32 [H, W] with ids of `TAXONOMY` or `VOID`.
    """
    rng = np.random.default_rng(seed)
    canvas = Canvas(size, rng)
    lighting = choose_lighting(rng)
    kind = str(rng.choice(["meadow", "lake", "coast", "village", "street"]))
    horizon = float(canvas.height * rng.uniform(0.34, 0.58))
    _sky(canvas, lighting, horizon)
    if kind != "street" or rng.random() < 0.3:
        _hills(canvas, lighting, horizon)
    _skyline(canvas, lighting, horizon, kind)
    _grass(canvas, lighting, horizon)
    if kind in ("lake", "coast"):
        _lake(canvas, lighting, horizon, coast=kind == "coast")
    elif rng.random() < 0.15:
        _ribbon(canvas, horizon, _water(canvas, lighting, horizon), WATER)
    if kind in ("street", "village") or (kind == "meadow" and rng.random() < 0.6):
        _road(canvas, lighting, horizon, wide=kind == "street")
    _midground(canvas, lighting, horizon, kind)
    things(canvas, lighting, horizon, kind)
    if rng.random() < 0.4:
        canvas.void_edge(THING)
    return _camera_image(canvas, lighting, horizon), canvas.label


def _sky(canvas: Canvas, lighting: Lighting, horizon: float) -> None:
    down = np.clip(canvas.y / max(horizon, 1), 0, 1) ** 0.8
    canvas.image[:] = planes(lighting.zenith) + planes(lighting.haze - lighting.zenith) * down
    u = canvas.unit
    cover = canvas.noise(14 * u, 40 * u) + 0.5 * canvas.noise(6 * u, 16 * u)
    cover += 0.25 * canvas.noise(3 * u, 6 * u)
    cover = np.clip(cover + lighting.clouds - 0.8, 0, 0.75)
    canvas.paint(cover, np.minimum(lighting.haze + 0.14, 1.0))
    if canvas.rng.random() < 0.3:  # the sun, or the moon
        x, y = canvas.rng.uniform(0.1, 0.9) * canvas.width, canvas.rng.uniform(0.2, 0.8) * horizon
        disc = np.exp(-np.hypot(canvas.x - x, canvas.y - y) / (5 * u))
        canvas.paint(np.clip(1.6 * disc, 0, 0.9), (1.0, 0.96, 0.82))
    canvas.label[:] = SKY


def _hills(canvas: Canvas, lighting: Lighting, horizon: float) -> None:
    rng, u = canvas.rng, canvas.unit
    count = int(rng.integers(1, 3))
    rock = np.array([0.44, 0.34, 0.36]) if rng.random() < 0.4 else np.array([0.38, 0.32, 0.44])
    for layer in range(count):
        near = (layer + 1) / count
        height = horizon * rng.uniform(0.4, 0.85) * (1.15 - 0.5 * near)
        ridge = horizon + 1 - height * canvas.curve(0.38) - height * 0.1
        mask = np.clip(canvas.y - ridge + 0.5, 0, 1)
        light = canvas.noise(9 * u, 5 * u), canvas.noise(3 * u, 3 * u)
        field = canvas.textured(rock, (0.24, light[0]), (0.16, light[1]))
        if rock[0] > 0.4 and near < 1:  # snow on the far rock
            snow = np.clip((ridge + height * 0.15 - canvas.y) / (3 * u) + 2 * light[0], 0, 0.9)
            field += snow * (0.93 - field)
        mix = (1 - near) * 0.25 + lighting.fog * rng.uniform(0.4, 1.0)
        canvas.paint(mask, field + min(mix, 0.7) * (planes(lighting.haze) - field), HILL)


def _skyline(canvas: Canvas, lighting: Lighting, horizon: float, kind: str) -> None:
    """Draws woods and houses at the horizon, before ground and water are drawn over them."""
    rng = canvas.rng
    if rng.random() < 0.6:  # woods
        low, high = sorted(rng.uniform(-0.2, 1.2, 2) * canvas.width)
        edge = np.clip((np.minimum(canvas.x - low, high - canvas.x)) / 8, 0, 1)
        top = horizon + 1 - (canvas.height * 0.13 * (0.5 + canvas.curve(0.5))) * edge
        mask = np.clip(canvas.y - top + 0.5, 0, 1) * (edge > 0)
        field = foliage(canvas, lighting)
        canvas.paint(mask, field + lighting.fog * 0.3 * (planes(lighting.haze) - field), TREE)
    houses = {"street": (2, 5), "village": (1, 4)}.get(kind, (0, 2))
    for _ in range(int(rng.integers(*houses))):
        tall = rng.uniform(0.35, 0.8) if kind == "street" else rng.uniform(0.26, 0.42)
        x = rng.uniform(0, 1) * canvas.width
        house(canvas, lighting, x, horizon + 2, canvas.height * tall * 0.7, flat=kind == "street")


def _grass(canvas: Canvas, lighting: Lighting, horizon: float) -> None:
    u, rng = canvas.unit, canvas.rng
    rise = canvas.height * rng.uniform(0, 0.05)
    mask = np.clip(canvas.y - (horizon - rise * canvas.curve(0.3)) + 0.5, 0, 1)
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 0, 1)
    blades = canvas.noise(2.5 * u, 1.0 * u) * (0.3 + 0.7 * depth)
    field = canvas.textured(
        lighting.grass, (0.16, blades), (0.12, canvas.noise(5 * u, 22 * u)), (0.12, depth - 0.5)
    )
    if rng.random() < 0.25:  # flowers
        dots = (canvas.noise(1 * u, 1 * u) > 0.86) & (depth > 0.15)
        petals = np.array([[0.95, 0.9, 0.3], [0.9, 0.5, 0.6], [0.95, 0.95, 0.9]], np.float32)
        field += dots * (planes(rng.choice(petals)) - field)
    canvas.paint(mask, field, GRASS)


def _water(canvas: Canvas, lighting: Lighting, horizon: float) -> np.ndarray:
    """Returns a texture of water, [3, H, W], that reflects the image above the horizon."""
    u, rng = canvas.unit, canvas.rng
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 0, 1)
    ripples = canvas.noise(1.2 * u, 9 * u)
    up = np.clip(2 * horizon - canvas.y - 2 * u * ripples, 0, canvas.height - 1)
    side = np.clip(canvas.x + 2.0 * u * ripples, 0, canvas.width - 1)
    mirror = np.stack([cv2.remap(plane, side, up, cv2.INTER_LINEAR) for plane in canvas.image])
    body = np.array([0.04, 0.26, 0.50]) * rng.uniform(0.8, 1.2) + 0.25 * (lighting.zenith - 0.5)
    field = canvas.textured(body, (0.2, canvas.noise(3 * u, 30 * u)))
    shine = np.clip(rng.uniform(0.15, 0.5) - 0.2 * depth, 0.05, 1)
    field += shine * (mirror - field)
    return np.asarray(field * (1 + 0.13 * ripples * (0.4 + depth)), np.float32)


def _lake(canvas: Canvas, lighting: Lighting, horizon: float, *, coast: bool) -> None:
    rng, ground = canvas.rng, canvas.height - horizon
    far = horizon + 1 + (0 if coast else ground * rng.uniform(0, 0.1))
    near = horizon + ground * (rng.uniform(0.35, 0.9) + 0.25 * (canvas.curve(0.35) - 0.5))
    if coast:  # the shore recedes from the viewer
        lean = rng.choice([-1.0, 1.0]) * (canvas.x[0] / canvas.width - rng.uniform(0.3, 0.7))
        near = near + lean * ground * rng.uniform(1, 2.5)
    mask = np.clip(np.minimum(canvas.y - far, near - canvas.y) + 0.5, 0, 1)
    canvas.shade(np.clip(1 - np.abs(canvas.y - near) / (2.5 * canvas.unit), 0, 1), 0.78)  # bank
    canvas.paint(mask, _water(canvas, lighting, horizon), WATER)


def _ribbon(canvas: Canvas, horizon: float, field: np.ndarray, class_id: int) -> np.ndarray:
    """Draws a winding band from the horizon to the viewer; returns -1..1 across it, [H, W]."""
    rng, width = canvas.rng, canvas.width
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 1e-3, 1)
    centre = width * (rng.uniform(0.25, 0.75) + rng.uniform(-0.5, 0.5) * depth)
    centre = centre + width * rng.uniform(-0.2, 0.2) * np.sin(rng.uniform(2, 6) * np.sqrt(depth))
    half = width * (0.012 + rng.uniform(0.22, 0.4) * depth**1.1)
    mask = np.clip(half - np.abs(canvas.x - centre) + 0.5, 0, 1) * (canvas.y > horizon)
    canvas.paint(mask, field, class_id)
    return np.asarray((canvas.x - centre) / half * np.where(mask > 0, 1, np.inf), np.float32)


def _road(canvas: Canvas, lighting: Lighting, horizon: float, *, wide: bool) -> None:
    rng, u = canvas.rng, canvas.unit
    paved = wide or rng.random() < 0.85
    grey = np.array([0.40, 0.40, 0.43]) if paved else np.array([0.60, 0.50, 0.38])
    grain = (0.12, canvas.noise(1 * u, 1 * u)), (0.09, canvas.noise(4 * u, 18 * u))
    field = canvas.textured(grey * rng.uniform(0.8, 1.2), *grain)
    if paved and rng.random() < 0.12:  # wet: reflects the sky, as water does
        field += 0.35 * (_water(canvas, lighting, horizon) - field)
    if wide:  # a square: all ground is paved up to a kerb
        kerb = horizon + (canvas.height - horizon) * rng.uniform(0.02, 0.3)
        mask = np.clip(
            canvas.y - kerb - rng.uniform(-0.08, 0.08) * (canvas.x - canvas.width / 2) + 0.5, 0, 1
        )
        canvas.paint(mask, field, ROAD)
    across = _ribbon(canvas, horizon, field, ROAD)
    if paved:
        depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 1e-3, 1)
        dashes = np.sin(9 / (depth + 0.12)) > 0
        canvas.paint((np.abs(across) < 0.05) * dashes * 0.8, (0.9, 0.88, 0.8))
        canvas.paint((np.abs(np.abs(across) - 0.92) < 0.03) * 0.6, (0.9, 0.9, 0.88))


def _midground(canvas: Canvas, lighting: Lighting, horizon: float, kind: str) -> None:
    """Draws houses and trees on the ground, the distant ones first."""
    rng, ground = canvas.rng, canvas.height - horizon
    trees = int(rng.integers(0, 3) if kind == "street" else rng.integers(1, 4))
    stands = sorted((float(d), "tree") for d in rng.uniform(0.03, 0.5, trees))
    if kind == "street":
        stands += [(0.1, "block")] * int(rng.integers(0, 3))
    elif rng.random() < 0.5:
        stands += [(float(rng.uniform(0.05, 0.25)), "house")]
    for depth, what in sorted(stands):
        foot = horizon + ground * depth
        x = standing_place(canvas, foot)
        if x is None:
            continue
        if what == "tree":
            tall = canvas.height * (0.26 + 0.75 * depth)
            tree(canvas, lighting, x, foot, tall * rng.uniform(0.8, 1.3))
        elif what == "block":
            side = float(rng.choice([0.0, 1.0])) * canvas.width
            house(canvas, lighting, side, foot, canvas.height * rng.uniform(0.6, 0.9), flat=True)
        else:
            house(canvas, lighting, x, foot, canvas.height * rng.uniform(0.25, 0.45), flat=False)


def _camera_image(canvas: Canvas, lighting: Lighting, horizon: float) -> np.ndarray:
    """Returns the image, uint8 [H, W, 3], with mist, daylight, vignette, blur and noise."""
    rng, u = canvas.rng, canvas.unit
    away = np.exp(-np.abs(canvas.y - horizon) / (canvas.height * 0.12))
    mist = lighting.fog * 0.35 * away * (1 + 0.8 * canvas.noise(20 * u, 40 * u))
    canvas.paint(np.clip(mist, 0, 0.7).astype(np.float32), lighting.haze)
    vignette = 1.04 - 0.3 * (
        (canvas.x / canvas.width - 0.5) ** 2 + (canvas.y / canvas.height - 0.5) ** 2
    )
    image = cv2.merge(
        list(canvas.image * planes(lighting.light * rng.uniform(0.9, 1.1)) * vignette)
    )
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.35, 0.75) * u))
    image += rng.uniform(0.008, 0.025) * rng.standard_normal(image.shape, np.float32)
    return np.asarray(np.round(np.clip(image, 0, 1) * 255), np.uint8)
