from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from vitkit.backend import philox
from vitkit.data import HorizontalFlip, RandomAffine, RandomCrop, Transform
from vitkit.data.transforms import affine
from vitkit.errors import ConfigError

ALL = (RandomCrop(3), HorizontalFlip(), RandomAffine(20, 0.1, (0.8, 1.2)))


class Fixed(np.random.Generator):
    """A generator whose numbers the test chooses."""

    def __init__(self, *values: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = list(values)

    def random(self, size: int | None = None, *args: object, **kwargs: object) -> object:
        taken = [self.values.pop(0) for _ in range(size or 1)]
        return taken[0] if size is None else np.array(taken)


@pytest.mark.parametrize("transform", ALL, ids=str)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 9), (2, 1, 1)])
def test_pure_and_deterministic(
    transform: Transform, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, shape, np.uint8)
    image.flags.writeable = False
    for sample in range(20):
        moved = transform(image, philox(1, "augment", 2, sample))
        again = transform(image, philox(1, "augment", 2, sample))
        assert moved.dtype == np.uint8
        assert moved.shape == shape
        np.testing.assert_array_equal(moved, again)


@pytest.mark.parametrize("transform", ALL, ids=str)
def test_samples_and_epochs_differ(transform: Transform, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (1, 16, 16), np.uint8)
    results = {
        transform(image, philox(0, "augment", epoch, sample)).tobytes()
        for epoch in range(5)
        for sample in range(20)
    }
    assert len(results) == 2 if isinstance(transform, HorizontalFlip) else len(results) > 40


@given(down=st.floats(0, 1, exclude_max=True), right=st.floats(0, 1, exclude_max=True))
def test_crop_is_padding_and_cropping(down: float, right: float) -> None:
    image = np.arange(1, 2 * 6 * 7 + 1, dtype=np.uint8).reshape(2, 6, 7)
    for padding in (1, 4, 9):
        cropped = RandomCrop(padding)(image, Fixed(down, right))
        y, x = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        np.testing.assert_array_equal(cropped, padded[:, y : y + 6, x : x + 7])


def test_every_shift_is_equally_likely() -> None:
    image = np.zeros((1, 5, 5), np.uint8)
    image[0, 2, 2] = 255
    generator = philox(0, "test")
    counts = sum(RandomCrop(2)(image, generator).astype(int) for _ in range(5000)) // 255
    assert counts.sum() == 5000
    assert ((counts - 200) ** 2 / 200).sum() < 52  # chi-squared, 24 degrees, p = 0.001


def test_flip() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(HorizontalFlip(0.3)(image, Fixed(0.29)), image[:, :, ::-1])
    np.testing.assert_array_equal(HorizontalFlip(0.3)(image, Fixed(0.31)), image)
    generator = philox(0, "test")
    assert all((HorizontalFlip(1)(image, generator) == image[:, :, ::-1]).all() for _ in range(50))
    assert all((HorizontalFlip(0)(image, generator) == image).all() for _ in range(50))


@given(
    angle=st.floats(-math.pi, math.pi),
    down=st.floats(-9, 9),
    right=st.floats(-9, 9),
    scale=st.floats(0.3, 3),
)
def test_affine_equals_scipy(angle: float, down: float, right: float, scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 12), np.uint8)
    moved = affine(image, angle=angle, shift=(down, right), scale=scale).astype(float)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([4.0, 5.5])
    offset = centre - matrix @ np.add(centre, [down, right])
    for channel, result in zip(image, moved, strict=True):
        # grid-constant interpolates towards the zeros outside, as padding does
        expected = scipy.ndimage.affine_transform(
            channel.astype(float), matrix, offset, order=1, mode="grid-constant"
        )
        assert np.abs(result - expected).max() <= 0.51


def test_affine_by_hand() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4) * 20
    same = {"angle": 0.0, "shift": (0.0, 0.0), "scale": 1.0}
    np.testing.assert_array_equal(affine(image, **same), image)
    down = affine(image, **same | {"shift": (1.0, 0.0)})
    np.testing.assert_array_equal(down[:, 1:], image[:, :-1])
    assert (down[:, 0] == 0).all()
    np.testing.assert_array_equal(affine(image, **same | {"angle": math.pi}), image[:, ::-1, ::-1])
    square = image[:, :, :3]
    turned = affine(square, **same | {"angle": math.pi / 2})
    np.testing.assert_array_equal(turned[0], np.rot90(square[0]))  # counter-clockwise
    half = affine(np.full((1, 9, 9), 255, np.uint8), **same | {"scale": 0.5})
    assert (half[0, 3:6, 3:6] == 255).all()
    assert (half[0, [0, -1]] == 0).all()
    white = np.full((3, 8, 8), 255, np.uint8)
    assert (affine(white, angle=0.3, shift=(0.0, 0.0), scale=2.0) == 255).all()


def test_the_ranges_are_used_to_their_ends() -> None:
    image = np.zeros((1, 11, 21), np.uint8)
    image[0, 5, 10] = 200
    transform = RandomAffine(degrees=90, translate=0.2, scale=(1, 2))
    for numbers, place in (((0.5, 1, 0.5, 0), (7.2, 10)), ((0.5, 0.5, 0, 0), (5, 5.8))):
        moved = transform(image, Fixed(*numbers))[0].astype(float)
        ys, xs = np.mgrid[:11, :21]
        centre = (ys * moved).sum() / moved.sum(), (xs * moved).sum() / moved.sum()
        np.testing.assert_allclose(centre, place, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "padding must be a whole number >= 1; got 0"),
        (lambda: RandomCrop(1.5), "padding must be a whole number >= 1; got 1.5"),
        (lambda: RandomCrop("4"), "padding must be a whole number >= 1; got '4'"),
        (lambda: HorizontalFlip(1.5), "p must be a number >= 0 and <= 1; got 1.5"),
        (lambda: HorizontalFlip(float("nan")), "p must be"),
        (lambda: HorizontalFlip("often"), "p must be .*'often'"),
        (lambda: RandomAffine(degrees=-1), "degrees must be a number >= 0 and <= 180; got -1"),
        (lambda: RandomAffine(degrees="x"), "degrees must be .*'x'"),
        (lambda: RandomAffine(translate=2), "translate must be a number >= 0 and <= 1; got 2"),
        (lambda: RandomAffine(scale=1.1), r"scale must be two .* such as \(0.9, 1.1\); got 1.1"),
        (lambda: RandomAffine(scale=(1, 1, 1)), "scale must be two factors"),
        (lambda: RandomAffine(scale=(1.2, 0.8)), "larger factor, must be a number >= 1.2; got 0.8"),
        (lambda: RandomAffine(scale=(0, 1)), r"scale\[0\] must be a number > 0; got 0"),
        (lambda: RandomAffine(scale=(1, math.inf)), r"scale\[1\]"),
    ],
)
def test_wrong_settings(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RandomAffine(degrees=-1, translate=-1, scale=(2, 1))
    assert len(caught.value.problems) == 3
