"""What is done to a child before its command begins; each function is called by its name."""

from __future__ import annotations

import os
import time
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
