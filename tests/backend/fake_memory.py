"""What CuPy 14 does about a GPU's memory: memory of its own, and pools that hand it out again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fake_cuda
from fake_cuda import OUT_OF_MEMORY, CUDARuntimeError, get_current_stream

UNIT = 512  # bytes that pools give memory out by


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Memory:
    """Memory of its own, given back when the object goes."""

    def __init__(self, size: int) -> None:
        self.size, self.ptr, self._device = size, 0, fake_cuda.device
        if size:
            self.ptr = fake_cuda.device.malloc(size)

    def __del__(self) -> None:
        if self.ptr:
            self._device.free(self.ptr)


class PooledMemory:
    """A part of a pool's memory, which does not keep the pool."""

    def __init__(self, ptr: int, size: int, pool: weakref.ref[MemoryPool]) -> None:
        self.ptr, self.size, self._pool = ptr, size, pool

    def __del__(self) -> None:
        if (pool := self._pool()) is not None:
            pool.take_back(self.ptr)


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset


class Chunk:
    """A part of a pool's memory, for one stream, between those beside it."""

    def __init__(self, memory: Memory, ptr: int, size: int, stream: int) -> None:
        self.memory, self.ptr, self.size, self.stream = memory, ptr, size, stream
        self.previous: Chunk | None = None
        self.next: Chunk | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing was divided, or all is together again."""
        return self.size == self.memory.size


class MemoryPool:
    """Hands out again what came back, to the same stream.

    Parts that hold each other are no work for Python's collector in CuPy, which leaves them out:
    their memory is lost where the pool goes before they are one again.
    """

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._in_use: dict[int, Chunk] = {}
        self._free: list[Chunk] = []
        self._divided = fake_cuda.device.divided

    def malloc(self, size: int) -> MemoryPointer:
        """Return memory: a free part that fits best, or new."""
        size = -(-size // UNIT) * UNIT
        if size == 0:
            return MemoryPointer(Memory(0), 0)
        stream = get_current_stream().ptr
        fitting = [chunk for chunk in self._free if chunk.stream == stream and chunk.size >= size]
        if fitting:
            chunk = min(fitting, key=lambda chunk: chunk.size)
            self._free.remove(chunk)
            self._divide(chunk, size)
        else:
            memory = self._new(size)
            chunk = Chunk(memory, memory.ptr, size, stream)
        self._in_use[chunk.ptr] = chunk
        return MemoryPointer(PooledMemory(chunk.ptr, size, weakref.ref(self)), 0)

    def _divide(self, chunk: Chunk, size: int) -> None:
        if chunk.size == size:
            return
        rest = Chunk(chunk.memory, chunk.ptr + size, chunk.size - size, chunk.stream)
        chunk.size, rest.previous, rest.next, chunk.next = size, chunk, chunk.next, rest
        if rest.next is not None:
            rest.next.previous = rest
        self._free.append(rest)
        self._divided.add(chunk.memory)

    def _new(self, size: int) -> Any:
        """As CuPy does: where there is too little, what is free goes first."""
        for attempt in range(3):
            try:
                return self._allocator(size).mem
            except CUDARuntimeError as error:
                if error.status != OUT_OF_MEMORY:
                    raise
            if attempt == 1:
                gc.collect()
            self.free_all_blocks()
        raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")

    def take_back(self, ptr: int) -> None:
        """Have a part again, one with those beside it that are free."""
        chunk = self._in_use.pop(ptr)
        if chunk.next in self._free:
            self._join(chunk, chunk.next)
        if chunk.previous in self._free:
            chunk = self._join(chunk.previous, chunk)
        self._free.append(chunk)

    def _join(self, chunk: Chunk, after: Chunk) -> Chunk:
        self._free = [each for each in self._free if each is not chunk and each is not after]
        chunk.size, chunk.next = chunk.size + after.size, after.next
        if after.next is not None:
            after.next.previous = chunk
        if chunk.whole:
            self._divided.discard(chunk.memory)
        return chunk

    def free_all_blocks(self) -> None:
        """Give back what is free and not divided."""
        self._free = [chunk for chunk in self._free if not chunk.whole]

    def total_bytes(self) -> int:
        """Return how much the pool has."""
        chunks = [*self._free, *self._in_use.values()]
        return sum({chunk.memory: chunk.memory.size for chunk in chunks}.values())


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer]) -> Iterator[None]:
    """Have this thread's arrays take their memory from an allocator."""
    local = fake_cuda.device.local
    before = getattr(local, "allocator", None)
    local.allocator = allocator
    try:
        yield
    finally:
        local.allocator = before
