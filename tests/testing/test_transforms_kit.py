"""The augmentations that ship pass, and each planted fault fails the checks it should."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from faults_transforms import FAULTS, FAULTY, Cutout, brighten, invert

from vitkit.data import HorizontalFlip, RandomAffine, RandomCrop
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.testing.transforms import check_transform, transform_checks

SHIPPED = {
    "crop": partial(RandomCrop, 2),
    "a crop of more than the image": partial(RandomCrop, 12),
    "flip": HorizontalFlip,
    "affine": partial(RandomAffine, degrees=20, translate=0.2, scale=(0.8, 1.2)),
}


def outcomes(make: Callable[[], Any], **options: Any) -> dict[str, Outcome]:
    found = [outcome_of(check) for check in transform_checks(make, **options)]
    return {outcome.name: outcome for outcome in found}


def failed(make: Callable[[], Any], **options: Any) -> set[str]:
    return {name for name, one in outcomes(make, **options).items() if one.passed is False}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_fails_the_checks_it_concerns(fault: str) -> None:
    make, names, _ = FAULTY[fault]
    assert failed(make) == names


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message):
        check()


@pytest.mark.parametrize("make", [*SHIPPED.values(), Cutout], ids=[*SHIPPED, "cutout"])
@pytest.mark.parametrize("scale", [255, 16])
def test_a_right_one_passes_every_check(make: Callable[[], Any], scale: int) -> None:
    assert all(one.passed for one in outcomes(make, scale=scale).values())


def test_more_brightness_is_right_for_the_scale_it_is_made_for() -> None:
    found = outcomes(lambda: brighten)
    said = found.pop("pixels stay in range")
    assert all(one.passed for one in found.values())
    assert said.passed is None
    assert "an image up to 16 became one up to 23, which is 1.44 times" in said.message
    assert failed(lambda: brighten, scale=16) == {"pixels stay in range"}
    assert failed(lambda: partial(brighten, scale=16), scale=16) == set()


def test_one_that_draws_nothing_passes() -> None:
    found = outcomes(lambda: invert)
    assert found.pop("pixels stay in range").passed is None
    assert all(one.passed for one in found.values())


def test_arguments_that_nobody_gives_are_asked_for() -> None:
    found = outcomes(RandomCrop).values()  # type: ignore[arg-type]
    assert all(one.passed is None for one in found)
    assert all("needs padding: register it with example=" in one.message for one in found)
    with pytest.raises(TypeError, match="making one needs padding: give the check a function"):
        check_transform(RandomCrop)  # type: ignore[arg-type]
