"""What ships passes the checks of optimizers; each planted fault is named, by the right checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from faults_optimizers import FAULTS, PLANTED, Sound, reference

from vitkit.backend import cuda_status
from vitkit.optim import LAMB, SGD, Adam, AdamW, Lion
from vitkit.testing.check import ConformanceError, outcome_of
from vitkit.testing.optimizers import check_optimizer, optimizer_checks


def sgd(momentum: float = 0.0, nesterov: bool = False) -> Callable[..., np.ndarray]:
    """Return Sutskever et al. (2013), in PyTorch's form."""

    def reference(w: Any, g: Any, state: Any, *, lr: Any, step: Any, weight_decay: Any) -> Any:
        g = g + weight_decay * w
        velocity = state["velocity"] = momentum * state.get("velocity", 0) + g
        return w - lr * (g + momentum * velocity if nesterov else velocity)

    return reference


def direction(g: Any, state: Any, step: int, eps: float) -> Any:
    """Return Adam's direction: Algorithm 1 of arXiv:1412.6980, line by line."""
    m = state["m"] = 0.9 * state.get("m", 0) + (1 - 0.9) * g
    v = state["v"] = 0.999 * state.get("v", 0) + (1 - 0.999) * g**2
    return (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + eps)


def adam(w: Any, g: Any, state: Any, *, lr: Any, step: Any, weight_decay: Any) -> Any:
    return w - lr * direction(g + weight_decay * w, state, step, 1e-8)


def adamw(w: Any, g: Any, state: Any, *, lr: Any, step: Any, weight_decay: Any) -> Any:
    """Return Algorithm 2 of arXiv:1711.05101, the decay times the rate as in PyTorch."""
    return w - lr * (direction(g, state, step, 1e-8) + weight_decay * w)


def lamb(w: Any, g: Any, state: Any, *, lr: Any, step: Any, weight_decay: Any) -> Any:
    """Return Algorithm 2 of arXiv:1904.00962; Adam's step where there is no decay."""
    r = direction(g, state, step, 1e-6)
    if not weight_decay:
        return w - lr * r
    u = r + weight_decay * w
    return w - lr * (np.linalg.norm(w) / np.linalg.norm(u)) * u


def lion(w: Any, g: Any, state: Any, *, lr: Any, step: Any, weight_decay: Any) -> Any:
    """Return Algorithm 2 of arXiv:2302.06675."""
    m = state.get("m", np.zeros_like(w))
    c = 0.9 * m + (1 - 0.9) * g
    state["m"] = 0.99 * m + (1 - 0.99) * g
    return w - lr * (np.sign(c) + weight_decay * w)


def twin(name: str, **settings: Any) -> Callable[..., Any]:
    """Return what makes PyTorch's optimizer of that name."""
    return lambda torch, params, lr: getattr(torch.optim, name)(params, lr=lr, **settings)


VELOCITY = {"momentum": 0.9}
NESTEROV = {"momentum": 0.9, "nesterov": True}
SHIPPED: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "sgd": (SGD, sgd(), twin("SGD")),
    "sgd with momentum": (partial(SGD, **VELOCITY), sgd(0.9), twin("SGD", **VELOCITY)),
    "sgd with Nesterov": (partial(SGD, **NESTEROV), sgd(0.9, True), twin("SGD", **NESTEROV)),
    "adam": (Adam, adam, twin("Adam")),
    "adamw": (AdamW, adamw, twin("AdamW")),
    "lamb": (LAMB, lamb, None),
    "lion": (Lion, lion, None),
    "right version of the faults": (Sound, reference, None),
}


def ids(checks: Any) -> list[str]:
    return [check.name for check in checks]


@pytest.mark.parametrize("case", SHIPPED)
def test_what_ships_passes(case: str) -> None:
    make, formula, torch = SHIPPED[case]
    outcomes = [outcome_of(c) for c in optimizer_checks(make, reference=formula, torch=torch)]
    assert [o for o in outcomes if o.passed is False] == []
    skipped = {o.name for o in outcomes if o.passed is None}
    allowed = set() if cuda_status().usable else {"cupy equals NumPy"}
    if case == "lamb":
        allowed |= {"flat buffer equals single parameters"}
    if torch:
        pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")
    assert skipped == allowed


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    planted = PLANTED[fault]
    if planted.torch:
        pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    print(caught.value)
    assert set(caught.value.failures) == planted.fails


def test_what_needs_other_arguments_is_not_checked_but_said() -> None:
    def make(lr: float, cycles: int) -> Any:
        raise AssertionError("never called")

    assert {o.passed for o in map(outcome_of, optimizer_checks(make))} == {None}
    assert "register it with example=" in outcome_of(optimizer_checks(make)[0]).message
    with pytest.raises(TypeError, match="making one needs cycles"):
        check_optimizer(make)
