"""Objects of a generated scene: trees, houses and foreground things. See `scene` for the scene."""

from __future__ import annotations

import cv2
import numpy as np

from ccfnet_tf.datasets.scenes.canvas import Canvas
from ccfnet_tf.datasets.scenes.choose_lighting import Lighting

SKY, HILL, WATER, ROAD, GRASS, TREE, BUILDING, THING = range(8)


def foliage(canvas: Canvas, lighting: Lighting) -> np.ndarray:
    """Returns a texture of leaves, [3, H, W]."""
    u = canvas.unit
    leaves = (0.42, canvas.noise(2 * u, 2 * u)), (0.3, canvas.noise(5 * u, 5 * u))
    return canvas.textured(lighting.leaves * canvas.rng.uniform(0.75, 1.2), *leaves)


def tree(canvas: Canvas, lighting: Lighting, x: float, foot: float, height: float) -> None:
    """Draws a tree with its shadow: a trunk with a round or a conical crown."""
    canvas = canvas.around(x, foot - height * 0.4, height)
    rng, u = canvas.rng, canvas.unit
    shadow = ((canvas.x - x + lighting.sun * height * 0.3) / (height * 0.45)) ** 2
    shadow = shadow + ((canvas.y - foot) / (height * 0.06 + 1)) ** 2
    canvas.shade(np.clip(1.3 - shadow, 0, 1), 0.62)
    bark = (0.30, 0.22, 0.15) if rng.random() < 0.8 else (0.75, 0.73, 0.70)
    lean = rng.uniform(-0.06, 0.06) * height
    trunk = canvas.strokes([[(x, foot), (x + lean, foot - height * 0.6)]], height * 0.06)
    canvas.paint(trunk, bark, TREE)
    if rng.random() < 0.3:  # a conifer
        half, layers = height * rng.uniform(0.2, 0.3), 4
        crown = np.zeros_like(trunk)
        for k in range(layers):
            top, low = foot - height * (1 - 0.2 * k), foot - height * (0.62 - 0.17 * k)
            reach = half * (k + 1.5) / (layers + 0.5)
            part = [(x + lean, top), (x + lean + reach, low), (x + lean - reach, low)]
            crown = np.maximum(crown, canvas.polygon(part))
    else:
        spread = np.clip(rng.normal(0, [[0.15, 0.12]], (14, 2)), -0.26, 0.26) * height
        radii = rng.uniform(0.09, 0.17, 14) * height
        middle = (x + lean, foot - height * 0.7)
        crown = canvas.blobs(
            [(middle[0] + dx, middle[1] + dy, r) for (dx, dy), r in zip(spread, radii, strict=True)]
        )
        crown = crown * (canvas.noise(1.6 * u, 1.6 * u) > -0.85)  # the sky shines through
    side = np.clip((canvas.x - x) * lighting.sun / (height * 0.3), -1, 1)
    canvas.paint(crown, foliage(canvas, lighting) * (1 + 0.28 * side), TREE)


_WALLS = ((0.68, 0.34, 0.26), (0.88, 0.72, 0.48), (0.78, 0.52, 0.40))


def house(
    canvas: Canvas, lighting: Lighting, x: float, foot: float, height: float, *, flat: bool
) -> None:
    """Draws a house: a block with a flat roof, or a cottage with a tiled roof."""
    canvas = canvas.around(x, foot - height * 0.4, height * 1.2)
    rng, u = canvas.rng, canvas.unit
    width = height * (rng.uniform(0.45, 0.9) if flat else rng.uniform(1.0, 1.8))
    left, right, top = x - width / 2, x + width / 2, foot - height * (1 if flat else 0.62)
    wall = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.85, 1.1)
    courses = 0.06 * np.sign(np.sin(canvas.y * 2.2 / u)) + 0 * canvas.x
    field = canvas.textured(wall, (1.0, courses), (0.1, canvas.noise(8 * u, 8 * u)))
    face = canvas.polygon([(left, foot), (right, foot), (right, top), (left, top)])
    canvas.paint(face, field, BUILDING)
    turn = left + (0.28 if lighting.sun > 0 else 0.72) * width  # one side lies in shade
    canvas.shade(face * ((canvas.x - turn) * lighting.sun < 0), 0.72)
    if not flat:
        eaves = width * 0.08
        roof = [(left - eaves, top), (right + eaves, top)]
        roof += [(right - width * 0.2, foot - height), (left + width * 0.2, foot - height)]
        tiles = canvas.textured(
            (0.52, 0.20, 0.15) if rng.random() < 0.8 else (0.36, 0.30, 0.32),
            (0.15, canvas.noise(1.5 * u, 4 * u)),
        )
        canvas.paint(canvas.polygon(roof), tiles, BUILDING)
    step = max(4.5 * u, height / 9) if flat else max(5 * u, height * 0.3)
    across = ((canvas.x - left) / step + 0.25) % 1 > 0.5
    along = ((canvas.y - top) / (step * 1.1)) % 1 > 0.5
    glass = (
        (0.95, 0.82, 0.5) if lighting.light[2] > lighting.light[0] + 0.05 else (0.20, 0.25, 0.32)
    )
    canvas.paint(face * (across & along) * 0.85, glass)


def things(canvas: Canvas, lighting: Lighting, horizon: float, kind: str) -> None:
    """Draws one to three foreground things that suit the kind of scene."""
    rng, ground = canvas.rng, canvas.height - horizon
    menu = {"street": "car car person lamp", "village": "car car person rock fence"}.get(
        kind, "person person rock rock fence lamp"
    )
    if kind in ("lake", "coast"):
        menu += " boat boat boat"
    for depth in sorted(rng.uniform(0.15, 0.85, int(rng.integers(1, 4)))):
        what = str(rng.choice(menu.split()))
        foot = horizon + ground * depth
        x = standing_place(canvas, foot, wet=what == "boat")
        if x is not None:
            size = canvas.height * (0.12 + 0.52 * depth)
            _THINGS[what](canvas.around(x, foot - size * 0.5, size * 2.8), x, foot, size)


def standing_place(canvas: Canvas, foot: float, *, wet: bool = False) -> float | None:
    """Draws an x position in row `foot`, on water if `wet`, else on land; None if none is found."""
    for x in canvas.rng.uniform(0.03, 0.97, 6) * canvas.width:
        row, column = min(int(foot), canvas.height - 1), int(x)
        if (canvas.label[row, column] == WATER) == wet:
            return float(x)
    return None


def _bright(rng: np.random.Generator) -> np.ndarray:
    """Returns a saturated colour that is rare in nature."""
    hue = np.array([[[rng.choice([0, 6, 150, 160, 170]), rng.integers(170, 255), 215]]])
    return cv2.cvtColor(hue.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32) / 255


def _car(canvas: Canvas, x: float, foot: float, size: float) -> None:
    half, tall, paint = size * 0.75, size * 0.5, _bright(canvas.rng)
    shadow = ((canvas.x - x) / half) ** 2 + ((canvas.y - foot) / 2) ** 2
    canvas.shade(np.clip(1.2 - shadow, 0, 1), 0.5)
    body = [(x - half, foot), (x - half, foot - tall * 0.5), (x - half * 0.6, foot - tall * 0.6)]
    body += [(x - half * 0.4, foot - tall), (x + half * 0.4, foot - tall)]
    body += [(x + half * 0.7, foot - tall * 0.6), (x + half, foot - tall * 0.5), (x + half, foot)]
    canvas.paint(canvas.polygon(body), paint, THING)
    pane = [(x - half * 0.45, foot - tall * 0.6), (x - half * 0.32, foot - tall * 0.9)]
    pane += [(x + half * 0.32, foot - tall * 0.9), (x + half * 0.5, foot - tall * 0.6)]
    canvas.paint(canvas.polygon(pane), (0.16, 0.20, 0.26))
    wheels = [(x + s * half * 0.55, foot, tall * 0.22) for s in (-1, 1)]
    canvas.paint(canvas.blobs(wheels), (0.08, 0.08, 0.09), THING)


def _person(canvas: Canvas, x: float, foot: float, size: float) -> None:
    wide = size * 0.14
    legs = [[(x + s * wide * 0.6, foot), (x, foot - size * 0.45)] for s in (-1, 1)]
    canvas.paint(canvas.strokes(legs, size * 0.13), (0.35, 0.10, 0.32), THING)
    body = [(x - wide, foot - size * 0.4), (x - wide, foot - size * 0.8)]
    body += [(x + wide, foot - size * 0.8), (x + wide, foot - size * 0.4)]
    canvas.paint(canvas.polygon(body), _bright(canvas.rng), THING)
    canvas.paint(canvas.blobs([(x, foot - size * 0.9, size * 0.11)]), (0.80, 0.60, 0.48), THING)


def _lamp(canvas: Canvas, x: float, foot: float, size: float) -> None:
    top, arm = foot - size * 1.5, size * 0.25 * canvas.rng.choice([-1.0, 1.0])
    pole = canvas.strokes([[(x, foot), (x, top), (x + arm, top)]], max(1.0, size * 0.045))
    canvas.paint(pole, (0.20, 0.20, 0.22), THING)
    canvas.paint(canvas.blobs([(x + arm, top + 1, size * 0.06)]), (0.98, 0.93, 0.70), THING)


def _fence(canvas: Canvas, x: float, foot: float, size: float) -> None:
    tall, gap, posts = size * 0.35, size * 0.2, int(canvas.rng.integers(5, 12))
    lines = [[(x + i * gap, foot), (x + i * gap, foot - tall)] for i in range(posts)]
    for share in (0.4, 0.85):
        rail, end = foot - tall * share, x + (posts - 0.5) * gap
        lines.append([(x - gap / 2, rail), (end, rail)])
    wood = (0.93, 0.72, 0.80) if canvas.rng.random() < 0.7 else (0.42, 0.24, 0.22)
    canvas.paint(canvas.strokes(lines, max(1.0, size * 0.08)), wood, THING)


def _rock(canvas: Canvas, x: float, foot: float, size: float) -> None:
    angles = np.linspace(np.pi, 2 * np.pi, 8)
    reach = size * 0.55 * canvas.rng.uniform(0.75, 1.1, 8)
    across, up = reach * np.cos(angles), 0.7 * reach * np.sin(angles)
    points = [(x + dx, foot + dy) for dx, dy in zip(across, up, strict=True)]
    u = canvas.unit
    grey = canvas.textured((0.56, 0.40, 0.50), (0.25, canvas.noise(2 * u, 3 * u)))
    canvas.paint(canvas.polygon(points), grey, THING)


def _boat(canvas: Canvas, x: float, foot: float, size: float) -> None:
    hull = [(x - size * 0.5, foot - size * 0.16), (x + size * 0.5, foot - size * 0.16)]
    hull += [(x + size * 0.35, foot), (x - size * 0.35, foot)]
    canvas.paint(canvas.polygon(hull), _bright(canvas.rng), THING)
    mast = canvas.strokes([[(x, foot - size * 0.1), (x, foot - size * 1.1)]], size * 0.03)
    canvas.paint(mast, (0.35, 0.25, 0.18), THING)
    for side, share in ((1, 0.45), (-1, 0.3)):
        sail = [(x + side, foot - size * 1.05), (x + side, foot - size * 0.24)]
        sail += [(x + side * size * share, foot - size * 0.24)]
        canvas.paint(canvas.polygon(sail), (0.97, 0.96, 0.92), THING)


_THINGS = {
    "car": _car,
    "person": _person,
    "lamp": _lamp,
    "fence": _fence,
    "rock": _rock,
    "boat": _boat,
}
