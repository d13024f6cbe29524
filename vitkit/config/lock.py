"""One process at a time in a run folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import vitkit.checkpoint.files as files
from vitkit.checkpoint import runs
from vitkit.errors import CheckpointError

HOLDER = "lock.json"
"""Who holds the lock; the lock itself is the system's, which frees it when a process dies."""
WRITTEN = (runs.FOLDER, "plots", "metrics.jsonl", "log.txt")
"""What a run writes into, or adds to."""
PATIENCE = 1.0  # seconds in which whoever has just taken the lock says who that is


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run folder, unless it is there, and keep other processes out inside the block.

    What processes that were killed have left half written is removed.

    Raises
    ------
    CheckpointError
        If another process is in it, or it cannot be written, or what is written would go elsewhere.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        _acquire(lock, folder)
    except OSError as error:
        raise CheckpointError(f"Cannot write the run folder {folder}: {error}") from error
    try:
        _refuse_links(folder)
        for place in (folder, folder / runs.FOLDER):
            runs.sweep(place)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        about = {"pid": os.getpid(), "host": platform.node(), "since": since}
        files.write_file(folder / HOLDER, json.dumps(about) + "\n")
        yield
    finally:
        with suppress(OSError):  # whoever is next replaces it
            (folder / HOLDER).unlink()
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    """Take the lock, or say who has it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            about = _holder(folder)
            if about is None and time.monotonic() < deadline:
                time.sleep(0.02)  # it is just being taken, or given back
                continue
        who = "" if about is None else f" (pid {about['pid']} on {about['host']}"
        since = "" if about is None else f", since {about['since']})"
        raise CheckpointError(
            f"Another process{who}{since} is at work in {folder}: wait for it, or end it."
        )


def _holder(folder: Path) -> dict[str, Any] | None:
    """Return who says to hold the lock; None where nobody does, or who does is dead."""
    try:
        about = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        found = {"pid": int(about["pid"]), "host": about["host"], "since": about["since"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _may_live(found) else None


def _may_live(about: dict[str, Any]) -> bool:
    """Whether a process may be there still, as far as this machine can tell."""
    if about["host"] != platform.node() or os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _refuse_links(folder: Path) -> None:
    """Raise where something would be written elsewhere than in the run folder."""
    for name in WRITTEN:
        if (folder / name).is_symlink():
            raise CheckpointError(
                f"{folder / name} is a symbolic link, and a run writes nowhere but in its folder: "
                "replace it by what it points to, or make the whole run folder the link."
            )
