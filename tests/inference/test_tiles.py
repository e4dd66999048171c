from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Maps, Prediction
from ccfnet_tf.inference.tiles import (
    RAMP,
    STRIDE,
    Tile,
    TiledCascade,
    TiledNetwork,
    Tiling,
    cut,
    parse_tiling,
    pieces,
)
from tests.inference.by_brightness import ByBrightness
from tests.inference.local_network import LocalCascade, noise
from tests.memory import grows_at_most


@given(st.integers(1, 3000), st.integers(32, 700), st.floats(0, 0.5))
@settings(max_examples=100, deadline=None)
def test_spans_cover_an_axis(length: int, side: int, overlap: float) -> None:
    spans = cut(length, Tiling(side, overlap))
    total = np.zeros(length)
    for span in spans:
        assert 0 <= span.start <= span.begin < span.end <= span.stop <= length
        assert span.stop - span.start <= side
        assert span.start % STRIDE == 0
        total[span.begin : span.end] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    for one, next_one in pairwise(spans):
        ramp = one.after
        assert ramp == next_one.before <= RAMP
        assert ramp % 2 == 0  # no weight is 1/2, so that class ids have one owner
        assert one.stop - next_one.start >= overlap * side - 1e-3
        margin = (int(overlap * side) - ramp) // 2
        assert one.stop - one.end >= margin
        assert next_one.begin - next_one.start >= margin


def test_weights_of_the_usual_tile() -> None:
    first, second = cut(896, Tiling(512, 0.25))
    assert (first.start, first.stop, second.start, second.stop) == (0, 512, 384, 896)
    assert (first.end, second.begin) == (464, 432)  # the middle 32 of 128 shared pixels
    assert first.weights[:432].min() == 1.0
    np.testing.assert_allclose(first.weights[432:], 1 - (np.arange(32) + 0.5) / 32)


@pytest.mark.parametrize("size", [(200, 300), (97, 513), (64, 65), (331, 71), (40, 200)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_joins_are_the_weighted_sums_of_the_definition(
    size: tuple[int, int], overlap: float
) -> None:
    """Maps that differ from tile to tile, against sums over arrays of the image's size."""
    image, tiling = noise(*size), Tiling(64, overlap)
    rng = np.random.default_rng(2)
    rows, columns = (cut(length, tiling) for length in size)
    maps = {
        (row.start, column.start): (
            rng.random((row.stop - row.start, column.stop - column.start, 3), np.float32),
            rng.integers(0, 9, (row.stop - row.start, column.stop - column.start), np.int32),
        )
        for row in rows
        for column in columns
    }
    expected, chosen = np.zeros((*size, 3)), np.full(size, -1)
    for row in rows:
        for column in columns:
            values, ids = maps[row.start, column.start]
            weights = np.outer(row.weights, column.weights)
            own = np.outer(row.weights > 0.5, column.weights > 0.5)
            here = (slice(row.begin, row.end), slice(column.begin, column.end))
            tile = (
                slice(row.begin - row.start, row.end - row.start),
                slice(column.begin - column.start, column.end - column.start),
            )
            expected[here] += values[tile] * weights[..., None]
            chosen[here] = np.where(own, ids[tile], chosen[here])

    remaining = iter(maps.values())
    result, labels = np.full((*size, 3), np.nan), np.full(size, -1)
    covered = np.zeros(size, int)
    for piece in pieces(image, tiling, lambda _: next(remaining)):
        height, width = piece.maps[0].shape[:2]
        here = (slice(piece.top, piece.top + height), slice(piece.left, piece.left + width))
        result[here], labels[here] = piece.maps
        covered[here] += 1
    assert (covered == 1).all()
    np.testing.assert_allclose(result, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, chosen)


def assert_same_labels(found: np.ndarray, expected: Prediction) -> None:
    """All labels are the same, but where two classes are equally likely."""
    first, second = np.sort(expected.probabilities, axis=-1)[..., -2:].transpose(2, 0, 1)[::-1]
    clear = first - second > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], expected.labels[clear])


def assert_equal_to_all_at_once(network: Any, image: np.ndarray, tiling: Tiling) -> None:
    tiled, exact = TiledCascade(network, tiling), network.head_outputs(image)
    for name, found, wanted in zip(
        HeadOutputs._fields, tiled.head_outputs(image), exact, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-4, err_msg=name)
    prediction, expected = tiled.predict(image), network.prediction(exact)
    assert isinstance(prediction, Maps)
    assert prediction.labels.dtype == np.int32
    assert_same_labels(prediction.labels, expected)
    for name in ("attention", "risk"):
        values, wanted = getattr(prediction, name), getattr(expected, name)
        np.testing.assert_allclose(values, wanted, atol=1e-4)
    # Difficulty jumps where two classes of coarse tie.
    assert (np.abs(prediction.difficulty - expected.difficulty) < 1e-4).mean() > 0.999


@pytest.mark.parametrize("size", [(300, 411), (129, 500), (128, 129), (700, 90)])
def test_tiles_equal_all_at_once_where_the_overlap_holds_the_receptive_field(
    size: tuple[int, int],
) -> None:
    # Of 64 shared pixels 32 fade: 16 are left on each side.
    assert_equal_to_all_at_once(LocalCascade(radius=16), noise(*size), Tiling(128, 0.5))


def test_a_receptive_field_beyond_the_overlap_is_seen() -> None:
    with pytest.raises(AssertionError):
        assert_equal_to_all_at_once(LocalCascade(radius=40), noise(300, 411), Tiling(128, 0.5))


@pytest.fixture(scope="module", params=["full size", "coarse at half size", "coarse enlarged"])
def strided(request: pytest.FixtureRequest) -> KerasNetwork:
    """A graph with the geometry of the real one: padded to 8n+1, stride 8, no global context.

    Three convolutions of stride 2 reach 7 pixels, one of stride 8 8 more, resizing 8 more; twice
    as far if coarse and attention read the image at half size.
    """
    import keras

    from ccfnet_tf.network import heads
    from ccfnet_tf.network.model import CCFNet
    from ccfnet_tf.network.normalise_pad_resize import (
        Enlarge,
        HalfSize,
        Normalise,
        PadToGrid,
        ToImage,
    )

    keras.utils.set_random_seed(5)
    layers = keras.layers
    images = keras.Input((None, None, 3), name="images")
    one_size = request.param == "full size"
    x = PadToGrid(8 if one_size else 16)(Normalise("symmetric")(images))
    convolutions = [
        layers.Conv2D(8, 3, strides=2, padding="same", activation="relu") for _ in range(3)
    ]
    resized = {"coarse at half size": HalfSize(), "coarse enlarged": Enlarge()}
    other = x if one_size else resized[request.param](x)
    for convolution in convolutions:
        x, other = convolution(x), convolution(other)
    steep = keras.initializers.VarianceScaling(9.0)

    def head(x: Any, classes: int, size: int, name: str, distance: tuple[int, int]) -> Any:
        x = layers.Conv2D(classes, size, padding="same", kernel_initializer=steep)(x)
        return ToImage(*distance, name=name)([x, images])

    distance = (8 if one_size else 16, 3 if request.param == "coarse enlarged" else 1)
    coarse = head(other, 4, 1, "coarse_logits", distance)
    attention = head(other, 2, 1, "attention_logits", distance)
    fine = head(x, 4, 3, "fine_logits", (8, 1))
    refine = heads.Blend(name="refine")([heads.LogSoftmax()(coarse), attention, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    return KerasNetwork(CCFNet(inputs=images, outputs=outputs))


@pytest.mark.parametrize("size", [(301, 411), (240, 168), (161, 163)])
def test_tiles_of_a_strided_network_sample_where_the_image_is_sampled(
    strided: KerasNetwork, size: tuple[int, int]
) -> None:
    assert_equal_to_all_at_once(strided, noise(*size), Tiling(160, 0.5))


@pytest.mark.parametrize("maps", [False, True])
def test_networks_without_heads_are_joined_too(maps: bool) -> None:
    image = noise(150, 333)
    found = TiledNetwork(ByBrightness(maps=maps), Tiling(64)).predict(image)
    expected = ByBrightness().predict(image)
    assert (type(found), found.labels.dtype) == (Maps, np.int32)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for name in ("attention", "difficulty", "risk"):
        values, wanted = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_an_image_of_one_tile_is_predicted_as_it_is() -> None:
    network, image = LocalCascade(), noise(64, 50)
    tiled = TiledCascade(network, Tiling(64), _never)
    assert isinstance(tiled.predict(image), Prediction)
    for found, expected in zip(tiled.head_outputs(image), network.head_outputs(image), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert set(network.seen) == {(64, 50)}


def _never(tiles: Sequence[Tile]) -> Iterable[Tile]:
    raise AssertionError(tiles)


def test_every_tile_is_tracked() -> None:
    network, passed = ByBrightness(), []

    def track(tiles: Sequence[Tile]) -> Iterable[Tile]:
        for done, tile in enumerate(tiles):
            yield tile
            passed.append((done, len(tiles)))

    TiledNetwork(network, Tiling(64, 0.25), track).predict(noise(100, 160))
    assert passed == [(done, 6) for done in range(6)]
    assert network.seen == [(64, 64)] * 3 + [(52, 64)] * 3


def test_memory_running_out_is_one_line() -> None:
    class Short(LocalCascade):
        def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
            raise MemoryError

    with pytest.raises(ResourceError, match="100x90 pixels"):
        TiledCascade(Short(), Tiling(64)).predict(noise(90, 100))


def test_memory_does_not_grow_with_the_probabilities_of_the_image() -> None:
    """60 classes on 800 x 400 pixels are 77 MB in each of three heads."""
    tiled = TiledCascade(LocalCascade(classes=60), Tiling(96))
    with grows_at_most(80 << 20):
        assert tiled.predict(noise(800, 400)).labels.shape == (800, 400)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        ("31", None, "--tile is '31': expected .* at least 32"),
        ("0", None, "--tile is '0'"),
        ("-64", None, "--tile is '-64'"),
        ("512x512", None, "--tile is '512x512'"),
        ("٥١٢", None, "--tile is"),
        ("512", "0.9", r"--overlap is '0\.9': expected a share of the tile from 0 to 0\.5"),
        ("512", "-0.1", "--overlap is '-0.1'"),
        ("512", "nan", "--overlap is 'nan'"),
        ("512", "a", "--overlap is 'a'"),
        (None, "0.25", "--overlap is given without --tile"),
    ],
)
def test_a_tiling_that_is_none_is_refused(
    tile: str | None, overlap: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_tiling(tile, overlap)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tile", "overlap", "tiling"),
    [(None, None, None), ("512", None, Tiling(512, 0.5)), ("32", "0", Tiling(32, 0.0))],
)
def test_tilings(tile: str | None, overlap: str | None, tiling: Tiling | None) -> None:
    assert parse_tiling(tile, overlap) == tiling
