"""One process at a time in a run folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

import vitkit.checkpoint.files as files
from vitkit.errors import CheckpointError

HOLDER = "lock.json"
"""Who holds the lock; the lock itself is the system's, which frees it when a process dies."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run folder, unless it is there, and keep other processes out inside the block.

    Raises
    ------
    CheckpointError
        If another process is in it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"Another process{_holder(folder)} is at work in {folder}: wait for it, or end it."
        ) from None
    except OSError as error:
        raise CheckpointError(f"Cannot write the run folder {folder}: {error}") from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        about = {"pid": os.getpid(), "host": platform.node(), "since": since}
        files.write_file(folder / HOLDER, json.dumps(about) + "\n")
        yield
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    """Return who holds the lock, for a message; nothing where that cannot be read."""
    try:
        about = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f" (pid {about['pid']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
