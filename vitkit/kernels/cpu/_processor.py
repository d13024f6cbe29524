"""What the processor that kernels are compiled for can do."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

from numba.core.registry import cpu_target

ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA, SYS_ARCH_PRCTL = 0x1023, 18, 158

VECTORS = {"avx512f", "avx512vl", "avx512bf16"}
"""What rounds float32 to bfloat16, and multiplies it where there are no tiles."""


@functools.cache
def features() -> frozenset[str]:
    """Return what there is, as LLVM calls it: ``"avx512f"``.

    That is this machine's, unless ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` name less.
    """
    listed = cpu_target.target_context.codegen()._tm_features
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


LANES = 16 if "avx512f" in features() else 8 if "avx" in features() else 4
"""How many float32 one vector register holds."""


@functools.cache
def why_no_tiles() -> str:
    """Return why there is no tile unit (AMX), or nothing; asks the system for it, once.

    That is when kernels are loaded, since what is compiled depends on the answer.
    """
    missing = {"amx-tile", "amx-bf16", *VECTORS} - features()
    if missing:
        return f"the processor has no {', '.join(sorted(missing))}"
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "only on Linux is it known how to ask for the tile unit"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0:
        return f"the system does not lend out the tile unit (error {ctypes.get_errno()})"
    return ""


def bfloat16_unit() -> str:
    """Return what multiplies bfloat16 faster than float32: ``"amx"``, ``"avx512bf16"``, or nothing.

    Tiles (AMX) are several times as fast as products of float32, dot products of pairs (AVX-512
    BF16) twice.
    """
    if not why_no_tiles():
        return "amx"
    return "" if VECTORS - features() else "avx512bf16"


def why_no_bfloat16() -> str:
    """Return why bfloat16 has no kernels here, or nothing."""
    if bfloat16_unit():
        return ""
    return f"{why_no_tiles()}, and there is no AVX-512 BF16"
