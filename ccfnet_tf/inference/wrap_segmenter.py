"""Joins test-time augmentation and tiles to any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

from ccfnet_tf.inference.segmenter_protocol import CascadeSegmenter, Segmenter
from ccfnet_tf.inference.test_time import Augmentation, AugmentedCascade, AugmentedNetwork
from ccfnet_tf.inference.tiles import TiledCascade, TiledNetwork, Tiling, Track


@dataclass(frozen=True)
class Wrapping:
    """What a network is wrapped in.

    Attributes:
        augmentation: Views of every image that are averaged, if any.
        tiling: How large images are cut, if at all; the views are those of each tile.
    """

    augmentation: Augmentation | None = None
    tiling: Tiling | None = None


UNWRAPPED = Wrapping()
"""Leaves a network as it is."""


@overload
def wrap(
    network: CascadeSegmenter, wrapping: Wrapping, track: Track = iter
) -> CascadeSegmenter: ...
@overload
def wrap(network: Segmenter, wrapping: Wrapping, track: Track = iter) -> Segmenter: ...
def wrap(network: Segmenter, wrapping: Wrapping, track: Track = iter) -> Segmenter:
    """Wraps a network; one whose heads can be read keeps `head_outputs` and `prediction`.

    Args:
        network: Any network.
        wrapping: In what.
        track: Passes the tiles of an image through, to show progress.
    """
    if wrapping.augmentation:
        network = _augmented(network, wrapping.augmentation)
    if wrapping.tiling:
        network = _tiled(network, wrapping.tiling, track)
    return network


def _augmented(network: Segmenter, augmentation: Augmentation) -> Segmenter:
    if isinstance(network, CascadeSegmenter):
        return AugmentedCascade(network, augmentation)
    return AugmentedNetwork(network, augmentation)


def _tiled(network: Segmenter, tiling: Tiling, track: Track) -> Segmenter:
    if isinstance(network, CascadeSegmenter):
        return TiledCascade(network, tiling, track)
    return TiledNetwork(network, tiling, track)
