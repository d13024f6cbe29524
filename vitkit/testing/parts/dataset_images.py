"""What one part of a data set must do when it is asked for images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import philox
from vitkit.data.dataset import Dataset, Subset
from vitkit.data.loader import Loader
from vitkit.testing.check import where
from vitkit.testing.parts.isolation import global_generators, interleaved
from vitkit.testing.parts.pickled import pickled


def as_indices(*values: int) -> np.ndarray:
    """Return an array int64 (b,)."""
    return np.array(values, np.int64)


def some_indices(part: Dataset, count: int) -> np.ndarray:
    """Return indices at random, the first and the last image's among them, none twice."""
    drawn = philox(0, "conformance").permutation(len(part))[:count].tolist()
    return as_indices(*dict.fromkeys([len(part) - 1, 0, *drawn]))


def shape_and_dtype(name: str, part: Dataset) -> None:
    """Ask for no image, one, the last, a repeated one, and several out of order."""
    last = len(part) - 1
    for asked in ([], [0], [last], [last, 0, last // 2], [0, 0, last]):
        indices = as_indices(*asked)
        try:
            images: Any = part.images(indices)
        except Exception as error:
            raise AssertionError(
                f"{name}.images({asked}) raised {type(error).__name__}: {error}{where(error)}."
            ) from error
        due = f"uint8 {(len(asked), *part.image_shape)}"
        came = f"{getattr(images, 'dtype', type(images).__name__)} {np.shape(images)}"
        if came != due or not isinstance(images, np.ndarray):
            raise AssertionError(
                f"{name}.images({asked}) returned {came}; {due} is due. Keep pixels as they were "
                "stored, from 0 to scale: whoever trains divides and normalises them."
            )
        if indices.tolist() != asked:
            raise AssertionError(
                f"{name}.images changes the indices it is given, from {asked} to "
                f"{indices.tolist()}; they belong to the Loader. Work on a copy."
            )


def stay_the_same(name: str, part: Dataset) -> None:
    """Ask again for images, whatever the global generators would say."""
    indices = some_indices(part, 8)
    first = part.images(indices).copy()
    for seed in range(10):
        with global_generators(seed):
            again = part.images(indices)
        if (again != first).any():
            raise AssertionError(
                f"{name}.images returns other pixels when it is asked again: images must depend "
                "on nothing but the indices. Augmentation belongs into a transform."
            )


def follow_indices(name: str, part: Dataset) -> None:
    """Compare images that are asked for together with the same ones asked for alone."""
    indices = some_indices(part, 20)
    indices = np.concatenate([indices, indices[:2]])
    together, alone = part.images(indices), _one_by_one(part, indices)
    if (together == alone).all():
        return
    k = int(np.flatnonzero((together != alone).any((1, 2, 3)))[0])
    raise AssertionError(
        f"{name}.images do not follow the indices: image {k} of images({indices.tolist()}) is not "
        f"images([{indices[k]}]){_what_came(part, indices, together)}. Return one image for each "
        "index, in their order."
    )


def _one_by_one(part: Dataset, indices: np.ndarray) -> np.ndarray:
    return np.stack([part.images(indices[k : k + 1])[0].copy() for k in range(len(indices))])


def _what_came(part: Dataset, indices: np.ndarray, images: np.ndarray) -> str:
    """Say which images came instead of those asked for, if it is plain to see."""
    guesses = {
        "the first ones came": np.arange(len(indices)) % len(part),
        "they came as if the indices were sorted": np.sort(indices),
    }
    for said, guess in guesses.items():
        if (part.images(guess) == images).all():
            return f"; {said}"
    return ""


def refuse_what_is_not_there(name: str, part: Dataset) -> None:
    """Ask for images past the end, which must raise, and from the end, which may."""
    n = len(part)
    for index in (n, 2 * n + 1, -n - 1):
        if _answer(part, index) is not None:
            raise AssertionError(
                f"{name}.images([{index}]) returns an image, although there are only {n}: some "
                "other image passes for it. Raise IndexError."
            )
    from_end = _answer(part, -1)
    if from_end is not None and (from_end != part.images(as_indices(n - 1))).any():
        raise AssertionError(
            f"{name}.images([-1]) returns an image, but not the last one: some other image passes "
            "for it. Raise IndexError."
        )


def _answer(part: Dataset, index: int) -> np.ndarray | None:
    try:
        return part.images(as_indices(index))
    except Exception:
        return None


def are_copies(name: str, part: Dataset) -> None:
    """Write to what was returned, and keep it while more is asked for."""
    count = min(len(part), 6)
    for indices in (np.arange(count), np.arange(count)[::-1].copy()):
        images = part.images(indices)
        if not images.flags.writeable:
            continue
        before = images.copy()
        np.bitwise_not(images, out=images)
        spoilt = (part.images(indices) != before).any()
        np.bitwise_not(images, out=images)
        if spoilt:
            raise AssertionError(
                f"writing to what {name}.images returned changes the data set, or what it returns "
                "next: return a copy."
            )
    kept = [part.images(as_indices(k)) for k in range(count)]
    if (np.concatenate(kept) != _one_by_one(part, np.arange(count))).any():
        raise AssertionError(
            f"{name}.images returns the same buffer each time, so a batch changes when the next "
            "one is read: make a new array in each call."
        )


def serve_threads(name: str, part: Dataset) -> None:
    """Ask from several threads at once, by lines that interleave and through a Loader."""
    few = some_indices(part, 24)
    asked = [few[k : k + 4] for k in range(0, len(few), 3)]
    alone = [part.images(indices).copy() for indices in asked]
    cause: Exception | None = None
    try:
        together = interleaved([partial(part.images, indices) for indices in asked])
        same = all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
        same = same and _loads_alike(Subset(part, few))
    except Exception as error:
        same, cause = False, error
    if not same:
        raised = f" (it raised {type(cause).__name__}: {cause})" if cause else ""
        raise AssertionError(
            f"{name}.images returns other pixels when several threads call it at once{raised}, as "
            "those of Loader(num_workers=3) do: keep nothing of a call on self; open a file for "
            "each call, or hold a lock while its position matters."
        ) from cause


def _loads_alike(part: Dataset) -> bool:
    """Whether threads change nothing in two epochs."""
    alone, helped = (Loader(part, 4, shuffle=True, num_workers=workers) for workers in (0, 3))
    return all(
        np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
        for epoch in (0, 1)
        for a, b in zip(alone.batches(epoch), helped.batches(epoch), strict=True)
    )


def survive_pickling(name: str, part: Dataset) -> None:
    """Compare with what another process would get."""
    sent, indices = pickled(part, name), some_indices(part, 10)
    facts = ("classes", "image_shape", "scale", "mean", "std")
    if (
        not np.array_equal(sent.labels, part.labels)
        or any(getattr(sent, fact) != getattr(part, fact) for fact in facts)
        or (sent.images(indices) != part.images(indices)).any()
    ):
        raise AssertionError(
            f"{name} is another data set after it was sent to another process: does __getstate__ "
            "leave something out, or does images read what only this process has?"
        )
