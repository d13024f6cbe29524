"""How the CPU kernels are compiled: with Numba, once for each machine, for the vectors it has.

Kernels stand at the top of their modules: Numba's disk cache never finds a function that was made
inside another. Fast-math may reorder sums and contract products, so that loops become vectors; it
may not assume that there is no NaN or infinity, because those have to come out where they went in.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import extending

from vitkit.kernels.cpu._alone import Alone
from vitkit.kernels.cpu._cache import KernelFiles
from vitkit.kernels.cpu._compilations import listen
from vitkit.kernels.cpu._processor import LANES, bfloat16_unit

listen()
intrinsic: Any = extending.intrinsic  # its types say that callers, too, pass the context
MATH = {"reassoc", "contract", "nsz", "arcp"}
OPTIONS: dict[str, Any] = {"boundscheck": False, "nogil": True, "error_model": "numpy"}


def parallel(function: Any) -> Any:
    """Compile a kernel that shares its work among the threads of Numba's pool."""
    options = {"parallel": True, "pipeline_class": Alone, **OPTIONS}
    return _stamped(numba.njit(cache=True, fastmath=MATH, **options)(function))


def serial(function: Any) -> Any:
    """Compile a piece of a kernel, such as the work on one row."""
    return _stamped(numba.njit(cache=True, fastmath=MATH, **OPTIONS)(function))


def _stamped(kernel: Any) -> Any:
    """Let code be taken from the cache only while no file of this folder has changed.

    Numba looks at the kernel's own file alone, and would go on using what other files had in it.
    """
    files = getattr(kernel._cache, "_cache_file", None)
    if files is not None:
        kernel._cache._cache_file = KernelFiles(files, _stamp())
    return kernel


@functools.cache
def _stamp() -> str:
    """Return a digest of this folder's files, and of what Numba does not know of the processor."""
    digest = hashlib.sha256(bfloat16_unit().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def exact(function: Any) -> Any:
    """Compile a formula whose terms must be added in the order they are written in."""
    return numba.njit(fastmath={"contract"}, **OPTIONS)(function)


def plainly(function: Any) -> Any:
    """Compile a formula to the operations it is written in."""
    # False, not left out: Numba would compile it with the freedoms of the first to call it.
    return numba.njit(fastmath=False, **OPTIONS)(function)


@intrinsic
def widest_vectors(context: Any) -> Any:
    """Let loops of the function that calls this use the widest vectors there are.

    LLVM prefers 256 bits on many processors with 512, for the sake of programs that use them
    rarely.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows no attribute with a value; the set that holds them prints any text.
        set.add(builder.function.attributes, f'"prefer-vector-width"="{32 * LANES}"')
        return target.get_dummy_value()

    return numba.void(), generate


@intrinsic
def inlined(context: Any) -> Any:
    """Let the function that calls this become part of its callers, however long it is.

    A loop that calls a function is not made of vectors.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return target.get_dummy_value()

    return numba.void(), generate


def function(module: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Return the declaration of an LLVM function in a module."""
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(result, arguments), name)
