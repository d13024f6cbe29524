"""The little of CuPy that work with streams, graphs and kernels needs, on a fake GPU."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_cuda
import fake_memory
import numpy as np
from fake_cuda import Race, Stream, Work
from fake_memory import UNIT, MemoryPointer, MemoryPool

MOST_SHARED, UNASKED_SHARED = 227 * 1024, 48 * 1024
MOST_BLOCKS, MOST_THREADS = (2**31 - 1, 65535, 65535), 1024


class PinnedMemoryPool:
    """Hands out again what came back with the last array on it, at once, as CuPy's does."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def malloc(self, size: int) -> ctypes.Array[Any]:
        """Return pinned memory, which the device reads by itself."""
        size = -(-size // UNIT) * UNIT
        fitting = [block for block in self._free if block.size == size]
        if fitting:
            block = fitting[-1]
            self._free = [each for each in self._free if each is not block]
        else:
            block = np.zeros(size, "uint8")
            fake_cuda.device.pinned.append(block)
        memory = type("PinnedMemory", (ctypes.c_ubyte * size,), {}).from_buffer(block)
        weakref.finalize(memory, self._free.append, block).atexit = False
        return memory

    def free_all_blocks(self) -> None:
        """Give back what is free; cudaFreeHost waits."""
        fake_cuda.device.finish()
        self._free.clear()


def ask(name: str, function: Callable[..., Any], out: ndarray, *given: Any) -> None:
    """Ask the current stream to write what a function makes of arrays."""
    to, places = out.place, [x.place if isinstance(x, ndarray) else (lambda x=x: x) for x in given]

    def run() -> None:
        to()[...] = function(*(place() for place in places))

    read = [(x.data.ptr, x.nbytes, False) for x in given if isinstance(x, ndarray)]
    uses = [*read, (out.data.ptr, out.nbytes, True)]
    fake_cuda.device.ask(fake_cuda.get_current_stream(), Work(name, run, uses))


class ndarray:
    """An array of the device."""

    def __init__(self, shape: tuple[int, ...], dtype: Any = "float32") -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        allocate = getattr(fake_cuda.device.local, "allocator", None) or default_pool().malloc
        self.data: MemoryPointer = allocate(self.nbytes)

    @property
    def place(self) -> Callable[[], np.ndarray]:
        """What finds the numbers when work on them runs; it does not keep their memory."""
        ptr, nbytes, dtype, shape = self.data.ptr, self.nbytes, self.dtype, self.shape
        at = fake_cuda.device.at
        return lambda: at(ptr, nbytes).view(dtype).reshape(shape)

    def get(self) -> np.ndarray:
        """Return a copy on the host, which waits for the current stream."""
        host, place = np.empty(self.shape, self.dtype), self.place
        stream = fake_cuda.get_current_stream()

        def run() -> None:
            host[...] = place()

        use = (self.data.ptr, self.nbytes, False)
        fake_cuda.device.ask(stream, Work("copy to host", run, [use]))
        stream.synchronize()
        return host

    def set(self, arr: np.ndarray, stream: Stream | None = None) -> None:
        """Copy from the host: memory that is not pinned is read at once, pinned memory later."""
        if type(arr) is not np.ndarray:
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        arr, now, place = np.ascontiguousarray(arr), arr.copy(), self.place
        pinned = [
            block[arr.ctypes.data - block.ctypes.data :][: arr.nbytes]
            for block in fake_cuda.device.pinned
            if np.may_share_memory(arr, block)
        ]

        def run() -> None:
            if any(part.tobytes() != now.tobytes() for part in pinned):
                raise Race("pinned memory was written before the device had read it")
            place()[...] = now

        use = (self.data.ptr, self.nbytes, True)
        stream = fake_cuda.get_current_stream() if stream is None else stream
        fake_cuda.device.ask(stream, Work("copy to device", run, [use]))

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __setitem__(self, index: Any, value: Any) -> None:
        if index is not Ellipsis or isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}, or index {index!r}")
        ask("write", lambda x: x, self, value)

    def __iadd__(self, other: Any) -> ndarray:
        ask("add", np.add, self, self, other)
        return self

    def __mul__(self, other: Any) -> ndarray:
        out = ndarray(self.shape, self.dtype)
        ask("multiply", np.multiply, out, self, other)
        return out


def zeros(shape: tuple[int, ...], dtype: Any = "float32") -> ndarray:
    """Return zeros, which the current stream writes."""
    made = ndarray(shape, dtype)
    made[...] = 0
    return made


class CUDADriverError(RuntimeError):
    """As CuPy's."""


class Function:
    """A compiled kernel, launched as CuPy launches: with what C++ gets, into the current stream."""

    def __init__(self, code: str, name: str, interpret: Callable[..., None]) -> None:
        self.code, self.name, self._interpret = code, name, interpret
        self._shared = UNASKED_SHARED

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """How much dynamic shared memory a launch may ask for."""
        return self._shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > MOST_SHARED:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._shared = size

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        grid, block = ((*(max(1, n) for n in size), 1, 1)[:3] for size in (grid, block))
        fits = all(n <= most for n, most in zip(grid, MOST_BLOCKS, strict=True))
        if not fits or math.prod(block) > MOST_THREADS or shared_mem > self._shared:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        arrays = [x for x in args if isinstance(x, ndarray)]
        values = [x.place if isinstance(x, ndarray) else _passed(x) for x in args]

        def run() -> None:
            given = [ctypes.c_void_p(x().ctypes.data) if callable(x) else x for x in values]
            self._interpret(self.code, self.name, grid, block, given, shared_mem)

        uses = [(x.data.ptr, x.nbytes, True) for x in arrays]
        fake_cuda.device.ask(fake_cuda.get_current_stream(), Work(self.name, run, uses))


def _passed(x: Any) -> Any:
    """Return a number as CuPy passes it: Python's own are of 64 bits."""
    if isinstance(x, bool | int | float) and not isinstance(x, np.generic):
        x = {bool: np.bool_, int: np.int64, float: np.float64}[type(x)](x)
    if not isinstance(x, np.generic):
        raise TypeError(f"Unsupported type {type(x)}")
    return np.ctypeslib.as_ctypes_type(x.dtype)(x.item())


def default_pool() -> MemoryPool:
    """Return the pool that arrays take their memory from."""
    pool: MemoryPool = fake_cuda.device.local.pool
    return pool


def module(capacity: int, interpret: Callable[..., None] | None = None) -> Any:
    """Return a CuPy on a GPU of its own.

    Parameters
    ----------
    capacity : int
        The GPU's bytes.
    interpret : callable, optional
        What runs a kernel: takes code, name, grid, block, arguments and bytes of shared memory.
    """
    fake_cuda.start(capacity)
    pinned = PinnedMemoryPool()
    fake_cuda.device.local.pool = MemoryPool()

    class RawModule:
        """Sources, compiled when a function is asked for."""

        def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: Any) -> None:
            if not any("-std=c++" in option for option in options):
                raise ValueError("need to specify C++ standard for compiling template code")
            self.code, self.names = code, tuple(name_expressions)

        def get_function(self, name: str) -> Function:
            if name not in self.names:
                raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
            return Function(self.code, name, interpret or (lambda *args: None))

    cupy: Any = ModuleType("cupy")
    cupy.ndarray, cupy.empty, cupy.zeros, cupy.RawModule = ndarray, ndarray, zeros, RawModule
    cupy.get_default_memory_pool = default_pool
    cupy.get_default_pinned_memory_pool = lambda: pinned
    cupy.cuda = SimpleNamespace(
        Device=lambda number=0: nullcontext(),
        Event=fake_cuda.Event,
        Memory=fake_memory.Memory,
        MemoryPointer=MemoryPointer,
        MemoryPool=MemoryPool,
        Stream=Stream,
        alloc_pinned_memory=pinned.malloc,
        get_current_stream=fake_cuda.get_current_stream,
        runtime=SimpleNamespace(CUDARuntimeError=fake_cuda.CUDARuntimeError),
        using_allocator=fake_memory.using_allocator,
    )
    return cupy
