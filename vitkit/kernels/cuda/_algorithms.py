"""Which of a library's algorithms is the fastest for a product: timed once, then remembered.

What was found is kept in the user's cache, a file for each GPU and version of the library, as a
digest of the algorithm: where the library does not propose it, all are timed again, so that no file
can bring in another. ``VITKIT_AUTOTUNE=off`` takes the likeliest without timing
any, and so does ``VITKIT_DETERMINISTIC=1``, since algorithms differ in the last bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
from filelock import FileLock

from vitkit.kernels.cuda._cublaslt import Algorithm
from vitkit.kernels.cuda._gpu import wants_same_bits

LOGGER = logging.getLogger("vitkit")
ROUNDS = 5  # of all candidates, of which the median counts: clocks rise and fall meanwhile
LARGEST = 4 << 20  # bytes of a file that is believed
SECONDS = 10  # that another process may take to write


def digest(algorithm: Algorithm) -> str:
    """Return what tells one algorithm from another."""
    return hashlib.sha256(bytes(algorithm.data)).hexdigest()[:16]


def fastest(candidates: Sequence[Algorithm], seconds: Callable[[Algorithm], float]) -> Algorithm:
    """Return the candidate that takes the least time.

    Parameters
    ----------
    candidates : sequence of Algorithm
        At least one.
    seconds : callable
        Runs one and returns how long that took; infinity if it cannot run.
    """
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(ROUNDS):
        for found, candidate in zip(times, candidates, strict=True):
            found.append(seconds(candidate))
    medians = [statistics.median(found) for found in times]
    return candidates[medians.index(min(medians))]


class Memory:
    """What was found for the products of one GPU, kept in a file.

    Parameters
    ----------
    name : str
        That of the GPU and the library's version.
    folder : Path, optional
        Where files lie; the user's cache if left out.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        folder = folder or Path(platformdirs.user_cache_dir("vitkit")) / "cublaslt"
        self.file = folder / (re.sub(r"[^A-Za-z0-9.-]+", "-", name) + ".json")
        self._known = self._read()

    def choose(
        self, key: str, candidates: Sequence[Algorithm], seconds: Callable[[Algorithm], float]
    ) -> Algorithm:
        """Return the fastest candidate for a product, from the file or by timing it.

        Parameters
        ----------
        key : str
            What names the product.
        candidates : sequence of Algorithm
            At least one, the likeliest first.
        seconds : callable
            As for :func:`fastest`.
        """
        if wants_same_bits() or os.environ.get("VITKIT_AUTOTUNE") == "off":
            return candidates[0]
        for candidate in candidates:
            if digest(candidate) == self._known.get(key):
                return candidate
        best = fastest(candidates, seconds)
        self._keep(key, digest(best))
        return best

    def _read(self) -> dict[str, str]:
        try:
            if not self.file.is_file():
                return {}
            if self.file.stat().st_size > LARGEST:
                raise ValueError(f"it is larger than {LARGEST} bytes")
            found = json.loads(self.file.read_text("utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is no table")
        except (OSError, ValueError, RecursionError) as error:
            LOGGER.warning("%s is not used and made anew: %s.", self.file, error)
            return {}
        return {key: value for key, value in found.items() if isinstance(value, str)}

    def _keep(self, key: str, value: str) -> None:
        """Add to the file what was found, beside what others found since."""
        self._known[key] = value
        part = self.file.with_suffix(f".{os.getpid()}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.file}.lock", timeout=SECONDS):
                self._known = {**self._read(), **self._known}
                try:
                    part.write_text(json.dumps(self._known, indent=0, sort_keys=True), "utf-8")
                    os.replace(part, self.file)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:  # a lock's timeout too: this process goes on with what it knows
            LOGGER.info("Which products are fastest is not kept in %s: %s.", self.file, error)
