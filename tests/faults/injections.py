"""What is done to a child before its command begins; each function is called by its name."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def slow_sync(seconds: float) -> None:
    """Have the disk take its time, so that a process is found saving."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        fsync(descriptor)

    os.fsync = slow


def slow_validation(seconds: float) -> None:
    """Have each batch of a validation take its time."""
    from vitkit.train.callbacks import Validation

    count = Validation._count

    def slow(self: Validation, images: int) -> None:
        time.sleep(seconds)
        count(self, images)

    Validation._count = slow  # type: ignore[method-assign]


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
