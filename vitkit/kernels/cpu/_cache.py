"""Where Numba keeps what it compiled of a kernel, made safe for processes that compile at once.

Numba numbers these files, and its index names one before it is written. Two processes that compile
at once may take the same number; and who comes in between, or after a kill, finds under it what an
older version of the kernel left there. Either is machine code for something else, which crashes or
computes nonsense. Here a file is named after what it is for, and is in the index only once it is
there.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba.core.caching import IndexDataCacheFile

from vitkit.errors import first_line

LOGGER = logging.getLogger("vitkit")
_told: list[str] = []


class KernelFiles(IndexDataCacheFile):  # type: ignore[misc]
    """The index and the machine code of one kernel.

    Parameters
    ----------
    files : IndexDataCacheFile
        Those that Numba would use.
    stamp : str
        What the code depends on beside the kernel itself; with another one it is compiled anew.
    """

    def __init__(self, files: IndexDataCacheFile, stamp: str) -> None:
        base = files._index_name.removesuffix(".nbi")
        super().__init__(files._cache_path, base, stamp)
        self._base, self._ours = base, f"{base}.{_digest(stamp)}"

    def save(self, key: Any, data: Any) -> None:
        """Keep machine code; where that fails a line says so, once, and it is used all the same."""
        try:
            self._save(key, data)
        except OSError as error:
            if not _told:
                _told.append(self._cache_path)
                LOGGER.warning(
                    "Compiled CPU kernels cannot be kept in %s (%s): they will be compiled again.",
                    self._cache_path,
                    first_line(error),
                )

    def _save(self, key: Any, data: Any) -> None:
        name = f"{self._ours}.{_digest(repr(key))}.nbc"
        self._save_data(name, data)
        overloads = self._load_index()  # late: another process may have written it meanwhile
        if overloads.get(key) != name:
            self._save_index({**overloads, key: name})
        if not overloads:  # the first with this stamp
            self._remove_others()

    def _remove_others(self) -> None:
        """Remove the machine code of other stamps, which nobody would find again."""
        for path in Path(self._cache_path).glob(f"{self._base}.*.nbc"):
            if not path.name.startswith(self._ours):
                with suppress(OSError):  # another process was faster, or has it open
                    path.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
