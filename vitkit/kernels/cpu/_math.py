"""Scalar formulas that loops over float32 turn into vectors: no branch, no call to a library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from vitkit.kernels.cpu._compile import exact, function, inlined, intrinsic, serial
from vitkit.ops.gelu import CERTAIN, CUBIC, SQRT_2_OVER_PI

F = np.float32
ONE, HALF, ZERO = F(1), F(0.5), F(0)
LOG2_E = F(1 / math.log(2))
LN2_HIGH, LN2_LOW = F(0.693359375), F(-2.12194440e-4)  # their sum is ln 2 to 1e-12
SMALLEST, LARGEST = F(-87.33), F(88.72)  # beyond these exp is 0, or infinite, in float32
# Minimax polynomial of (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2 (S. Moshier's Cephes, expf.c).
E0, E1, E2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
E3, E4, E5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)


@intrinsic
def _rounded(context: Any, x: Any) -> Any:
    """Round to the nearest whole number."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType()
        return builder.call(function(builder.module, "llvm.rint.f32", kind, kind), arguments)

    return types.float32(types.float32), generate


@intrinsic
def _power_of_two(context: Any, n: Any) -> Any:
    """Return 2^n of a whole number from -126 to 127, and infinity for 128."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        whole = builder.fptosi(arguments[0], word)
        shifted = builder.shl(builder.add(whole, ir.Constant(word, 127)), ir.Constant(word, 23))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def larger(context: Any, x: Any, y: Any) -> Any:
    """Return the larger of two numbers, ignoring a NaN: for sums that a NaN reaches otherwise."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType()
        return builder.call(
            function(builder.module, "llvm.maxnum.f32", kind, kind, kind),
            arguments,
            fastmath=["nnan", "nsz", "reassoc"],
        )

    return types.float32(types.float32, types.float32), generate


@exact
def exp(x: float) -> float:
    """Return e^x to about one unit in the last place; 0 below 1.2e-38, infinite above 2.4e38."""
    inlined()
    high = x if not x > LARGEST else LARGEST
    n = _rounded(high * LOG2_E)
    n = n if n > F(-126) else F(-126)  # for NaN too: r carries it on
    r = high - n * LN2_HIGH - n * LN2_LOW
    p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    y = (p * r * r + r + ONE) * _power_of_two(n)
    return ZERO if x < SMALLEST else y


# Phi(-a) = t Q(t) e^(-a^2 / 2) with t = 1 / (1 + TAIL a / sqrt 2): a weighted minimax fit of our
# own to erfcx, after the form of Abramowitz & Stegun 7.1.26 with two more terms. The error is at
# most 1.6e-8 in Phi, and 5e-6 of the tail itself.
TAIL = F(0.44)
Q0, Q1, Q2, Q3 = F(0.031672531771), F(-0.122928197124), F(0.121868477722), F(0.012510645932)
Q4, Q5, Q6, Q7 = F(0.097354902287), F(0.111265096790), F(0.124134246791), F(0.124122311602)
SQRT_HALF, DENSITY = F(math.sqrt(0.5)), F(1 / math.sqrt(2 * math.pi))
CERTAIN_ = F(CERTAIN)


@serial
def gelu_both(x: float) -> tuple[float, float]:
    """Return GELU of x, by the error function, and its derivative, from one exponential."""
    inlined()
    z = abs(x) * SQRT_HALF
    t = ONE / (ONE + TAIL * z)
    e = exp(-z * z)
    q = ((((((Q0 * t + Q1) * t + Q2) * t + Q3) * t + Q4) * t + Q5) * t + Q6) * t + Q7
    tail = q * t * e
    cdf = tail if x < ZERO else ONE - tail
    inside = min(max(x, -CERTAIN_), CERTAIN_) if x == x else x
    return x * cdf, cdf + inside * e * DENSITY


LINEAR, CUBE = F(2 * SQRT_2_OVER_PI), F(2 * SQRT_2_OVER_PI * CUBIC)
FAR = F(9)  # beyond this the derivative is 0 or 1 in float32; within, e^-2u does not overflow


@serial
def gelu_tanh_both(x: float) -> tuple[float, float]:
    """Return GELU of x in the tanh form and its derivative: (1 + tanh u) / 2 = sigmoid(2 u)."""
    inlined()
    inside = min(max(x, -FAR), FAR) if x == x else x
    square = inside * inside
    e = exp(-inside * (LINEAR + CUBE * square))
    s = ONE / (ONE + e)
    s = s if x > -FAR else ZERO  # below, what is left would still be seen in a huge number's place
    return x * s, s + inside * (e * s * s) * (LINEAR + F(3) * CUBE * square)
