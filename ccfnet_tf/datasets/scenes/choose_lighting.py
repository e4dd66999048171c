"""Daylight and season of a generated scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lighting:
    """Daylight and season: colours shared by all objects of a scene."""

    zenith: np.ndarray
    haze: np.ndarray
    light: np.ndarray
    grass: np.ndarray
    leaves: np.ndarray
    sun: float  # direction: -1 from the left, 1 from the right
    clouds: float
    fog: float


_LIGHTS = {  # zenith, horizon, tint of the image
    "noon": ((0.25, 0.50, 0.86), (0.72, 0.85, 0.96), (1.0, 1.0, 0.98)),
    "evening": ((0.45, 0.58, 0.84), (0.99, 0.84, 0.68), (1.04, 0.94, 0.82)),
    "overcast": ((0.68, 0.74, 0.80), (0.86, 0.89, 0.92), (0.90, 0.92, 0.94)),
    "dusk": ((0.34, 0.40, 0.68), (0.90, 0.72, 0.72), (0.84, 0.80, 0.90)),
}
_SEASONS = {  # grass, leaves
    "spring": ((0.50, 0.74, 0.22), (0.20, 0.42, 0.12)),
    "summer": ((0.52, 0.68, 0.24), (0.10, 0.30, 0.10)),
    "autumn": ((0.66, 0.62, 0.26), (0.52, 0.32, 0.07)),
    "winter": ((0.90, 0.92, 0.94), (0.14, 0.28, 0.22)),
}


def choose_lighting(rng: np.random.Generator) -> Lighting:
    """Draws a random daylight and season."""
    zenith, haze, light = _LIGHTS[str(rng.choice(list(_LIGHTS), p=[0.56, 0.2, 0.16, 0.08]))]
    grass, leaves = _SEASONS[str(rng.choice(list(_SEASONS), p=[0.36, 0.42, 0.15, 0.07]))]

    def near(colour: tuple[float, float, float]) -> np.ndarray:
        shifted = np.array(colour) * rng.uniform(0.92, 1.08) + rng.normal(0, 0.02, 3)
        return np.clip(shifted, 0.02, 1.1).astype(np.float32)

    return Lighting(
        zenith=near(zenith),
        haze=near(haze),
        light=np.array(light, np.float32),
        grass=near(grass),
        leaves=near(leaves),
        sun=float(rng.choice([-1.0, 1.0])),
        clouds=float(rng.uniform(0, 1)),
        fog=float(rng.choice([0.05, 0.2, 0.45], p=[0.6, 0.3, 0.1])),
    )
