"""CUDA kernels on the CPU: the sources that a GPU runs, compiled as C++ and run by fibers.

>>> from vitkit.testing import cuda_on_cpu, strict_device
>>> with cuda_on_cpu.emulated():  # doctest: +SKIP
...     y = ops.layer_norm(x, weight, bias, 1e-6, xp=strict_device.xp)

Inside the block every operation that has a kernel for CuPy runs that kernel on arrays of
:mod:`vitkit.testing.strict_device`. It needs a C++ compiler, ``$CXX`` or ``g++``. What this shows
is what the kernels compute; not how fast, nor that a GPU's compiler takes them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vitkit import kernels
from vitkit.kernels.cuda import _kernel, _products
from vitkit.kernels.cuda._kernel import Kernel, Size
from vitkit.kernels.state import operations
from vitkit.ops import residual
from vitkit.testing import recording, strict_device

OPTIONS = "-std=c++17 -O1 -fno-strict-aliasing -shared -fPIC -w".split()
orders = [0]
"""Each launch runs once; threads go in the order that the first of these names (see the header)."""


def why_not() -> str:
    """Return why kernels cannot be run here, or nothing."""
    compiler = _compiler()
    return "" if shutil.which(compiler) else f"there is no C++ compiler {compiler!r}"


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


@contextmanager
def emulated(order: int = 0) -> Iterator[None]:
    """Run the kernels for CuPy on the strict device inside the block.

    Parameters
    ----------
    order : int, default 0
        In which order the threads of a block run: 0 from the first, 1 from the last, others drawn.

    Raises
    ------
    RuntimeError
        If there is no C++ compiler.
    """
    if reason := why_not():
        raise RuntimeError(f"CUDA kernels cannot run on this CPU: {reason}.")
    if reason := kernels.import_cuda():
        raise RuntimeError(f"The CUDA kernels cannot be loaded: {reason}.")
    name = strict_device.xp.__name__
    every = *operations().values(), residual.narrowed, residual.widened  # which are not public
    served = [op for op in every if "cupy" in op.kernels]
    before = [op.kernels.get(name) for op in served]
    launcher, product = _kernel.LAUNCHERS.get(name), _products.PRODUCTS.get(name)
    rounded = kernels.ROUNDED.get(name)
    orders.insert(0, order)
    _kernel.LAUNCHERS[name] = launch
    _products.PRODUCTS[name] = multiply
    kernels.ROUNDED[name] = kernels.ROUNDED["cupy"]
    kernels.FOLDERS[name] = kernels.FOLDERS["cupy"]  # so that a model's precision is served
    kernels._load_folder.cache_clear()
    for op in served:
        op.kernels[name] = op.kernels["cupy"]
    try:
        yield
    finally:
        orders.pop(0)
        if launcher is None:
            del kernels.FOLDERS[name]
            kernels._load_folder.cache_clear()
        _put(_products.PRODUCTS, name, product)
        _put(kernels.ROUNDED, name, rounded)
        _put(_kernel.LAUNCHERS, name, launcher)
        for op, kernel in zip(served, before, strict=True):
            _put(op.kernels, name, kernel)


def launch(
    kernel: Kernel, grid: Size, block: Size, arguments: tuple[Any, ...], shared: int
) -> None:
    """Run a kernel on the arrays of the strict device."""
    names, run = _library(_kernel.source(kernel.file), tuple(_names(kernel.file)))
    values = [_value(argument) for argument in arguments]
    sizes = (ctypes.c_size_t * len(values))(*(ctypes.sizeof(value) for value in values))
    places = (ctypes.c_void_p * len(values))(
        *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
    )
    shape = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
    number, order = names[kernel.name], orders[0]

    def once() -> None:
        problem = run(number, len(values), sizes, shape, shared, order, places)
        if problem:
            raise RuntimeError(f"{kernel.name}: {problem.decode()}.")
        assert held  # noqa: S101 - what the addresses point at lives as long as the launch

    held = arguments, values
    once()
    recording.note(once)


def multiply(
    a: Any,
    b: Any,
    out: Any,
    transpose_a: bool,
    transpose_b: bool,
    bias: Any,
    plus: Any,
    precision: str,
    xp: Any,
) -> None:
    """Multiply arrays of the strict device as cuBLASLt does: without CuPy, and to be recorded."""
    a, b, out, bias, plus = (None if x is None else x._a for x in (a, b, out, bias, plus))

    def once() -> None:
        transposed = (transpose_a, transpose_b)
        _products.by_the_module(a, b, out, *transposed, bias, plus, precision, np)

    once()
    recording.note(once)


def _put(table: dict[str, Any], name: str, value: Any) -> None:
    table.pop(name, None)
    if value is not None:
        table[name] = value


def _value(argument: Any) -> Any:
    """Return an argument as ctypes passes it."""
    if isinstance(argument, strict_device.DeviceArray):
        if not argument.flags.c_contiguous:
            raise ValueError("A kernel was given an array with gaps.")
        return ctypes.c_void_p(argument.data.ptr)
    kinds = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float}
    kinds |= {"uint64": ctypes.c_uint64, "uint32": ctypes.c_uint32, "float64": ctypes.c_double}
    return kinds[argument.dtype.name](argument.item())


def _names(file: str) -> list[str]:
    families = [family for family in _kernel.FAMILIES if family.file == file]
    return [kernel.name for family in families for kernel in family.kernels()]


@functools.cache
def _library(text: str, names: tuple[str, ...]) -> tuple[dict[str, int], Any]:
    """Compile a source with the functions asked for; return their numbers, and what calls them."""
    header = (resources.files("vitkit.testing") / "cuda_on_cpu.h").read_text("utf-8")
    cases = "\n".join(
        f"    case {number}: return call(&{name}, count, sizes, grid, block, shared, seed, at);"
        for number, name in enumerate(names)
    )
    entry = f"""
extern "C" const char* run(int which, int count, const size_t* sizes, const unsigned* shape,
                           size_t shared, unsigned seed, void** at) {{
  using namespace cuda_on_cpu;
  const Index grid{{shape[0], shape[1], shape[2]}}, block{{shape[3], shape[4], shape[5]}};
  switch (which) {{
{cases}
  }}
  return "no such kernel";
}}
"""
    with tempfile.TemporaryDirectory(prefix="vitkit-cuda-") as folder:
        code, built = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        code.write_text(header + text + entry, "utf-8")
        command = [_compiler(), *OPTIONS, "-o", str(built), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"The kernels do not compile as C++:\n{done.stderr[:4000]}")
        run = ctypes.CDLL(str(built)).run  # stays loaded when the file is gone
    run.restype = ctypes.c_char_p
    number, place = ctypes.c_int, ctypes.c_void_p
    run.argtypes = [number, number, place, place, ctypes.c_size_t, ctypes.c_uint, place]
    return {name: index for index, name in enumerate(names)}, run
