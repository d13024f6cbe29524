"""Every size that ships passes, and each planted fault fails the checks it should."""

from __future__ import annotations

from typing import Any

import pytest
from faults_models import FAULTS, FAULTY, sized, with_activations

from vitkit.models import MODELS
from vitkit.registry import BUILTIN
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.testing.models import check_model, model_checks

SHIPPED = [entry.name for entry in MODELS.entries() if entry.plugin == BUILTIN]


def outcomes(name: str, options: dict[str, Any]) -> dict[str, Outcome]:
    found = [outcome_of(check) for check in model_checks(name, options)]
    return {outcome.name: outcome for outcome in found}


def failed(name: str, options: dict[str, Any]) -> set[str]:
    return {each for each, one in outcomes(name, options).items() if one.passed is False}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_the_checks_it_concerns(fault: str) -> None:
    name, options, names, _ = FAULTY[fault]
    check, message = FAULTS[fault]
    assert with_activations(lambda: failed(name, options))() == names
    with pytest.raises(ConformanceError, match=message):
        check()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_size_that_ships_passes_every_check(name: str) -> None:
    assert all(one.passed for one in outcomes(name, dict(MODELS[name])).values())


def test_the_sizes_of_the_papers_are_tried() -> None:
    assert set(SHIPPED) == {"Ti", "S", "B", "L", "H"}


@pytest.mark.parametrize(
    "options",
    [
        sized(),
        sized(mlp_dim=None, pool="cls"),
        sized(image_size=96, in_channels=1, num_classes=7),
        sized(dropout=0.2, drop_path=0.3, gradient_checkpointing=True, init="timm"),
        sized(activation="relu", layer_norm_eps=1e-5),
    ],
    ids=str,
)
def test_right_options_pass(options: dict[str, Any]) -> None:
    found = outcomes("Mu", options)
    assert "'Mu' is not registered here" in found.pop("registered as given").message
    assert all(one.passed for one in found.values())


def test_a_registered_size_is_asked_for_by_its_name() -> None:
    MODELS.add("Mu", sized(), plugin="a test")
    try:
        assert all(one.passed for one in outcomes("Mu", sized()).values())
        check_model("Mu", sized())
        with pytest.raises(ConformanceError, match="has depth=3, where 5 is checked here"):
            check_model("Mu", sized(depth=5))
    finally:
        MODELS.remove("a test")
