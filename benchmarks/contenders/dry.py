"""What a dry run has in place of a library that only a GPU has."""

from __future__ import annotations

from typing import Any

from vitkit.kernels.cuda._products import multiply, rows
from vitkit.kernels.cuda.gelu import activate, through_activation


class GeluProducts:
    """Stands in for cuBLASLt's products that go through a GELU: a product, and a kernel after it.

    See :class:`vitkit.kernels.cuda._products.ThroughGelu`.
    """

    def pay(self, x: Any, fc1: Any, bias: Any, fc2: Any, keep: bool, xp: Any) -> bool:
        """Return that they are there, for arrays in 16 bits."""
        return bool(x.dtype == "uint16")

    def forward(self, x: Any, fc1: Any, bias: Any, keep: bool, xp: Any) -> tuple[Any, Any]:
        """Return what comes out of the GELU, and what it is of."""
        before = xp.empty((*x.shape[:-1], len(fc1)), x.dtype)
        multiply(rows(x), fc1, rows(before), transpose_b=True, bias=bias, xp=xp)
        return activate(before, "gelu_tanh", False, xp)[0], before if keep else None

    def backward(self, dy: Any, fc2: Any, before: Any, dbias: Any, xp: Any) -> Any:
        """Return the gradient of what the GELU is of, and add its sums to ``dbias``."""
        out = xp.empty(before.shape, dy.dtype)
        multiply(rows(dy), fc2, rows(out), xp=xp)
        return through_activation(out, activate(before, "gelu_tanh", True, xp)[1], dbias, xp)
