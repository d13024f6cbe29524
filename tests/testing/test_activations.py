"""Every activation that ships passes the kit; each planted fault is named, by the right checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from faults_activations import FAULTS, PLANTED, swish, swish_backward

from vitkit import nn
from vitkit.testing.activations import activation_checks, check_activation
from vitkit.testing.check import ConformanceError, outcome_of

TWINS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "gelu": lambda torch: torch.nn.functional.gelu,
    "gelu_tanh": lambda torch: partial(torch.nn.functional.gelu, approximate="tanh"),
    "relu": lambda torch: torch.relu,
    "silu": lambda torch: torch.nn.functional.silu,
    "quick_gelu": lambda torch: lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": lambda torch: torch.tanh,
}


@pytest.mark.parametrize("name", nn.ACTIVATIONS)
def test_what_ships_passes(name: str) -> None:
    outcomes = [
        outcome_of(check) for check in activation_checks(*nn.ACTIVATIONS[name], torch=TWINS[name])
    ]
    assert [o for o in outcomes if o.passed is False] == []
    for outcome in outcomes:
        assert outcome.passed or outcome.message.startswith(("needs a GPU", "PyTorch is not"))


def test_the_right_version_of_the_faults_passes() -> None:
    check_activation(swish, swish_backward)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    assert set(caught.value.failures) == PLANTED[fault].fails, caught.value


def test_another_function_than_that_of_torch_is_named() -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConformanceError, match="swish differs from its PyTorch twin") as caught:
        check_activation(swish, swish_backward, torch=TWINS["quick_gelu"])
    assert set(caught.value.failures) == {"PyTorch twin"}


def test_checks_are_cheap_to_list_and_have_names_of_their_own() -> None:
    def never(*args: Any, xp: Any) -> Any:
        raise RuntimeError("called while the checks were listed")

    names = [check.name for check in activation_checks(never, never)]
    assert len(set(names)) == len(names)
