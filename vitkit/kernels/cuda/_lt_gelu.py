"""Products of cuBLASLt that go through a GELU on their way, forward or backward.

The library's GELU is the one by the hyperbolic tangent. Its forward product also writes what the
GELU is of, where backward will follow, and its backward product reads that: no kernel has to read
and write the largest array of a ViT once more. They are what NVIDIA documents as the epilogues
``GELU_BIAS``, ``GELU_AUX_BIAS`` and ``DGELU_BGRAD`` of ``cublasLtEpilogue_t``.

Some GPUs are slower at such a product than at one and a kernel after it. Whether it pays is timed
once for each shape, and remembered as algorithms are.
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
from vitkit.kernels.cuda._products import rows
from vitkit.kernels.cuda.casts import cast
from vitkit.kernels.cuda.column_sums import add_column_sums
from vitkit.kernels.cuda.gelu import activate, through_activation

LOGGER = logging.getLogger("vitkit")
WIDTH = 8  # of what a GELU is of, the length of a row is a multiple
FORWARD = ("uint16", "float16")  # in float32 the library's GELU is not as exact as ours
BACKWARD = ("uint16",)  # the library writes sums as it does the result: float16 would overflow
EDITION = 1  # of our own kernels; with a new one they are timed against the library again
PAYS: dict[tuple[Any, ...], bool] = {}
"""Whether a device is faster with the products of this file, by its number and the sizes."""


class GeluProducts:
    """The products on both sides of a GELU, forward and backward, on CuPy's arrays."""

    def pay(
        self, x: Array, fc1: Array, bias: Array, fc2: Array, keep: bool, xp: ArrayModule
    ) -> bool:
        """Return whether the device has them, and is faster with them.

        Parameters
        ----------
        x : array, shape (..., D)
            The input of the first layer: float16, or the bits of bfloat16 as uint16.
        fc1 : array, shape (M, D)
            The weights of the first layer, of the same dtype.
        bias : array, shape (M,)
            Its bias, float32.
        fc2 : array, shape (D, M)
            The weights of the second layer, float32.
        keep : bool
            Whether backward will follow.
        xp : module
            The array module.
        """
        served = BACKWARD if keep else FORWARD
        if x.dtype.name not in served or len(fc1) % WIDTH or not x.size or wants_same_bits():
            return False
        if _cublaslt.library().refusal:  # which was said
            return False
        case = _lt.GPU.device(), x.dtype.name, len(rows(x)), fc1.shape, keep
        if case not in PAYS:
            if _lt.GPU.capturing():
                return False  # nothing can be tried
            try:
                PAYS[case] = self._pays(rows(x), fc1, bias, cast(fc2, x.dtype.name, xp), keep, xp)
            except (CublasError, MemoryError) as error:
                reason = first_line(error)
                LOGGER.info("A GELU has a kernel of its own, after the product: %s.", reason)
                PAYS[case] = False
        return PAYS[case]

    def forward(
        self, x: Array, fc1: Array, bias: Array, keep: bool, xp: ArrayModule
    ) -> tuple[Array, Array | None]:
        """Return ``gelu_tanh(x W^T + b)``, and ``x W^T + b`` if it is kept; see :meth:`pay`."""
        out = xp.empty((*x.shape[:-1], len(fc1)), x.dtype)
        before = xp.empty(out.shape, x.dtype) if keep else None
        given = Operands(rows(x), fc1, rows(out), _lt.as_added(bias, x.dtype.name, xp))
        if before is not None:
            given = given._replace(before=rows(before))
        _lt.run_ended(given, False, True, "gelu_kept" if keep else "gelu", xp)
        return out, before

    def backward(
        self, dy: Array, fc2: Array, before: Array, dbias: Array, xp: ArrayModule
    ) -> Array:
        """Return ``(dy W)`` through the GELU of ``before``, and add its sums to ``dbias``.

        The library rounds the sums to the dtype of ``dy`` before they are added.

        Parameters
        ----------
        dy : array, shape (..., D)
            The gradient of the second layer's output, of 16 bits.
        fc2 : array, shape (D, M)
            Its weights, of the same dtype.
        before : array, shape (..., M)
            What the GELU was of, likewise.
        dbias : array, shape (M,)
            Float32.
        xp : module
            The array module.
        """
        sums = xp.empty(dbias.shape, dy.dtype)
        out = xp.empty(before.shape, dy.dtype)
        given = Operands(rows(dy), fc2, rows(out), sums, before=rows(before))
        _lt.run_ended(given, False, False, "gelu_backward", xp)
        add_column_sums(sums[None], dbias, xp=xp)
        return out

    def _pays(
        self, x: Array, fc1: Array, bias: Array, fc2: Array, keep: bool, xp: ArrayModule
    ) -> bool:
        """Return what :meth:`pay` does; the gradient that comes back is made up."""
        hidden, before = self.forward(x, fc1, bias, keep, xp)
        dy, dbias = xp.empty(x.shape, x.dtype), xp.empty(bias.shape, "float32")

        def together() -> None:
            self.forward(x, fc1, bias, keep, xp)
            if before is not None:
                self.backward(dy, fc2, before, dbias, xp)

        def apart() -> None:
            _lt.multiply(x, fc1, hidden, False, True, bias, None, "float32", xp)
            activate(hidden, "gelu_tanh", keep, xp)
            if before is not None:
                dh = xp.empty(before.shape, x.dtype)
                _lt.multiply(dy, fc2, dh, False, False, None, None, "float32", xp)
                through_activation(dh, before, dbias, xp)

        together()  # what cannot run is not chosen, even where nothing is timed

        def seconds(which: Algorithm) -> float:
            return _lt.GPU.seconds(together if which is TOGETHER else apart)

        key = f"{(*x.shape, *fc1.shape)} {x.dtype} {keep}, gelu in the product or after, {EDITION}"
        return _lt.found().choose(key, [TOGETHER, APART], seconds) is TOGETHER


if not _cublaslt.why_none():
    _products.GELU["cupy"] = GeluProducts()
