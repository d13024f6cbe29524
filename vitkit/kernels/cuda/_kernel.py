"""CUDA functions: written in the ``.cuh`` files beside this one, compiled when first called.

CuPy compiles them by NVRTC for the GPU at hand and keeps the result on disk. Another array module
may bring a launcher of its own, as :mod:`vitkit.testing.cuda_on_cpu` does to run the same sources
on the CPU.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule

Size = tuple[int, ...]
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
OPTIONS = ("--std=c++17", "--restrict", "--extra-device-vectorization")
TYPES = {"float32": "float", "uint16": "bf16", "float16": "f16"}
"""What the numbers of an array are called in C++; bits of bfloat16 are kept as uint16."""
STORED = tuple(TYPES.values())
LOW = STORED[1:]  # of 16 bits
FLOWING = STORED[:2]  # what flows from block to block may be of


@functools.cache
def source(file: str) -> str:
    """Return the text of a file, with the files of ours that it includes put in, once each."""
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        found = (resources.files(__package__) / name).read_text("utf-8")
        found = found.replace("#pragma once\n", "")
        return INCLUDE.sub(lambda match: text(match[1]), found)

    return text(file)


@dataclass(frozen=True)
class Kernel:
    """A CUDA function, its template arguments given.

    Attributes
    ----------
    file : str
        The file it is written in.
    name : str
        Its name as C++ has it, ``"layer_norm_forward<float, bf16>"``.
    """

    file: str
    name: str

    def __call__(
        self, grid: Size, block: Size, *arguments: Any, shared: int = 0, xp: ArrayModule
    ) -> None:
        """Ask the device to run it.

        Parameters
        ----------
        grid, block : tuple of int
            How many blocks, and threads in each.
        *arguments : array, int, float or numpy.generic
            Whole numbers go as int, floats as float; give ``numpy.int64`` for more than 2**31.
        shared : int, default 0
            Bytes of dynamic shared memory.
        xp : module
            The array module of the arrays.
        """
        if 0 not in grid:
            passed = tuple(map(_argument, arguments))
            LAUNCHERS[xp.__name__](self, grid, block, passed, shared)


class Family:
    """The CUDA functions that one template makes.

    Parameters
    ----------
    file : str
        The file it is written in.
    template : str
        The name with a place for each argument: ``"layer_norm_forward<{x}, {y}>"``.
    least : int, default 70
        The lowest compute capability that they run on, times ten.
    **choices : tuple of str
        What each may be.
    """

    def __init__(
        self, file: str, template: str, *, least: int = 70, **choices: tuple[Any, ...]
    ) -> None:
        self.file, self.template, self.least, self.choices = file, template, least, choices
        FAMILIES.append(self)

    def __call__(self, **chosen: Any) -> Kernel:
        """Return the function for these arguments."""
        for name, value in chosen.items():
            if value not in self.choices[name]:
                raise ValueError(f"{self.template}: {name} may be {self.choices[name]}; {value!r}.")
        return Kernel(self.file, self.template.format(**chosen))

    def kernels(self) -> list[Kernel]:
        """Return all of them."""
        names = list(self.choices)
        return [
            self(**dict(zip(names, values, strict=True)))
            for values in itertools.product(*self.choices.values())
        ]


FAMILIES: list[Family] = []
"""All there are, of the modules that have been imported."""


def type_of(array: Array) -> str:
    """Return what the numbers of an array are called in C++."""
    return TYPES[array.dtype.name]


def blocks(count: int, size: int) -> int:
    """Return how many blocks of a size hold ``count``."""
    return -(-count // size)


def _argument(value: Any) -> Any:
    if isinstance(value, np.generic):  # before the others: a numpy.float64 is a float
        return value
    if isinstance(value, int):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value


@functools.cache
def _compiled(kernel: Kernel) -> Any:
    module = sys.modules["cupy"].RawModule(
        code=source(kernel.file), options=OPTIONS, name_expressions=(kernel.name,)
    )
    return module.get_function(kernel.name)


def _launch_on_gpu(
    kernel: Kernel, grid: Size, block: Size, arguments: tuple[Any, ...], shared: int
) -> None:
    function = _compiled(kernel)
    if shared > FREE_SHARED and function.max_dynamic_shared_size_bytes < shared:
        function.max_dynamic_shared_size_bytes = shared
    function(grid, block, arguments, shared_mem=shared)


FREE_SHARED = 48 * 1024  # bytes of shared memory that a block gets without asking first
LAUNCHERS: dict[str, Callable[[Kernel, Size, Size, tuple[Any, ...], int], None]] = {
    "cupy": _launch_on_gpu
}
"""What runs a kernel on the arrays of an array module, by its name."""
