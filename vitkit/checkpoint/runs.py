"""The checkpoints of a run folder: which there are, which of them to trust, which to keep."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import vitkit.checkpoint.files as files
from vitkit.errors import CheckpointError

Found = TypeVar("Found")
FOLDER = "checkpoints"
LEFT = (".tmp-", ".old-")
"""How the names begin of what processes that were killed have left."""
_NAME = re.compile(r"step-(\d{8,18})(-open|-partial)?(?:-(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, order=True)
class Entry:
    """A checkpoint by its name; the later of two is the greater.

    Attributes
    ----------
    whole : bool
        Whether it lacks nothing of what resuming needs.
    step : int
        Optimizer steps it was written after.
    ended : bool
        Whether the epoch whose last step this may be was ended, with validation and all.
    again : int
        How many were written after that step before.
    path : Path
        The directory.
    """

    whole: bool
    step: int
    ended: bool
    again: int
    path: Path


def entries(run: Path) -> list[Entry]:
    """Return the checkpoints of a run folder, the latest first; none of them is looked into."""
    try:
        found = [path for path in (run / FOLDER).iterdir() if path.is_dir()]
    except OSError:
        return []
    named = [(path, match) for path in found if (match := _NAME.fullmatch(path.name))]
    listed = [
        Entry(m[2] != "-partial", int(m[1]), not m[2], int(m[3] or 1), path) for path, m in named
    ]
    return sorted(listed, reverse=True)


def free_name(run: Path, step: int, *, ended: bool = True, partial: bool = False) -> str:
    """Return a name for a checkpoint after a step that no other has: nothing is written over."""
    name = f"step-{step:08d}" + ("-partial" if partial else "" if ended else "-open")
    place = (not partial, step, ended and not partial)
    taken = [e.again for e in entries(run) if (e.whole, e.step, e.ended) == place]
    return f"{name}-{max(taken) + 1}" if taken else name  # later than all of them


def latest(run: Path) -> Path:
    """Return the latest checkpoint of a run folder whose manifest and position can be trusted.

    Raises
    ------
    CheckpointError
        If there is none; every one that was looked at is named.
    """
    return _first(run, lambda path: (files.load_document(path, "trainer"), path))[0][1]


def load_latest(run: Path) -> tuple[files.Checkpoint, list[str]]:
    """Load the latest checkpoint of a run folder that is whole, bit for bit.

    Returns
    -------
    checkpoint : Checkpoint
        The checkpoint.
    refused : list of str
        Why each of the later ones could not be trusted.

    Raises
    ------
    NewerFormat, Unreadable
        If a later one was written by a later version of vitkit, or cannot be read at the moment.
    CheckpointError
        If there is none that can be trusted; every one that was looked at is named.
    """
    return _first(run, files.load)


def _first(run: Path, read: Callable[[Path], Found]) -> tuple[Found, list[str]]:
    """Return what is read of the latest checkpoint that can be read, and why others cannot."""
    refused: list[str] = []
    for entry in entries(run):
        try:
            return read(entry.path), refused
        except (files.NewerFormat, files.Unreadable):
            raise  # it may be whole, and would be removed as one that was given up
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(
            "\n".join([*refused, f"{run} has no checkpoint that can be trusted."])
        )
    if not run.exists():
        raise CheckpointError(f"There is no {run}. Name a run folder, such as runs/<name>.")
    if (run / "config.toml").is_file() and not (run / FOLDER).is_file():
        raise CheckpointError(
            f"The run {run} was ended before its first checkpoint: start it again with "
            f"'vitkit train --config {run / 'config.toml'}'."
        )
    raise CheckpointError(
        f"{run} holds no checkpoint: nothing is under its {FOLDER}/. Name a run folder that "
        "training has written."
    )


def to_keep(run: Path, count: int, step: int, named: Collection[str]) -> set[str]:
    """Return the names of the checkpoints of a run folder that must not be removed.

    Those are the latest ones up to a step, since later ones are of a run that was given up; those
    named; the best of each of these, to which a run that is taken up there returns; and where
    none of them is whole, the latest that lacks something.

    Parameters
    ----------
    run : Path
        The run folder.
    count : int
        How many of the latest.
    step : int
        The step of the run as it stands.
    named : collection of str
        Such as the best, and the one that the run was resumed from.
    """
    found = [entry for entry in entries(run) if entry.step <= step]
    whole = [entry.path.name for entry in found if entry.whole]
    kept = {*named, *whole[:count], *(() if whole else [e.path.name for e in found[:1]])}
    return kept | {best_of(run / FOLDER / name) for name in kept}


def best_of(path: Path) -> str:
    """Return the name of the best checkpoint when another was written; empty without one."""
    with suppress(CheckpointError, KeyError, TypeError):  # then it is of no use to a resumed run
        trainer = files.load_document(path, "trainer")
        return str(trainer["callbacks"]["checkpointing"]["best_name"])
    return ""


def overview(run: Path) -> list[dict[str, Any]]:
    """Return what is known of each checkpoint of a run without reading its arrays, latest first.

    Returns
    -------
    list of dict
        ``"name"``, ``"step"``, ``"epoch"`` or None, ``"bytes"``, and ``"remarks"``: best, last,
        partial, damaged.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    found = entries(run)
    if not found:
        raise CheckpointError(f"{run} holds no checkpoint. Name a run folder, as runs/<name>.")
    named = {which: pointed_at(run, which) for which in ("last", "best")}
    rows = []
    for entry in found:
        remarks = [which for which, name in named.items() if name == entry.path.name]
        remarks += [] if entry.whole else ["partial"]
        epoch = None
        try:
            epoch = files.load_document(entry.path, "trainer")["state"]["epoch"]
        except (CheckpointError, KeyError, TypeError):
            remarks.append("damaged")
        size = sum(file.stat().st_size for file in entry.path.iterdir() if file.is_file())
        rows.append(
            {
                "name": entry.path.name,
                "step": entry.step,
                "epoch": epoch,
                "bytes": size,
                "remarks": remarks,
            }
        )
    return rows


def pointed_at(run: Path, which: str) -> str:
    """Return the name in ``last.json`` or ``best.json``; empty without one that can be read."""
    with suppress(CheckpointError):
        return str(files.read_pointer(run / f"{which}.json")["checkpoint"])
    return ""


def inspect(path: Path) -> list[tuple[Path, str]]:
    """Verify a checkpoint, or all of a run folder.

    Returns
    -------
    list of tuple of Path and str
        Each with what is wrong with it; empty where nothing is.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    paths = [path] if (path / files.MANIFEST).exists() else [e.path for e in entries(path)]
    if not paths:
        raise CheckpointError(f"{path} holds no checkpoint. Name a run folder, as runs/<name>.")
    return [(each, _problem(each)) for each in paths]


def _problem(path: Path) -> str:
    try:
        files.verify(path)
    except CheckpointError as error:
        return str(error)
    return ""


def prunable(run: Path, count: int) -> list[Path]:
    """Return the checkpoints of a run folder that can go: nothing, where none would be whole.

    Parameters
    ----------
    run : Path
        The run folder.
    count : int
        How many of the latest that are whole are kept; so is the best, and the best of each.
    """
    found = entries(run)
    whole = [entry.path.name for entry in found if entry.whole and not _problem(entry.path)]
    if not whole:
        return []
    kept = {*whole[:count], *(pointed_at(run, which) for which in ("last", "best"))}
    kept |= {best_of(run / FOLDER / name) for name in kept if name}
    return [entry.path for entry in found if entry.path.name not in kept]


def remove(paths: Collection[Path]) -> None:
    """Remove checkpoints, each at once: a process that is killed leaves none that is damaged."""
    for path in paths:
        gone = path.with_name(f"{LEFT[1]}{path.name}")
        _erase(gone)
        with suppress(OSError):  # what cannot be removed stays, and is tried again next time
            path.rename(gone)
        _erase(gone)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half written, or half removed."""
    for path in folder.glob(".*"):
        if path.name.startswith(LEFT):
            _erase(path)


def _erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def tidy(run: Path, kept: Collection[str]) -> None:
    """Remove the checkpoints of a run folder that are not kept, and what killed processes left.

    Other things that lie there are left alone.
    """
    remove([entry.path for entry in entries(run) if entry.path.name not in kept])
    sweep(run / FOLDER)
