"""Whether an optimizer keeps its contract: ``check_optimizer``.

The contract is that of :class:`vitkit.optim.Optimizer`. The checks step on a small model with
parameters of 1 to 4 dimensions, with and without weight decay. What no check can know without
help is whether the numbers are those of the algorithm: give a formula, ``reference``, or
PyTorch's optimizer, ``torch``::

    def reference(w, g, state, *, lr, step, weight_decay):
        m = state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
        return w - lr * (m / (1 - 0.9**step) + weight_decay * w)

    def test_it_keeps_the_contract():
        check_optimizer(MyOptimizer, reference=reference)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vitkit.optim.optimizer import Optimizer
from vitkit.testing.check import Check, Skip, run_checks
from vitkit.testing.parts import optimizer_making as making
from vitkit.testing.parts import optimizer_state as state
from vitkit.testing.parts import optimizer_steps as steps
from vitkit.testing.parts import optimizer_twins as twins
from vitkit.testing.parts.array_modules import DEVICES
from vitkit.testing.parts.functions import name_of
from vitkit.testing.parts.making import expect_makeable
from vitkit.testing.parts.optimizer_runs import Maker
from vitkit.testing.parts.staged import staged

DTYPES = ("float64", "float32")
FOUNDATION: dict[str, Callable[[Maker], None]] = {
    "is an Optimizer": making.is_an_optimizer,
    "declares slots and update": making.declares,
    "makes a step": making.steps,
    "state can be stored": making.has_a_state,
    "deterministic": state.same_again,
    "shares no state": state.shares_nothing,
}
CHECKS: dict[str, Callable[[Maker], None]] = {
    "keeps lr and weight decay": making.keeps_settings,
    "refuses hyper-parameters out of range": making.refuses,
    "moves every weight": steps.moves,
    "uses every slot": steps.uses_slots,
    "rests without rate or gradient": steps.rests,
    "finite for tiny and large gradients": steps.finite,
    "keeps the dtype": steps.keeps_dtype,
    "keeps gradients": steps.keeps_gradients,
    "lr of a step": steps.obeys_lr,
    "weight decay": steps.decays,
    "flat buffer equals single parameters": steps.flat_equals_single,
    "descends": steps.descends,
    "counts steps": state.counts,
    "state round trip": state.resumes,
    "refuses a state that does not fit": state.refuses_misfits,
    "attach starts afresh": state.attaches_again,
    "no host sync": twins.never_waits,
}


def optimizer_checks(
    make: Callable[..., Optimizer],
    *,
    reference: twins.Reference | None = None,
    torch: twins.Twin | None = None,
) -> list[Check]:
    """Return the checks of an optimizer, each to be run alone.

    Parameters
    ----------
    make, reference, torch : callable
        As for :func:`check_optimizer`.

    Returns
    -------
    list of Check
        The checks.
    """
    maker = Maker(make)
    checks = [Check(name, partial(check, maker)) for name, check in CHECKS.items()]
    checks += [
        Check(f"{name} equals NumPy", partial(twins.same_on, maker, name)) for name in DEVICES
    ]
    for dtype in DTYPES:
        if reference is not None:
            run = partial(twins.against_reference, maker, reference, dtype)
            checks.append(Check(f"three steps of the reference, {dtype}", run))
        if torch is not None:
            run = partial(twins.against_torch, maker, torch, dtype)
            checks.append(Check(f"three steps of PyTorch, {dtype}", run))
    if reference is None and torch is None:
        checks.append(Check("three steps of a reference", _not_compared))
    foundation = [Check(name, partial(check, maker)) for name, check in FOUNDATION.items()]
    return staged(foundation, checks)


def check_optimizer(
    make: Callable[..., Optimizer],
    *,
    reference: twins.Reference | None = None,
    torch: twins.Twin | None = None,
) -> None:
    """Check that an optimizer keeps the contract of :class:`vitkit.optim.Optimizer`.

    Parameters
    ----------
    make : callable
        ``make(lr=...)``, and ``weight_decay=...`` where it takes that, returns a new optimizer:
        a subclass of ``Optimizer``, or a function that makes one.
    reference : callable, optional
        ``reference(w, g, state, *, lr, step, weight_decay) -> new w``, the formula for one
        parameter in float64. ``w`` and ``g`` have the parameter's shape; ``state`` is a dict that
        is empty at first and the reference's own, to keep moments in; ``step`` counts from 1;
        ``weight_decay`` is 0 for parameters that have none.
    torch : callable, optional
        ``torch(torch, params, lr)`` returns PyTorch's optimizer of a list of parameters, such as
        ``lambda torch, params, lr: torch.optim.Adam(params, lr=lr)``. It is made for one
        parameter at a time and compared on those it takes; its groups get the weight decay of
        the optimizer under test.

    Raises
    ------
    ConformanceError
        Listing every check that failed, and what is wrong.
    TypeError
        If ``make`` needs other arguments.
    """
    expect_makeable(make, dict.fromkeys(("lr", "weight_decay")))
    name = name_of(make, "of this name")
    run_checks(f"optimizer {name!r}", optimizer_checks(make, reference=reference, torch=torch))


def _not_compared() -> None:
    raise Skip(
        "nothing to compare its numbers with: pass reference=, a function (w, g, state, *, lr, "
        "step, weight_decay) -> new w, or torch=, such as lambda torch, params, lr: "
        "torch.optim.Adam(params, lr=lr)"
    )
