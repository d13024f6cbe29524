"""The kit of layers: sound ones pass all of it, each planted fault is named by the right checks.

That every layer that ships passes is in ``tests/nn/test_layers.py``.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import Any

import pytest
from faults_layers import FAULTS, PLANTED
from faulty_layers import SHAPE, WIDTH, MixesSamples, Sound, twin

from vitkit import nn
from vitkit.backend import ArrayModule
from vitkit.nn.layers import LAYERS, PARTS
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.testing.layers import check_layer, layer_checks

NEEDS_A_GPU = {"same on cupy"}


def run(make: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> dict[str, Outcome]:
    return {check.name: outcome_of(check) for check in layer_checks(make, shape, **options)}


def not_passed(outcomes: dict[str, Outcome]) -> set[str]:
    return {name for name, o in outcomes.items() if not o.passed} - NEEDS_A_GPU


def test_the_right_version_of_the_faults_passes(xp: ArrayModule) -> None:
    assert not_passed(run(Sound, xp=xp)) == set()
    check_layer(Sound, SHAPE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    if PLANTED[fault].torch:
        pytest.importorskip("torch", reason="PyTorch, for its twin, is missing")
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    assert set(caught.value.failures) - NEEDS_A_GPU == PLANTED[fault].fails, caught.value


PLACES: dict[str, tuple[Any, ...]] = {
    "mlp": (WIDTH, 12, nn.ACTIVATIONS["gelu"]),
    "norm": (WIDTH, 1e-6),
    "attention": (WIDTH, 2),
}


@pytest.mark.parametrize("part", PARTS)
def test_layers_in_the_table_pass_at_their_place(part: str) -> None:
    for entry in LAYERS.entries():
        if entry.details["part"] == part:
            assert not_passed(run(partial(entry.value, *PLACES[part]))) == set()


def test_a_layer_that_mixes_samples_may_say_so() -> None:
    outcomes = run(MixesSamples, batched=False)
    assert not_passed(outcomes) == set()
    assert {"batch of none", "samples are independent"}.isdisjoint(outcomes)


@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (lambda **kw: nn.Linear(WIDTH, 3, **kw), lambda torch: torch.nn.Linear(WIDTH, 3)),
        (
            lambda **kw: nn.LayerNorm(WIDTH, 1e-5, **kw),
            lambda torch: torch.nn.LayerNorm(WIDTH, eps=1e-5),
        ),
        (Sound, twin),
    ],
    ids=["Linear", "LayerNorm", "Sound"],
)
def test_the_twin_of_a_layer_agrees(make: Any, theirs: Any) -> None:
    pytest.importorskip("torch", reason="PyTorch, for the twins, is missing")
    outcomes = run(make, torch=theirs)
    assert outcomes["PyTorch twin"].passed
    assert not_passed(outcomes) == set()


def test_a_layer_may_keep_numbers_and_masks() -> None:
    class KeepsMore(Sound):
        """Keeps a mask, and what NumPy makes a scalar of."""

        def push(self, ctx: nn.Context, x: Any, a: Any) -> None:
            ctx.push(self, x, a, a > 0, x.sum())

        def pop(self, ctx: nn.Context) -> Any:
            return ctx.pop(self)[:2]

    assert not_passed(run(KeepsMore)) == set()


def test_without_torch_the_twin_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    outcome = run(Sound, torch=twin)["PyTorch twin"]
    assert outcome.passed is None
    assert "not installed" in outcome.message


def test_what_cannot_be_asked_of_a_broken_layer_is_skipped() -> None:
    class Broken(nn.Module):
        def forward(self, x: Any, ctx: nn.Context) -> Any:
            raise ValueError("broken")

    outcomes = run(Broken)
    assert "raised ValueError: broken (test_layers_kit.py, line" in outcomes["shapes"].message
    assert [name for name, o in outcomes.items() if o.passed is False] == ["shapes"]


def test_listing_the_checks_makes_no_layer() -> None:
    def make(**options: Any) -> nn.Module:
        raise RuntimeError("made")

    names = [check.name for check in layer_checks(make, SHAPE)]
    assert len(names) == len(set(names)) > 25
    message = r"^layer fails 1 of its checks:\n.*RuntimeError: made"
    with pytest.raises(ConformanceError, match=message):
        check_layer(make, SHAPE)


def test_the_names_of_arguments() -> None:
    shared = ["make", "shape", "torch", "batched"]
    assert list(inspect.signature(check_layer).parameters) == shared
    assert list(inspect.signature(layer_checks).parameters) == [*shared, "xp"]
