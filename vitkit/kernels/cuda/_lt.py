"""CuPy's arrays multiplied by cuBLASLt.

The library adds only biases of the result's dtype (``CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE`` in
``cublasLt.h``), so a float32 bias of a result in 16 bits is rounded first. Where it has no
algorithm, or fails, a bias is added in a second step, or the product is CuPy's own.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from dataclasses import replace
from typing import NamedTuple

from vitkit.backend import Array, ArrayModule, compute_capability
from vitkit.errors import first_line
from vitkit.kernels.cuda import _cublaslt, _products
from vitkit.kernels.cuda._algorithms import Memory
from vitkit.kernels.cuda._arrays import aligned
from vitkit.kernels.cuda._cublaslt import (
    NOT_SUPPORTED,
    WORKSPACE,
    Algorithm,
    CublasError,
    Plan,
    Problem,
    Unsupported,
)
from vitkit.kernels.cuda._gpu import Gpu
from vitkit.kernels.cuda.casts import cast

LOGGER = logging.getLogger("vitkit")
ALIGNMENTS = (16, 8, 4, 2)  # of more, a plan a layer would be timed for nothing
GPU = Gpu()
PLANS: dict[tuple[int, Problem], Plan | None] = {}
"""How a device computes a product; None where cuBLASLt does not."""
WORKSPACES: dict[int, Array] = {}
"""Room that the products of a device may use: what is asked of one is asked in one order, since the
stream of a graph is kept in order with that of its caller."""


def _named(number: int) -> Algorithm:
    return Algorithm(data=(ctypes.c_uint64 * 8)(number))


TOGETHER, APART = _named(1), _named(2)
"""A product that does more, or one and a kernel after it: neither is an algorithm of the library,
but which is the fastest is found and remembered as if they were."""


@functools.cache
def memory(name: str) -> Memory:
    """Return what was found for the products of one GPU."""
    return Memory(name)


class Operands(NamedTuple):
    """What a product is made of; the last three may be None."""

    a: Array
    b: Array
    out: Array
    bias: Array | None = None
    plus: Array | None = None
    before: Array | None = None

    @property
    def matrices(self) -> list[Array]:
        """Those whose addresses decide which algorithms can be used."""
        every = self.a, self.b, self.out, self.plus, self.before
        return [each for each in every if each is not None]


def multiply(
    a: Array,
    b: Array,
    out: Array,
    transpose_a: bool,
    transpose_b: bool,
    bias: Array | None,
    plus: Array | None,
    precision: str,
    xp: ArrayModule,
) -> None:
    """Do as :func:`vitkit.kernels.cuda._products.multiply`; a bias is rounded as the result is."""
    shift = None if bias is None else as_added(bias, out.dtype.name, xp)
    given = Operands(a, b, out, shift, plus)
    problem = problem_of(given, transpose_a, transpose_b, precision)
    plan = planned(problem, given, xp)
    if plan is not None:
        run(plan, given, xp)
    elif bias is not None and out.dtype == "float32":
        multiply(a, b, out, transpose_a, transpose_b, None, plus, precision, xp)
        out += bias
    else:
        _products.by_the_module(a, b, out, transpose_a, transpose_b, bias, plus, precision, xp)


def as_added(bias: Array, dtype: str, xp: ArrayModule) -> Array:
    """Return a bias as the library adds it: in the result's dtype, on a boundary of 16 bytes."""
    return aligned(cast(bias, dtype, xp), xp)


def problem_of(
    given: Operands, transpose_a: bool, transpose_b: bool, precision: str, ends: str = ""
) -> Problem:
    """Return which product this is."""
    a, out = given.a, given.out
    m, n = out.shape[-2:]
    common = math.gcd(*(each.data.ptr for each in given.matrices))
    return Problem(
        m,
        n,
        a.shape[-2] if transpose_a else a.shape[-1],
        transpose_a,
        transpose_b,
        a.dtype.name,
        out.dtype.name,
        "tf32" if precision == "tf32" and a.dtype == "float32" else "float32",
        given.bias is not None,
        given.plus is not None,
        out.shape[0] if out.ndim == 3 else 1,
        next(size for size in ALIGNMENTS if common % size == 0),
        ends,
    )


def planned(problem: Problem, given: Operands, xp: ArrayModule) -> Plan | None:
    """Return how the device computes a product, from the second time on as it was the first time.

    None, and at first a line that says why, where the library has no algorithm or fails.

    Raises
    ------
    CublasError
        If it fails at a product that does more: whoever asks for one has another way.
    """
    place = GPU.device(), problem
    if place not in PLANS:
        plan = _new_plan(problem, given, xp)
        if plan is not None and GPU.capturing():
            return plan  # it was neither timed nor tried
        PLANS[place] = plan
    return PLANS[place]


def _new_plan(problem: Problem, given: Operands, xp: ArrayModule) -> Plan | None:
    """Return a plan with the fastest algorithm, or None where there is none that runs."""
    binding = _cublaslt.library()
    try:
        binding.handle()  # what does not start has said so, once for all products
        plan = Plan(binding, problem)
        plan.algorithm = _fastest(plan, given, xp)
    except CublasError as error:
        if problem.ends and not isinstance(error, Unsupported):
            raise
        with_bias = GPU.device(), replace(problem, bias=True)  # then its line was said
        said = with_bias in PLANS and PLANS[with_bias] is None
        if not (problem.ends or binding.refusal or said):
            LOGGER.warning("A product is computed in another way: %s.", error)
        return None
    return plan


def _fastest(plan: Plan, given: Operands, xp: ArrayModule) -> Algorithm:
    """Return the fastest algorithm that runs, timed or tried on these arrays but for the result.

    While a stream captures, or memory is too short, it is the likeliest.
    """
    candidates = plan.candidates()
    if GPU.capturing():
        return candidates[0]
    ran = set()

    def seconds(algorithm: Algorithm) -> float:
        try:
            taken = GPU.seconds(lambda: run(plan, timed, xp, algorithm))
        except CublasError:
            return math.inf
        ran.add(id(algorithm))
        return taken

    try:
        room = xp.empty(given.out.shape, given.out.dtype)
        # What is added to may be the result itself.
        timed = given._replace(out=room, plus=None if given.plus is None else room)
        best = candidates[0]
        if len(candidates) > 1:
            best = found().choose(plan.problem.key, candidates, seconds)
        if id(best) in ran:
            return best
        others = (each for each in candidates if each is not best)
        return _first_that_runs(plan, [best, *others], timed, xp)
    except MemoryError as error:
        LOGGER.info("No memory to time a product, so the likeliest way: %s.", first_line(error))
        return candidates[0]


def _first_that_runs(
    plan: Plan, candidates: list[Algorithm], timed: Operands, xp: ArrayModule
) -> Algorithm:
    """Return the first algorithm that the library does not refuse when it is asked for it."""
    for algorithm in candidates[:-1]:
        try:
            run(plan, timed, xp, algorithm)
        except CublasError:
            continue
        return algorithm
    run(plan, timed, xp, candidates[-1])
    return candidates[-1]


def run_ended(
    given: Operands, transpose_a: bool, transpose_b: bool, ends: str, xp: ArrayModule
) -> None:
    """Ask the device for a product that does more than multiply and add.

    Raises
    ------
    CublasError
        If the library has no algorithm for it, or fails.
    """
    problem = problem_of(given, transpose_a, transpose_b, "float32", ends)
    plan = planned(problem, given, xp)
    if plan is None:
        raise CublasError(f"cuBLASLt has no algorithm for {problem.key}", NOT_SUPPORTED)
    run(plan, given, xp)


def found() -> Memory:
    """Return what was found for the products of the device in use."""
    return memory(f"{GPU.title()}-{_cublaslt.library().version}")


def run(plan: Plan, given: Operands, xp: ArrayModule, algorithm: Algorithm | None = None) -> None:
    """Ask the device for a product."""
    device = GPU.device()
    if device not in WORKSPACES:
        with GPU.lasting():
            WORKSPACES[device] = xp.empty((WORKSPACE,), "uint8")
    plus, bias, before = (
        0 if each is None else each.data.ptr for each in (given.plus, given.bias, given.before)
    )
    plan(
        given.a.data.ptr,
        given.b.data.ptr,
        plus,
        given.out.data.ptr,
        bias=bias,
        before=before,
        workspace=WORKSPACES[device].data.ptr,
        stream=GPU.stream(),
        algorithm=algorithm,
    )


if not _cublaslt.why_none():
    _products.PRODUCTS["cupy"] = multiply
elif compute_capability() and (reason := _cublaslt.why_not_loaded()):
    LOGGER.warning("Products are CuPy's, in float32: %s.", reason)
