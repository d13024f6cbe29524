"""What CUDA and CuPy 14 say of streams, events and graphs: a GPU that never hurries.

Work is kept until the host waits for it; then it is done, and what it comes after, but nothing
else. Whatever no stream and no event puts in order has no order, and two such uses of the same
memory, one of which writes, are a race, which raises when the second is asked for. Addresses are
never used again, so that what was given back is noticed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np

APART = 512  # bytes between one memory and the next
OUT_OF_MEMORY, ILLEGAL_STATE, ILLEGAL_ADDRESS = 2, 401, 700
UNSUPPORTED, INVALIDATED, MERGE, UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT = (
    *(900, 901, 902, 904, 905, 906, 907),
)
ERRORS = {
    OUT_OF_MEMORY: "cudaErrorMemoryAllocation: out of memory",
    ILLEGAL_STATE: "cudaErrorIllegalState: the operation cannot be performed in the present state",
    ILLEGAL_ADDRESS: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    UNSUPPORTED: "cudaErrorStreamCaptureUnsupported: not permitted when stream is capturing",
    INVALIDATED: "cudaErrorStreamCaptureInvalidated: failed due to a previous error",
    MERGE: "cudaErrorStreamCaptureMerge: would merge two captures",
    UNJOINED: "cudaErrorStreamCaptureUnjoined: ended with a fork that was not joined",
    ISOLATION: "cudaErrorStreamCaptureIsolation: a dependency on uncaptured work",
    IMPLICIT: "cudaErrorStreamCaptureImplicit: would make the legacy stream depend on a capture",
    CAPTURED_EVENT: "cudaErrorCapturedEvent: last recorded in a capturing stream",
}
BROKEN = "the stream was capturing, but an error has invalidated the capture sequence"
Use = tuple[int, int, bool]
"""Address and bytes of memory, and whether it is written."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's: its number, and its name."""

    def __init__(self, status: int) -> None:
        super().__init__(ERRORS[status])
        self.status = status


class Race(Exception):
    """Two uses of the same memory that nothing puts in order."""


class Work:
    """Something asked of the device."""

    def __init__(self, name: str, run: Callable[[], None], uses: Sequence[Use]) -> None:
        self.name, self.run = name, run
        self.uses = [use for use in uses if use[1]]
        self.number, self.before, self.done = -1, 0, False


class Block:
    """Memory as cudaMalloc gave it, and who used what of it."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.bytes = start, np.full(size, 255, "uint8")  # NaN, as floats
        self.past: list[tuple[Use, Work]] = []


class Device:
    """The GPU: the work it was asked for, and its memory.

    Attributes
    ----------
    works : list of Work
        All that was asked, in the order in which it was.
    known : int
        Which of it the host has waited for, a bit for each; as all sets of work here.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used, self._next = capacity, 0, APART
        self.works: list[Work] = []
        self.known = 0
        self.problem: Exception | None = None
        self.blocks: dict[int, Block] = {}
        self.pinned: list[np.ndarray] = []
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.blocking = 0  # work of the streams that the default one waits for
        self.divided: set[object] = set()  # memory that is in parts, which hold each other
        self.captures: list[Capture] = []
        self.local = threading.local()

    def malloc(self, size: int) -> int:
        """Return new memory; the captures that do not permit it are CuPy's choice to avoid."""
        if self.used + size > self.capacity:
            raise CUDARuntimeError(OUT_OF_MEMORY)
        start, self._next = self._next, self._next + size + APART
        self.blocks[start] = Block(start, size)
        self.used += size
        return start

    def free(self, start: int) -> None:
        """Give memory back when all is done that was asked: cudaFree waits."""
        self._do((1 << len(self.works)) - 1)
        self.used -= len(self.blocks.pop(start).bytes)

    def block(self, use: Use) -> Block:
        """Return the memory that a use lies in; there is none where it was given back."""
        for block in self.blocks.values():
            if block.start <= use[0] and use[0] + use[1] <= block.start + len(block.bytes):
                return block
        raise CUDARuntimeError(ILLEGAL_ADDRESS)

    def at(self, address: int, size: int) -> np.ndarray:
        """Return the bytes at an address."""
        if size == 0:
            return np.empty(0, "uint8")
        block = self.block((address, size, False))
        return block.bytes[address - block.start :][:size]

    def ask(self, stream: Stream, work: Work) -> None:
        """Put work at the end of a stream, or into what the stream captures."""
        if stream.capture is not None:
            stream.capture.add(stream, work)
            return
        self.refuse_legacy(stream)
        work.before = stream.before() | self.known
        for use in work.uses:
            self._order(work, use)
        work.number = len(self.works)
        self.works.append(work)
        stream.go_on(work.before | 1 << work.number)

    def _order(self, work: Work, use: Use) -> None:
        past = self.block(use).past
        for other, earlier in past:
            apart = other[0] + other[1] <= use[0] or use[0] + use[1] <= other[0]
            writes = use[2] or other[2]
            if writes and not apart and earlier is not work and not ordered(earlier, work):
                raise Race(f"{work.name!r} may run before {earlier.name!r}, or beside it")
        past.append((use, work))

    def refuse_legacy(self, stream: Stream) -> None:
        """Refuse the default stream while one is captured that it is kept in order with."""
        for capture in self.captures:
            if stream.ptr == 0 and not capture.origin.non_blocking:
                capture.broken = True
                raise CUDARuntimeError(IMPLICIT)

    def wait(self, works: int) -> None:
        """Have the host wait for some work, which happens now, and hear what went wrong in any."""
        self._do(works)
        if self.problem is not None:
            raise self.problem

    def _do(self, works: int) -> None:
        for work in self.works:
            if works >> work.number & 1 and not work.done:
                work.done = True
                try:
                    work.run()
                except Exception as error:
                    self.problem = self.problem or error
        self.known |= works

    def finish(self) -> None:
        """Wait for everything."""
        self.wait((1 << len(self.works)) - 1)

    def named(self, name: str) -> list[Work]:
        """Return the work of a name."""
        return [work for work in self.works if work.name == name]


def ordered(earlier: Work, later: Work) -> bool:
    """Return whether something puts one piece of work before another."""
    return bool(later.before >> earlier.number & 1)


device = Device(0)


def start(capacity: int) -> Device:
    """Begin anew, with a GPU of so many bytes."""
    global device
    device = Device(capacity)
    Stream.null = Stream(null=True)
    device.local.streams = [Stream.null]
    return device


class Event:
    """A place in a stream, as it was when the event was recorded last."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.works = 0
        self.capture: Capture | None = None
        self.stream: Stream | None = None
        self._device = device

    def record(self, stream: Stream | None = None) -> None:
        """Take the end of a stream."""
        stream = get_current_stream() if stream is None else stream
        self._device.refuse_legacy(stream)
        self.works, self.stream, self.capture = stream.before(), stream, stream.capture

    def _refuse_captured(self) -> None:
        if self.capture is not None:
            self.capture.broken = True
            raise CUDARuntimeError(CAPTURED_EVENT)

    def synchronize(self) -> None:
        """Wait for it; one that was never recorded is reached."""
        self._refuse_captured()
        self._device.wait(self.works)

    @property
    def done(self) -> bool:
        """Whether it was reached."""
        self._refuse_captured()
        return not self.works & ~self._device.known


class Stream:
    """Work in order; the default stream and those that are not non-blocking wait for each other."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self._device, self.device_id = device, 0
        self.ptr = 0 if null else 1 + id(self)
        self.non_blocking, self.after = non_blocking, 0
        self.capture: Capture | None = None
        device.streams.add(self)

    def before(self) -> int:
        """Return what the next work comes after."""
        if self.ptr == 0:
            return self.after | self._device.blocking
        return self.after if self.non_blocking else self.after | Stream.null.after

    def go_on(self, works: int) -> None:
        """Have what is asked later come after some work."""
        self.after = works
        if not self.non_blocking:
            self._device.blocking |= works

    def __enter__(self) -> Stream:
        self._device.local.streams.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        self._device.local.streams.pop()

    def record(self, event: Event | None = None) -> Event:
        """Record an event."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Come after an event from now on."""
        if self.capture is not None:
            self.capture.follow(self, event)
        elif event.capture is not None:
            if self.ptr == 0:
                event.capture.broken = True
                raise CUDARuntimeError(IMPLICIT)
            self.capture = event.capture
            self.capture.forks.add(self)
        else:
            self.go_on(self.before() | event.works)

    def synchronize(self) -> None:
        """Wait for all of it."""
        if self.capture is not None:
            self.capture.broken = True
            raise CUDARuntimeError(UNSUPPORTED)
        self._device.refuse_legacy(self)
        self._device.wait(self.before())

    def begin_capture(self, mode: int | None = None) -> None:
        """Keep what is asked from now on; CuPy's mode, relaxed, permits to allocate."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.capture is not None:
            raise CUDARuntimeError(ILLEGAL_STATE)
        self.capture = Capture(self)
        self._device.captures.append(self.capture)

    def end_capture(self) -> Graph:
        """Return what was kept; it has ended even where this raises."""
        capture = self.capture
        if capture is None or capture.origin is not self:
            raise CUDARuntimeError(ILLEGAL_STATE)
        self._device.captures.remove(capture)
        unjoined = bool(capture.forks)
        for stream in self._device.streams:
            if stream.capture is capture:
                stream.capture = None
        if capture.broken:
            raise CUDARuntimeError(INVALIDATED)
        if unjoined:
            raise CUDARuntimeError(UNJOINED)
        return Graph(capture.works)

    def is_capturing(self) -> bool:
        """Return whether what is asked is kept; it cannot be said of what is broken."""
        blocking = [each for each in self._device.captures if not each.origin.non_blocking]
        if self.ptr == 0 and blocking:
            raise CUDARuntimeError(IMPLICIT)
        if self.capture is not None and self.capture.broken:
            raise RuntimeError(BROKEN)
        return self.capture is not None


class Capture:
    """What streams are asked while one of them is captured; ``forks`` have not been joined."""

    def __init__(self, origin: Stream) -> None:
        self.origin, self.broken = origin, False
        self.works: list[Work] = []
        self.forks: set[Stream] = set()

    def add(self, stream: Stream, work: Work) -> None:
        """Keep some work."""
        if self.broken:
            raise CUDARuntimeError(INVALIDATED)
        if stream is not self.origin:
            self.forks.add(stream)
        self.works.append(work)

    def follow(self, stream: Stream, event: Event) -> None:
        """Have a captured stream come after an event, which must be of the same capture."""
        if event.capture is not self:
            self.broken = True
            raise CUDARuntimeError(ISOLATION if event.capture is None else MERGE)
        if stream is self.origin and event.stream is not None:
            self.forks.discard(event.stream)


class Graph:
    """Captured work, which a launch does in order, after the launch before it."""

    def __init__(self, works: list[Work]) -> None:
        self._works, self._launched, self._device = works, 0, device

    def launch(self, stream: Stream | None = None) -> None:
        """Do all of it as one piece of work."""
        stream = get_current_stream() if stream is None else stream

        def run() -> None:
            for work in self._works:
                work.run()

        stream.after |= self._launched
        uses = [use for work in self._works for use in work.uses]
        self._device.ask(stream, Work("graph", run, uses))
        self._launched = stream.after


def get_current_stream() -> Stream:
    """Return the stream that this thread asks."""
    streams: list[Stream] = device.local.streams
    return streams[-1]
