"""The rows of ``metrics.jsonl``, read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a ``metrics.jsonl``, and how many of its lines are none.

    A process that was killed may have left half a line at the end, and a machine that failed,
    anything; the former does not count.

    Parameters
    ----------
    path : Path
        The file; one that is not there has no rows.
    """
    if not path.exists():
        return [], 0
    *whole, _ = path.read_bytes().split(b"\n")
    rows = [row for line in whole if (row := _row(line)) is not None]
    return rows, len(whole) - len(rows)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return what a line says, if it is a row of steps or of an epoch."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and row.get("event") in ("step", "epoch")
    placed = known and all(isinstance(row.get(key), int) for key in ("step", "epoch"))
    return row if placed else None
