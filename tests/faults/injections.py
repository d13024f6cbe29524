"""What is done to a child before its command begins; each function is called by its name."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def slow_sync(seconds: float) -> None:
    """Have the disk take its time, so that a process is found saving."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        fsync(descriptor)

    os.fsync = slow


def slow_sync_and_heard(heard: str) -> None:
    """Have the disk take its time, and more of it once a run has heard of a signal, as a file says.

    Who then still saves, and syncs ten times, is told from who leaves at once.
    """
    slow_sync(0.1)
    from vitkit.train.callbacks import StopOnSignal

    handle = StopOnSignal._handle

    def and_say(self: StopOnSignal, number: int, frame: FrameType | None) -> None:
        handle(self, number, frame)
        if not Path(heard).exists():
            slow_sync(1.0)
            Path(heard).touch()

    StopOnSignal._handle = and_say  # type: ignore[method-assign]


def slow_validation(seconds: float) -> None:
    """Have each batch of a validation take its time."""
    from vitkit.train.callbacks import Validation

    count = Validation._count

    def slow(self: Validation, images: int) -> None:
        time.sleep(seconds)
        count(self, images)

    Validation._count = slow  # type: ignore[method-assign]


def signal_in_function(number: int, at: int, file: str) -> None:
    """Send a signal as the ``at``-th function is called that was not called before.

    Its name is left in a file; that of the last one where so many are not called at all.
    """
    called: dict[CodeType, None] = {}

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code not in called:
            called[frame.f_code] = None
            Path(file).write_text(f"{len(called)} {frame.f_code.co_qualname}\n", encoding="utf-8")
            if len(called) == at:
                sys.setprofile(None)
                os.kill(os.getpid(), number)

    sys.setprofile(watch)


def slow_download(seconds: float) -> None:
    """Have a download come in small pieces, from nowhere."""
    import pooch

    class Downloader:
        def __init__(self, **options: Any) -> None:
            pass

        def __call__(self, url: str, output: Any, given: object) -> None:
            for _ in range(1000):
                output.write(b"x" * 1000)
                time.sleep(seconds)

    pooch.HTTPDownloader = Downloader


def full(name: str, at: int, time_: int) -> None:
    """Have no room in a file beyond its first bytes, from the time on that it is written.

    It is the limit of the system on the size of files, which is there for this file only.
    """
    import safetensors.numpy

    import vitkit.checkpoint.files as files

    written = 0

    def limited(call: Callable[..., Any], path_of: Callable[..., Path]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal written
            path = path_of(*args)
            ours = re.sub(r"^\.tmp-|-\d+$", "", path.name) == name
            written += ours
            if not ours or written < time_:
                return call(*args, **kwargs)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            grown = path.stat().st_size if call is append else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (grown + at, before[1]))
            try:
                return call(*args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        return wrapper

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    append = files.append_line
    files.append_line = limited(append, lambda path, line: path)
    Path.write_text = limited(Path.write_text, lambda path, text: path)  # type: ignore[method-assign]
    safetensors.numpy.save_file = limited(
        safetensors.numpy.save_file, lambda arrays, path: Path(path)
    )


def stop_after(step: int) -> None:
    """Have a SIGTERM come in a step."""
    from vitkit.train import TrainState

    begin = TrainState.begin_update

    def begun(self: TrainState) -> None:
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        begin(self)

    TrainState.begin_update = begun  # type: ignore[method-assign]


def refuse(call: str, number: int, pattern: str) -> None:
    """Have the system refuse a call of ``os`` with an error, for paths with a pattern."""
    asked = getattr(os, call)

    def refusing(target: Any, *args: Any, **kwargs: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if re.search(pattern, path):
            raise OSError(number, os.strerror(number), path)
        return asked(target, *args, **kwargs)

    setattr(os, call, refusing)


def lose_the_folder(move: bool) -> None:
    """Have somebody remove the run folder, or move it away, when the second checkpoint is there."""
    from vitkit.train.callbacks import Checkpointing

    write = Checkpointing._write

    def writing(self: Checkpointing, *args: Any) -> None:
        write(self, *args)
        if len(list((self.folder / "checkpoints").iterdir())) == 2:
            if move:
                self.folder.rename(self.folder.parents[1] / "moved")
            else:
                shutil.rmtree(self.folder)

    Checkpointing._write = writing  # type: ignore[method-assign]


def obey_modes() -> None:
    """Have the modes of files count, which do not for root, by giving its capabilities up."""
    if os.getuid():
        return
    header = struct.pack("Ii", 0x20080522, 0)  # version 3 of the call, of this process
    none = bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
