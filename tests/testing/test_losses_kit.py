"""What ships passes the checks of losses; each planted fault is named, by the right checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from faults_losses import FAULTS, PLANTED, sound, squares

from vitkit import ops
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.testing.losses import check_loss, loss_checks

SHIPPED: dict[str, Callable[[Any], Any] | None] = {
    "softmax_cross_entropy": lambda torch: torch.nn.functional.cross_entropy,
    "sigmoid_bce": None,
    "mean_squared_error": None,
}
OF_TARGETS: dict[str, Callable[[Any], Any]] = {
    "softmax_cross_entropy": lambda torch: torch.nn.functional.cross_entropy,
    "sigmoid_bce": lambda torch: torch.nn.functional.binary_cross_entropy_with_logits,
    "mean_squared_error": lambda torch: torch.nn.functional.mse_loss,
}


def run(loss: Any, **options: Any) -> dict[str, Outcome]:
    return {check.name: outcome_of(check) for check in loss_checks(loss, **options)}


def not_passed(outcomes: dict[str, Outcome]) -> set[str]:
    return {name for name, o in outcomes.items() if not o.passed and "same on cupy" not in name}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_what_ships_passes(name: str, num_classes: int) -> None:
    outcomes = run(getattr(ops, name), num_classes=num_classes, labels="both")
    assert not_passed(outcomes) == set()
    assert {"class indices: label smoothing", "targets: label smoothing"} <= set(outcomes)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_agrees_with_its_twin(name: str) -> None:
    pytest.importorskip("torch", reason="PyTorch, for the twins, is missing")
    loss, of_classes = getattr(ops, name), SHIPPED[name]
    if of_classes is not None:
        assert run(loss, torch=of_classes)["class indices: PyTorch twin"].passed
    outcomes = run(loss, torch=OF_TARGETS[name], labels="targets")
    assert outcomes["targets: PyTorch twin"].passed
    assert not_passed(outcomes) == set()


@pytest.mark.parametrize(("loss", "labels"), [(sound, "classes"), (squares, "targets")])
def test_the_right_versions_of_the_faults_pass(loss: Any, labels: str) -> None:
    outcomes = run(loss, labels=labels)
    assert not_passed(outcomes) == set()
    assert any("smoothing" in name for name in outcomes) == (loss is sound)
    check_loss(loss, labels=labels)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    if PLANTED[fault].torch:
        pytest.importorskip("torch", reason="PyTorch, for its twin, is missing")
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    failures = {name for name in caught.value.failures if "same on cupy" not in name}
    assert failures == PLANTED[fault].fails, caught.value


def test_only_a_kind_of_labels_that_there_is() -> None:
    with pytest.raises(ValueError, match="'classes', 'targets', 'both'; got 'soft'"):
        check_loss(sound, labels="soft")


def test_the_names_of_arguments() -> None:
    names = ["loss", "num_classes", "torch", "labels"]
    for function in (check_loss, loss_checks):
        assert list(inspect.signature(function).parameters) == names
