"""Whether a kernel may replace an operation: the same numbers, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from vitkit.ops import Op
from vitkit.testing.check import Check, Skip, run_checks
from vitkit.testing.parts.functions import DTYPES, name_of
from vitkit.testing.parts.kernel_inputs import Maker, chained
from vitkit.testing.parts.kernel_runs import LENGTHS, LONG, Case, Comparison, Fault, Ran, arrays_in
from vitkit.testing.parts.memory import STRIDED, Layout, Placed, same_bits
from vitkit.testing.parts.staged import staged

SHORT = tuple(n for n in LENGTHS if 0 < n < LONG)
ONE = 33
"""The length where one will do: a block of 32 and a tail."""
BLOCKS = (32, 16, 8, 4, 2)
AROUND = (np.nan, 1e30)
"""What lies around arguments: a maximum may not see the one, nor a product with zero the other."""
ODD = (np.nan, np.inf, -np.inf, 1e4, 1e-30)  # the last two are too much for chains of products


def check_kernel(
    op: Callable[..., Any],
    kernel: Callable[..., Any],
    *,
    backend: str = "numpy",
    inputs: Maker | None = None,
) -> None:
    """Raise unless a kernel may replace an operation, whatever it is called with.

    Parameters
    ----------
    op : Op
        The operation, such as ``vitkit.ops.gelu``; its reference says what is right.
    kernel : callable
        The faster spelling, with exactly the parameters of ``op``. It returns ``NotImplemented``
        for what it leaves to the reference.
    backend : str, default "numpy"
        The array module that it serves: ``"numpy"``, ``"cupy"``, which is skipped where there is
        no GPU, or ``"strict_device"``.
    inputs : callable, optional
        ``inputs(rng, n, dtype)`` returns ``(args, kwargs)``, host arrays of the length ``n`` and
        of that dtype, and plain numbers; or None for a length of no use. It is needed where
        ``op`` is neither of ``vitkit.ops`` nor takes ``(x, *, xp)`` or ``(dy, x, *, xp)``, which
        are known.

    Raises
    ------
    ConformanceError
        Naming what is wrong, all of it at once.
    """
    what = f"{backend} kernel of {name_of(op, 'the operation')!r}"
    run_checks(what, kernel_checks(op, kernel, backend=backend, inputs=inputs))


def kernel_checks(
    op: Callable[..., Any],
    kernel: Callable[..., Any],
    *,
    backend: str = "numpy",
    inputs: Maker | None = None,
) -> list[Check]:
    """Return the checks of :func:`check_kernel`, which takes the same arguments."""
    pair = Comparison(op, kernel, backend, inputs)
    checks = [
        *(Check(f"values in {dtype}", partial(gives_the_same, pair, dtype)) for dtype in DTYPES),
        Check("answers", partial(answers, pair)),
        Check("any memory layout", partial(takes_any_layout, pair)),
        Check("stays within its arrays", partial(stays_within, pair)),
        Check("arguments left alone", partial(leaves_arguments, pair)),
        Check("results of its own", partial(owns_results, pair)),
        Check("the same every time", partial(repeats, pair)),
        Check("NaN, infinity, large and tiny", partial(takes_odd_numbers, pair)),
    ]
    foundation = [
        Check("signature", partial(same_signature, pair)),
        Check("call", partial(can_be_called, pair)),
    ]
    return staged(foundation, checks)


def same_signature(pair: Comparison) -> None:
    """Require the parameters of the op."""
    try:
        Op(pair.reference).check_kernel(pair.kernel, pair.backend)
    except TypeError as error:
        raise AssertionError(str(error)) from None


def can_be_called(pair: Comparison) -> None:
    """Require arrays as results, of a call like any other."""
    for case in pair.cases([ONE], DTYPES[:1]):
        pair.run(case)


def gives_the_same(pair: Comparison, dtype: str) -> None:
    """Require the numbers of the reference, for each length along each axis."""
    faults: list[tuple[Case, Fault]] = []
    wrong: set[int] = set()
    answered: set[int] = set()
    for case in pair.cases(LENGTHS, [dtype]):
        ran = pair.run(case)
        if ran.results is None:
            continue
        answered.add(case.n)
        fault = pair.fault(ran, pair.expected(case))
        if fault:
            faults.append((case, fault))
            wrong.add(case.n)
    if not answered:
        raise Skip(f"it leaves {dtype} to the reference")
    if faults:
        case, fault = min(faults, key=lambda found: not found[1].tail)
        start = "drops the tail" if fault.tail else "differs from the reference"
        raise AssertionError(
            f"{pair.name} {start}: with {case}, {fault.text}."
            f"{lengths_in_words(sorted(answered - wrong), sorted(wrong))}"
        )


def lengths_in_words(right: list[int], wrong: list[int]) -> str:
    """Return for which lengths a kernel is right, and what that says."""
    if not any(right):
        return ""
    text = f" Right for n in {right}, wrong for {wrong}"
    for block in BLOCKS:  # one of many in a sum, the tail of the longest may go unseen
        if not any(n % block for n in right if n != LONG) and all(n % block for n in wrong):
            return f"{text}: is what is left after blocks of {block} dropped, or done twice?"
    if wrong == [LONG]:
        return f"{text}: what happens where the work is divided among threads or blocks?"
    return f"{text}."


def answers(pair: Comparison) -> None:
    """Require an answer to something, and say to what there is none."""
    left: dict[str, list[int]] = {}
    served = 0
    for case in pair.cases(LENGTHS):
        if pair.run(case).results is None:
            axis = f" ({case.axis})" if case.axis else ""
            left.setdefault(f"{case.dtype}{axis}", []).append(case.n)
        else:
            served += 1
    calls = "; ".join(f"{what} with n = {str(n)[1:-1]}" for what, n in left.items())
    if not served:
        raise AssertionError(
            f"{pair.name} never answers: it returned NotImplemented for contiguous arrays of one "
            f"dtype, which are {calls}. See its conditions."
        )
    if left:
        raise Skip(f"it leaves to the reference {calls}")


def right_cases(pair: Comparison) -> Iterator[tuple[Case, Ran]]:
    """Yield cases with what the reference gives, but for those that are wrong anyway."""
    for case in pair.cases([ONE]):
        want, plain = pair.expected(case), pair.run(case)
        if not plain.overrun and (plain.results is None or not pair.fault(plain, want)):
            yield case, want


def takes_any_layout(pair: Comparison) -> None:
    """Require the same for arrays with gaps, reversed and transposed, or no answer."""
    for case, want in right_cases(pair):
        for kind, layout in STRIDED.items():
            names = [name for name, host in pair.hosts(case).items() if host.ndim >= layout.least]
            for chosen in filter(None, (*([name] for name in names), names)):
                place = partial(strided, pair, layout, chosen)
                ran = pair.run(case, place)
                what = f"{kind} as {' and '.join(chosen)}, {case}"
                if ran.overrun:
                    raise AssertionError(
                        f"{pair.name} writes between the elements of {ran.overrun[0]}, or beyond, "
                        f"with {what}."
                    )
                fault = None if ran.results is None else pair.fault(ran, want)
                if fault:
                    raise AssertionError(
                        f"{pair.name} does not see how its arguments lie in memory: with {what}, "
                        f"{fault.text}. Use the strides, copy with xp.ascontiguousarray, or "
                        "return NotImplemented unless flags.c_contiguous."
                    )


def strided(
    pair: Comparison, layout: Layout, chosen: Sequence[str], name: str, host: np.ndarray
) -> Placed:
    """Place an argument, with NaN in the gaps if it is among those chosen to have any."""
    if name not in chosen:
        return Placed(host, xp=pair.xp)
    return Placed(host, layout, before=np.nan, after=np.nan, xp=pair.xp)


def stays_within(pair: Comparison) -> None:
    """Require that what lies around the arguments in memory is neither read nor written."""
    for case in pair.cases(SHORT):
        plain = pair.run(case)
        forbid_overrun(pair, case, plain)
        for value in AROUND:
            ran = pair.run(case, partial(surrounded, pair, value, list(plain.arguments)))
            forbid_overrun(pair, case, ran)
            if pair.fault(ran, plain):
                raise AssertionError(
                    f"{pair.name} reads beyond its input: with {case}, its results change with "
                    f"what lies in memory {where_it_reads(pair, case, plain, value)}. Does a loop "
                    "run one element too far, or in whole blocks?"
                )


def surrounded(
    pair: Comparison, value: float, among: Sequence[str], name: str, host: np.ndarray
) -> Placed:
    """Place an argument with a number before and after it, another than those of the others."""
    value *= 1 + among.index(name)
    return Placed(host, before=value, after=value, xp=pair.xp)


def where_it_reads(pair: Comparison, case: Case, plain: Ran, value: float) -> str:
    """Return on which side of which argument something is read that is none of it."""
    for name in plain.arguments:
        for side, words in (("after", "after the last"), ("before", "before the first")):
            ran = pair.run(case, partial(beside, pair, name, {side: value}))
            if pair.fault(ran, plain):
                return f"{words} element of {name}"
    return "around several arguments"


def beside(
    pair: Comparison, chosen: str, sides: Mapping[str, float], name: str, host: np.ndarray
) -> Placed:
    """Place an argument, the chosen one with other numbers on one side of it."""
    around = sides if name == chosen else {}
    return Placed(host, before=around.get("before", 0), after=around.get("after", 0), xp=pair.xp)


def forbid_overrun(pair: Comparison, case: Case, ran: Ran) -> None:
    """Raise if something was written beyond its end."""
    if ran.overrun:
        raise AssertionError(
            f"{pair.name} writes beyond the end of {ran.overrun[0]}, with {case}. Does a loop run "
            "one element too far, or in whole blocks?"
        )


def leaves_arguments(pair: Comparison) -> None:
    """Require that only what the reference changes is changed."""
    op = name_of(pair.op, "the reference")
    for case in pair.cases([ONE]):
        given, want, ran = pair.hosts(case), pair.expected(case), pair.run(case)
        for name, host in given.items():
            if same_bits(ran.arguments[name], host):
                continue
            if ran.results is None:
                raise AssertionError(
                    f"{pair.name} changes its argument {name} and then returns NotImplemented, so "
                    f"the reference begins with something else ({case}). Decide first."
                )
            if name not in want.arguments:
                raise AssertionError(
                    f"{pair.name} changes its argument {name}, which {op} only reads ({case}). "
                    "Write to an array that the kernel makes."
                )


def owns_results(pair: Comparison) -> None:
    """Require that results change neither with the arguments nor with the next call."""
    for case, other in zip(pair.cases([ONE]), pair.cases([ONE], seed=1), strict=True):
        placed = pair.placed(case)
        value, _ = pair.call(case, placed)
        if value is NotImplemented:
            continue
        results = arrays_in(value)
        before = [np.array(host) for host in pair.on_host(value)]
        pair.call(other, pair.placed(other))
        if not all(map(same_bits, pair.on_host(results), before)):
            raise AssertionError(
                f"{pair.name} returns memory that it keeps: the next call changes what it "
                f"returned ({case}). Make a new array in each call."
            )
        allowed = pair.views(case)
        for name, there in placed.items():
            if name in allowed:
                continue
            there.array[...] = 0
            if not all(map(same_bits, pair.on_host(results), before)):
                raise AssertionError(
                    f"{pair.name} returns its argument {name}, or a view of it: what is done to "
                    f"one is done to the other ({case}). Return a new array."
                )


def repeats(pair: Comparison) -> None:
    """Require the same bits from the same memory."""
    for case in pair.cases([ONE, LONG]):
        placed, hosts = pair.placed(case), pair.hosts(case)
        runs: list[list[np.ndarray]] = []
        for _ in range(2):
            for name, there in placed.items():
                there.array[...] = pair.xp.asarray(hosts[name])
            value, _ = pair.call(case, placed)
            if value is NotImplemented:
                break
            after = [there.array for there in placed.values()]
            runs.append([np.array(a) for a in pair.on_host([*arrays_in(value), *after])])
        if runs and not all(map(same_bits, *runs)):
            raise AssertionError(
                f"{pair.name} gives other numbers when it is called again with the same arguments "
                f"({case}): does it read memory that it did not write, keep something between "
                "calls, or add in the order in which threads finish?"
            )


def takes_odd_numbers(pair: Comparison) -> None:
    """Require what the reference makes of a NaN, an infinity, a large or a tiny number."""
    for case, _ in right_cases(pair):
        for name, host in pair.hosts(case).items():
            if host.dtype.kind != "f":
                continue
            for at in (0, host.size // 2, host.size - 1):
                for value in ODD[:3] if chained(pair.op) else ODD:
                    odd = pair.with_number(case, name, at, value)
                    ran = pair.run(odd)
                    if ran.results is None:
                        continue
                    fault = pair.fault(ran.finite_or_nan(), pair.expected(odd).finite_or_nan())
                    if fault:
                        raise AssertionError(
                            f"{pair.name} differs from the reference where element {at} of {name} "
                            f"is {value:g} ({case}): {fault.text}. A NaN must stay visible, and "
                            "what is finite must stay finite."
                        )
