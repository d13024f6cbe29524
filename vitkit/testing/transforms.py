"""What an augmentation must be: a function of an image and a generator, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import philox
from vitkit.data.dataset import ArrayDataset
from vitkit.data.loader import Loader
from vitkit.data.transforms import Transform
from vitkit.testing.check import Check, Skip, run_checks, where
from vitkit.testing.parts.isolation import global_generators, interleaved
from vitkit.testing.parts.making import expect_makeable, made
from vitkit.testing.parts.pickled import content, pickled
from vitkit.testing.parts.staged import staged

SHAPES = ((1, 8, 8), (3, 32, 32), (3, 7, 11), (1, 1, 1))
SAMPLES = 24
"""How often each question is asked, so that what happens to some images only is seen."""

Make = Callable[[], Transform]


def check_transform(make: Make, *, scale: int = 255) -> None:
    """Check an augmentation: shapes, what it depends on, threads, epochs, other processes.

    Parameters
    ----------
    make : callable
        ``make()`` returns ``transform(image uint8 (C, H, W), rng) -> image``.
    scale : int, default 255
        The largest pixel of the images that what ``make`` makes is for. Below 255, results
        above it are a failure; at 255 they cannot be, and it is only said whether images of a
        smaller scale, such as digits, stay in theirs.

    Raises
    ------
    ConformanceError
        Listing what is wrong.
    TypeError
        If ``make`` needs arguments.
    """
    expect_makeable(make)
    run_checks("the transform", transform_checks(make, scale=scale))


def transform_checks(make: Make, *, scale: int = 255) -> list[Check]:
    """Return the checks of :func:`check_transform`, which takes the same arguments."""

    def check(name: str, ask: Callable[..., None], *arguments: Any) -> Check:
        return Check(name, lambda: ask(made(make), *arguments))

    return staged(
        [
            check("a function of image and generator", _takes_both),
            check("shape and dtype", _shape_and_dtype, scale),
            check("image is left alone", _leaves_image_alone, scale),
            check("the generator decides alone", _decided_by_generator, make, scale),
        ],
        [
            check("global generators", _leaves_generators_alone, scale),
            check("nothing kept", _keeps_nothing, make, scale),
            check("no shared buffer", _shares_no_buffer, scale),
            check("any memory layout", _any_layout, scale),
            check("threads", _serves_threads, scale),
            check("seed, epoch and sample", _by_seed_epoch_and_sample, scale),
            check("pickling", _survives_pickling, scale),
            check("pixels stay in range", _stays_in_range, scale),
        ],
    )


def _image(shape: Sequence[int], scale: int, seed: int = 0) -> np.ndarray:
    rng = philox(0, "conformance", seed)
    return rng.integers(0, scale + 1, tuple(shape), np.uint8)


def _rng(sample: int) -> np.random.Generator:
    return philox(0, "augment", 0, sample)


def _results(transform: Transform, image: np.ndarray) -> np.ndarray:
    """Return what becomes of an image as the first, second, ... sample of an epoch."""
    return np.stack([np.array(transform(image, _rng(sample))) for sample in range(SAMPLES)])


def _takes_both(transform: Any) -> None:
    if not callable(transform):
        raise AssertionError(
            f"make() returned {type(transform).__name__}, which cannot be called; transform(image, "
            "rng) -> image is due."
        )


def _shape_and_dtype(transform: Transform, scale: int) -> None:
    for shape in SHAPES:
        for sample in range(SAMPLES):
            image = _image(shape, scale, sample)
            try:
                moved: Any = transform(image, _rng(sample))
            except Exception as error:
                raise AssertionError(
                    f"raised {type(error).__name__} for an image of shape {shape}: "
                    f"{error}{where(error)}. Any (C, H, W) must do."
                ) from error
            came = f"{getattr(moved, 'dtype', type(moved).__name__)} {np.shape(moved)}"
            if came != f"uint8 {shape}" or not isinstance(moved, np.ndarray):
                raise AssertionError(
                    f"returned {came} for an image uint8 {shape}; the same is due. Round and "
                    "clip, then .astype(np.uint8), where numbers were computed."
                )


def _leaves_image_alone(transform: Transform, scale: int) -> None:
    for shape in SHAPES[:3]:
        for sample in range(SAMPLES):
            image = _image(shape, scale, sample)
            before = image.copy()
            transform(image, _rng(sample))
            if (image != before).any():
                raise AssertionError(
                    "writes to the image it is given, which may be the data set's own: write to "
                    "a copy."
                )
            fixed = np.frombuffer(image.tobytes(), np.uint8).reshape(shape)
            try:
                transform(fixed, _rng(sample))
            except ValueError as error:
                raise AssertionError(
                    f"cannot take an image that is read-only, as data sets may have them: "
                    f"{error}{where(error)}."
                ) from error


def _decided_by_generator(transform: Transform, make: Make, scale: int) -> None:
    image, other = _image(SHAPES[2], scale), _image(SHAPES[2], scale, 1)
    with global_generators(1):
        first = _results(make(), image)
    with global_generators(1):
        again = _results(make(), image)
    if (first != again).any():
        raise AssertionError(
            "returns other images for generators in the same state: it draws from a generator of "
            "its own, or looks at the clock. Draw from rng, the second argument."
        )
    with global_generators(2):
        if (_results(make(), image) != first).any():
            raise AssertionError(
                "depends on the global generator of np.random or random: draw from rng, the "
                "second argument."
            )
    for sample in range(SAMPLES):
        transform(other, _rng(SAMPLES + sample))
    if (_results(transform, image) != first).any():
        raise AssertionError(
            "returns other images when it has been called before: something is kept between "
            "calls, on self or in a global. Results may depend on the image and on rng alone."
        )


def _leaves_generators_alone(transform: Transform, scale: int) -> None:
    with global_generators(1) as moved:
        _results(transform, _image(SHAPES[2], scale))
        if moved():
            raise AssertionError(
                f"draws from the global generator of {moved()}, or seeds it, which changes what "
                "everyone else draws: use rng, the second argument."
            )


def _keeps_nothing(transform: Transform, make: Make, scale: int) -> None:
    fresh = make()
    before = _attributes(fresh)
    _results(fresh, _image(SHAPES[1], scale))
    for name, kept in _attributes(fresh).items():
        if before.get(name) != kept:
            raise AssertionError(
                f"keeps {name!r} on self: several threads call one transform at once, and each "
                "would find another's. Use local variables; what is the same for all calls "
                "belongs into the constructor."
            )


def _attributes(transform: object) -> dict[str, bytes]:
    """Return the contents of everything that an object keeps."""
    slots = [name for kind in type(transform).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*getattr(transform, "__dict__", {}), *(n for n in slots if hasattr(transform, n))]
    return {name: content(getattr(transform, name)) for name in names}


def _shares_no_buffer(transform: Transform, scale: int) -> None:
    images = [_image(SHAPES[2], scale, sample) for sample in range(SAMPLES)]
    results = [transform(image, _rng(0)) for image in images]
    before = [transform(image, _rng(0)).copy() for image in images]
    if any((a != b).any() for a, b in zip(results, before, strict=True)):
        raise AssertionError(
            "returns the same buffer each time, so one result changes when the next image is "
            "transformed: make a new array in each call."
        )


def _any_layout(transform: Transform, scale: int) -> None:
    image = _image(SHAPES[2], scale)
    c, height, width = image.shape
    padded = np.zeros((c, 2 * height, width + 3), np.uint8)
    padded[:, ::2, 3:] = image
    layouts = {
        "transposed from (H, W, C)": np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(
            2, 0, 1
        ),
        "mirrored by a negative stride": image[:, :, ::-1].copy()[:, :, ::-1],
        "part of a larger array": padded[:, ::2, 3:],
    }
    expected = _results(transform, image)
    for layout, same in layouts.items():
        try:
            wrong = bool((_results(transform, same) != expected).any())
            said = "returns another result"
        except Exception as error:
            wrong, said = True, f"raised {type(error).__name__}: {error}{where(error)}"
        if wrong:
            raise AssertionError(
                f"{said} for an image whose memory is not contiguous ({layout}), as those are "
                "that another transform has cropped or mirrored: begin with "
                "np.ascontiguousarray(image) if memory is read directly."
            )


def _serves_threads(transform: Transform, scale: int) -> None:
    images = [_image(SHAPES[2], scale, sample) for sample in range(SAMPLES)]
    alone = [np.array(transform(image, _rng(k))) for k, image in enumerate(images)]
    calls = [partial(transform, image, _rng(k)) for k, image in enumerate(images)]
    cause: Exception | None = None
    try:
        same = all(np.array_equal(a, b) for a, b in zip(alone, interleaved(calls), strict=True))
        same = same and _epoch(transform, scale, 0) == _epoch(transform, scale, 0, num_workers=3)
    except Exception as error:
        same, cause = False, error
    if not same:
        raised = f" (it raised {type(cause).__name__}: {cause})" if cause else ""
        raise AssertionError(
            f"returns other images when several threads call it at once{raised}, as those of "
            "Loader(num_workers=3) do: keep nothing of a call on self or in a global."
        ) from cause


def _epoch(
    transform: Transform, scale: int, epoch: int, *, seed: int = 0, **options: Any
) -> dict[int, bytes]:
    """Return the images of an epoch by their index."""
    pixels = _image((40, 3, 7, 11), scale)
    data = ArrayDataset(pixels, np.zeros(40, int), classes="a", scale=scale)
    loader = Loader(data, **{"batch_size": 5, "transforms": (transform,), "seed": seed, **options})
    return {
        int(index): image.tobytes()
        for batch in loader.batches(epoch)
        for index, image in zip(batch.indices, batch.images, strict=True)
    }


def _by_seed_epoch_and_sample(transform: Transform, scale: int) -> None:
    first = _epoch(transform, scale, 0)
    if _epoch(transform, scale, 0, batch_size=7, shuffle=True) != first:
        raise AssertionError(
            "an image is transformed differently when batches or their order change: results may "
            "depend on the image and on rng alone."
        )
    rng = _rng(0)
    transform(_image(SHAPES[2], scale), rng)
    if str(rng.bit_generator.state) == str(_rng(0).bit_generator.state):
        return  # it draws nothing, so every epoch is the same
    others = [_epoch(transform, scale, 1), _epoch(transform, scale, 0, seed=1)]
    if first in others:
        raise AssertionError(
            "draws from rng, and still does the same to each of 40 images whatever the seed and "
            "the epoch: is what it draws used?"
        )


def _survives_pickling(transform: Transform, scale: int) -> None:
    image = _image(SHAPES[2], scale)
    sent = pickled(transform, "the transform")
    if (_results(sent, image) != _results(transform, image)).any():
        raise AssertionError(
            "returns other images after it was sent to another process: does __getstate__ leave "
            "something out?"
        )


def _stays_in_range(transform: Transform, scale: int) -> None:
    """Look at images of the scale that was promised, or of that of digits.

    A transform is not told the scale. One that makes pixels brighter by a factor leaves any, and
    is right all the same where it was made for images up to 255, at which uint8 ends.
    """
    largest = scale if scale < 255 else 16
    shapes = SHAPES[:3]
    found = max(int(_results(transform, _image(shape, largest)).max()) for shape in shapes)
    if found <= largest:
        return
    said = (
        f"assumes pixels up to 255: an image up to {largest} became one up to {found}, which is "
        f"{found / largest:.3g} times the largest value of its kind"
    )
    if scale < 255:
        raise AssertionError(f"{said}. Take the scale as an argument of the constructor.")
    raise Skip(f"{said}. Right for ordinary images; not for digits, whose pixels end at 16")
