"""What the GPU at hand can do, and which path each part of a model takes on it."""

from __future__ import annotations

import os
from typing import Any

from vitkit.backend import ArrayModule, can_record, compute_capability
from vitkit.kernels.cuda import _cublaslt, _cudnn
from vitkit.kernels.cuda._gpu import wants_same_bits

LEAST = {"float32": 0, "tf32": 80, "bfloat16": 80, "float16": 70}
"""The compute capability, times ten, from which a GPU multiplies each precision fast."""
WIDTHS = (32, 64, 80, 96, 128)  # of heads that vitkit's own attention kernel takes
NEWEST = 90  # what an array module that only imitates a GPU is taken for


def capability(xp: ArrayModule) -> int:
    """Return the compute capability of the current device, times ten."""
    return compute_capability() if xp.__name__ == "cupy" else NEWEST


def why_not(precision: str, xp: ArrayModule) -> str:
    """Return why a precision would not be faster than float32 here, or nothing."""
    least, have = LEAST[precision], capability(xp)
    if have < least:
        needs, has = (f"{each // 10}.{each % 10}" for each in (least, have))
        return f"it needs a GPU of compute capability {needs}, and this one has {has}"
    if xp.__name__ == "cupy" and (reason := _cublaslt.why_none()):
        return f"there is no cuBLASLt to multiply by ({reason})"
    return ""


def paths(xp: ArrayModule) -> dict[str, str]:
    """Return which path each part takes on the device of ``xp``, and why not a better one.

    Parameters
    ----------
    xp : module
        CuPy, where it works.

    Returns
    -------
    dict of str to str
        By part, a line for people.
    """
    reasons: dict[str, Any] = {"cuBLASLt": _cublaslt.why_none(), "cuDNN": _cudnn.why_none()}
    products = (
        f"CuPy's cuBLAS, operands widened to float32 ({reasons['cuBLASLt']})"
        if reasons["cuBLASLt"]
        else f"cuBLASLt {_version()}"
    )
    own = capability(xp) >= LEAST["bfloat16"]
    kernel = f"vitkit's own kernel for heads of width {', '.join(map(str, WIDTHS))}"
    fallback = kernel if own else "matrix products and a softmax"
    attention = (
        f"{fallback} ({reasons['cuDNN']})"
        if reasons["cuDNN"]
        else f"cuDNN, or {fallback}{_raced(own)}"
    )
    graphs = "recorded as one CUDA graph" if can_record(xp) else "asked one kernel at a time"
    return {
        "GPU": f"compute capability {capability(xp) / 10}",
        "matrix products": products,
        "tanh GELU": _gelu(reasons["cuBLASLt"]),
        "attention": f"{attention}; in float32 and tf32 matrix products and a softmax",
        "everything else": "vitkit's kernels, compiled by NVRTC when first used",
        "training steps": graphs,
    }


def _gelu(reason: str) -> str:
    """Return where ``gelu_tanh`` is computed, given why there is no cuBLASLt, or nothing."""
    if wants_same_bits():
        reason = "VITKIT_DETERMINISTIC=1"
    if reason:
        return f"a kernel after the product ({reason})"
    timed = os.environ.get("VITKIT_AUTOTUNE") != "off"
    when = "where timed faster than" if timed else "untimed (VITKIT_AUTOTUNE=off), in place of"
    return f"in 16 bits within the product, {when} a kernel after it"


def _raced(own: bool) -> str:
    """Return where our own attention kernel, if it serves here, is not only a stopgap for cuDNN."""
    timed = own and not wants_same_bits() and os.environ.get("VITKIT_AUTOTUNE") != "off"
    return " where timed faster" if timed else ""


def _version() -> str:
    """Return the version of cuBLASLt, ``"12.9.2"``."""
    major, rest = divmod(_cublaslt.library().version, 10000)
    return f"{major}.{rest // 100}.{rest % 100}"
