"""What serves each operation, and what the kernels found on this machine, as plain values."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from vitkit import ops
from vitkit.backend import array_module, cuda_status
from vitkit.kernels import load, why_none
from vitkit.ops import Op

FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512bf16", "amx-tile", "amx-bf16", "neon")
"""What a processor may have that makes kernels faster, as LLVM calls it."""


def part(name: str, folder: str = "cpu") -> Any:
    """Return a module of kernels; those of the CPU can be imported only where Numba can."""
    return importlib.import_module(f"vitkit.kernels.{folder}.{name}")


def operations() -> dict[str, Op[..., Any]]:
    """Return every operation by its name."""
    return {name: op for name, op in vars(ops).items() if isinstance(op, Op)}


def serving() -> dict[str, str]:
    """Return the module of the kernel that serves each operation on the CPU.

    Returns
    -------
    dict of str to str
        By the operation's name; empty where its reference runs.
    """
    off = bool(why_none(np))
    load(np)  # those of plugins too
    return {name: "" if off else _module(op) for name, op in operations().items()}


def describe() -> dict[str, Any]:
    """Return what the kernels found on this machine.

    Returns
    -------
    dict
        ``why_none``, empty where there are kernels. Then also ``processor``, its name, and its
        ``features`` that kernels may use; ``vector_bits``; ``bfloat16``, what multiplies it faster
        than float32 here, ``"amx"``, ``"avx512bf16"`` or nothing, and ``why_no_bfloat16``;
        ``threads``, and ``threads_from``, what said so; and of what is compiled already ``folder``,
        ``functions`` and ``bytes``.
    """
    reason = why_none(np)
    if reason:
        return {"why_none": reason}
    processor, threads, compilations = map(part, ("_processor", "_threads", "_compilations"))
    folder, functions, size = compilations.kept()
    said = [name for name in threads.LIMITS if _is_count(os.environ.get(name, ""))]
    return {
        "why_none": "",
        "processor": compilations.processor(),
        "features": [name for name in FEATURES if name in processor.features()],
        "vector_bits": 32 * processor.LANES,
        "bfloat16": processor.bfloat16_unit(),
        "why_no_bfloat16": processor.why_no_bfloat16(),
        "threads": threads.threads(),
        "threads_from": said[0] if said else "the processors there are",
        "compiled": {"folder": str(folder or ""), "functions": functions, "bytes": size},
    }


def describe_gpu() -> dict[str, str]:
    """Return which path each part takes on the GPU, a line for each; nothing where none works."""
    if not cuda_status().usable:
        return {}
    cupy = array_module("cupy")
    reason = why_none(cupy)
    if reason:
        return {"GPU kernels": f"none: {reason}; operations run by their references"}
    lines: dict[str, str] = part("_device", "cuda").paths(cupy)
    return lines


def _module(op: Op[..., Any]) -> str:
    kernel = op.overrides.get("numpy") or op.kernels.get("numpy")
    return "" if kernel is None else kernel.__module__


def _is_count(text: str) -> bool:
    return text.isdigit() and int(text) > 0
