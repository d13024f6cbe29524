"""CuPy's arrays multiplied by cuBLASLt.

The library adds only biases of the result's dtype (``CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE`` in
``cublasLt.h``), so a float32 bias of a result in 16 bits is rounded first. Where it has no
algorithm, a bias is added in a second step, or the product is CuPy's own.
"""

from __future__ import annotations

import functools
import logging
import math

from vitkit.backend import Array, ArrayModule, compute_capability
from vitkit.kernels.cuda import _cublaslt, _products
from vitkit.kernels.cuda._algorithms import Memory
from vitkit.kernels.cuda._arrays import aligned
from vitkit.kernels.cuda._cublaslt import (
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


@functools.cache
def memory(name: str) -> Memory:
    """Return what was found for the products of one GPU."""
    return Memory(name)


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
    shift = None if bias is None else _as_added(bias, out.dtype.name, xp)
    problem = problem_of(a, b, out, transpose_a, transpose_b, shift, plus, precision)
    place = GPU.device(), problem
    if place in PLANS:
        plan = PLANS[place]
    else:
        plan = _planned(problem, a, b, out, shift, plus, xp)
        if plan is None or not GPU.capturing():  # one made while a stream captures was not timed
            PLANS[place] = plan
    if plan is not None:
        _run(plan, a, b, out, shift, plus, xp)
    elif bias is not None and out.dtype == "float32":
        multiply(a, b, out, transpose_a, transpose_b, None, plus, precision, xp)
        out += bias
    else:
        _products.by_the_module(a, b, out, transpose_a, transpose_b, bias, plus, precision, xp)


def _as_added(bias: Array, dtype: str, xp: ArrayModule) -> Array:
    """Return a bias as the library adds it: in the result's dtype, on a boundary of 16 bytes."""
    return aligned(cast(bias, dtype, xp), xp)


def problem_of(
    a: Array,
    b: Array,
    out: Array,
    transpose_a: bool,
    transpose_b: bool,
    bias: Array | None,
    plus: Array | None,
    precision: str,
) -> Problem:
    """Return which product this is."""
    m, n = out.shape[-2:]
    addresses = [each.data.ptr for each in (a, b, out, plus) if each is not None]
    common = math.gcd(*addresses)
    return Problem(
        m,
        n,
        a.shape[-2] if transpose_a else a.shape[-1],
        transpose_a,
        transpose_b,
        a.dtype.name,
        out.dtype.name,
        "tf32" if precision == "tf32" and a.dtype == "float32" else "float32",
        bias is not None,
        plus is not None,
        out.shape[0] if out.ndim == 3 else 1,
        next(size for size in ALIGNMENTS if common % size == 0),
    )


def _planned(
    problem: Problem,
    a: Array,
    b: Array,
    out: Array,
    bias: Array | None,
    plus: Array | None,
    xp: ArrayModule,
) -> Plan | None:
    """Return a plan with the fastest algorithm, timed on these arrays but for the result.

    None, and a line that says why, where the library has no algorithm.
    """
    binding = _cublaslt.library()
    plan = Plan(binding, problem)
    try:
        candidates = plan.candidates()
    except Unsupported as error:
        LOGGER.warning("A product is computed in another way: %s.", error)
        return None
    if GPU.capturing() or len(candidates) == 1:
        plan.algorithm = candidates[0]
        return plan
    room = xp.empty(out.shape, out.dtype)
    added = None if plus is None else room  # what is added to may be the result itself

    def seconds(algorithm: Algorithm) -> float:
        try:
            return GPU.seconds(lambda: _run(plan, a, b, room, bias, added, xp, algorithm))
        except CublasError:
            return math.inf

    name = f"{GPU.title()}-{binding.version}"
    plan.algorithm = memory(name).choose(problem.key, candidates, seconds)
    return plan


def _run(
    plan: Plan,
    a: Array,
    b: Array,
    out: Array,
    bias: Array | None,
    plus: Array | None,
    xp: ArrayModule,
    algorithm: Algorithm | None = None,
) -> None:
    device = GPU.device()
    if device not in WORKSPACES:
        with GPU.lasting():
            WORKSPACES[device] = xp.empty((WORKSPACE,), "uint8")
    plan(
        a.data.ptr,
        b.data.ptr,
        0 if plus is None else plus.data.ptr,
        out.data.ptr,
        bias=0 if bias is None else bias.data.ptr,
        workspace=WORKSPACES[device].data.ptr,
        stream=GPU.stream(),
        algorithm=algorithm,
    )


if not _cublaslt.why_none():
    _products.PRODUCTS["cupy"] = multiply
    _cublaslt.library().device = GPU.device
elif compute_capability():
    LOGGER.warning("Products are CuPy's, in float32: %s.", _cublaslt.why_none())
