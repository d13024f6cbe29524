"""Products of cuBLASLt that sum an operand on their way: the gradients of a weight and its bias.

No kernel has to read the gradient of a layer's output once more. NVIDIA documents it as the
epilogue ``BGRADB`` of ``cublasLtEpilogue_t``: the sums over what is multiplied away, of what the
library calls B, are stored beside the product in its dtype, here float32. So they are not
rounded and do not overflow. But the library overwrites what lies there, even where the product is
added to.

Whether it pays is timed once for each shape, and remembered as algorithms are; where nothing is
timed it is not used. By the names of its kernels, cuBLAS 12.9 does both in one on Ampere, and on
Hopper only where all is float16; elsewhere it seems to read the operand once more, as our kernel
does.
"""

from __future__ import annotations

import logging
from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.errors import first_line
from vitkit.kernels.cuda import _cublaslt, _lt, _products
from vitkit.kernels.cuda._cublaslt import Algorithm, CublasError
from vitkit.kernels.cuda._gpu import wants_same_bits
from vitkit.kernels.cuda._lt import APART, TOGETHER, Operands
from vitkit.kernels.cuda.column_sums import add_column_sums

LOGGER = logging.getLogger("vitkit")
SERVED = ("uint16", "float16")  # TF32 would round the operand, and its sums with it
EDITION = 1  # of our own kernel; with a new one it is timed against the library again
PAYS: dict[tuple[Any, ...], bool] = {}
"""Whether a device is faster with such a product, by its number and what is multiplied."""


def gradients(
    dy: Array, x: Array, dweight: Array, dbias: Array, adds: bool, xp: ArrayModule
) -> bool:
    """Do as :func:`vitkit.kernels.cuda._products.gradients`, or return that nothing was done."""
    if dy.dtype.name not in SERVED or wants_same_bits():
        return False
    if _cublaslt.library().refusal:  # which was said
        return False
    case = _lt.GPU.device(), dy.dtype.name, dy.shape, x.shape, adds
    if case not in PAYS and _lt.GPU.capturing():
        return False  # nothing can be tried
    try:
        if case not in PAYS:
            PAYS[case] = _pays(dy, x, adds, xp)
    except (CublasError, MemoryError) as error:
        _do_without(case, error)
    try:
        if PAYS[case]:
            _multiply_and_sum(dy, x, dweight, dbias, adds, xp)
    except CublasError as error:  # too little memory now is for the caller, who may make room
        _do_without(case, error)
    return PAYS[case]


def _do_without(case: tuple[Any, ...], error: Exception) -> None:
    reason = first_line(error)
    LOGGER.info("The gradient of a bias has a kernel of its own, not a product: %s.", reason)
    PAYS[case] = False


def _multiply_and_sum(
    dy: Array, x: Array, dweight: Array, dbias: Array, adds: bool, xp: ArrayModule
) -> None:
    sums = xp.empty(dbias.shape, "float32") if adds else dbias
    given = Operands(dy, x, dweight, sums, dweight if adds else None)
    _lt.run_ended(given, True, False, "sums", xp)
    if adds:
        add_column_sums(sums[None], dbias, xp=xp)


def _pays(dy: Array, x: Array, adds: bool, xp: ArrayModule) -> bool:
    """Return whether one product is faster here than one and a kernel after it."""
    shape = dy.shape[1], x.shape[1]
    given = dy, x, xp.empty(shape, "float32"), xp.empty(shape[:1], "float32"), adds

    def together() -> None:
        _multiply_and_sum(*given, xp)

    def apart() -> None:
        _products.gradients_apart(*given, "float32", xp)

    def seconds(which: Algorithm) -> float:
        return _lt.GPU.seconds(together if which is TOGETHER else apart)

    key = f"{dy.shape} {x.shape} {dy.dtype} {adds}, sums in the product or after, {EDITION}"
    return _lt.found().choose(key, [APART, TOGETHER], seconds) is TOGETHER


if not _cublaslt.why_none():
    _products.SUMMED["cupy"] = gradients
