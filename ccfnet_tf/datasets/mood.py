"""Daylight and season of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mood:
    """Daylight and season: the colours that a scene shares."""

    zenith: np.ndarray
    haze: np.ndarray
    light: np.ndarray
    grass: np.ndarray
    leaves: np.ndarray
    sun: float  # -1 from the left, 1 from the right
    clouds: float
    fog: float


_LIGHTS = {  # zenith, horizon, tint of everything
    "noon": ((0.25, 0.50, 0.86), (0.72, 0.85, 0.96), (1.0, 1.0, 0.98)),
    "evening": ((0.42, 0.47, 0.72), (0.98, 0.78, 0.56), (1.05, 0.92, 0.76)),
    "overcast": ((0.64, 0.69, 0.75), (0.83, 0.86, 0.88), (0.86, 0.89, 0.92)),
    "dusk": ((0.20, 0.22, 0.45), (0.80, 0.56, 0.58), (0.72, 0.68, 0.82)),
}
_SEASONS = {  # grass, leaves
    "spring": ((0.42, 0.66, 0.22), (0.30, 0.52, 0.16)),
    "summer": ((0.42, 0.56, 0.20), (0.14, 0.36, 0.12)),
    "autumn": ((0.62, 0.57, 0.27), (0.66, 0.36, 0.10)),
    "winter": ((0.86, 0.89, 0.93), (0.20, 0.31, 0.27)),
}


def choose_mood(rng: np.random.Generator) -> Mood:
    """Draws daylight and season."""
    zenith, haze, light = _LIGHTS[str(rng.choice(list(_LIGHTS), p=[0.45, 0.2, 0.25, 0.1]))]
    grass, leaves = _SEASONS[str(rng.choice(list(_SEASONS), p=[0.3, 0.35, 0.22, 0.13]))]

    def near(colour: tuple[float, float, float]) -> np.ndarray:
        shifted = np.array(colour) * rng.uniform(0.92, 1.08) + rng.normal(0, 0.02, 3)
        return np.clip(shifted, 0.02, 1.1).astype(np.float32)

    return Mood(
        zenith=near(zenith),
        haze=near(haze),
        light=np.array(light, np.float32),
        grass=near(grass),
        leaves=near(leaves),
        sun=float(rng.choice([-1.0, 1.0])),
        clouds=float(rng.uniform(0, 1)),
        fog=float(rng.choice([0.1, 0.3, 0.55], p=[0.5, 0.35, 0.15])),
    )
