"""What of vitkit's is compiled in this process, where it is kept, and the line that says so.

Compiling takes a while the first time that a machine runs a kernel: without a word, a program
would seem to hang.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llvmlite.binding import get_host_cpu_name
from numba.core import config, event
from numba.extending import is_jitted

PACKAGE = __name__.rpartition(".")[0]
LINE = (
    "Compiling the CPU kernels for this processor, once: a minute or two in all. "
    "'vitkit kernels compile' does it ahead."
)


class _Listener(event.Listener):  # type: ignore[misc]
    """Counts what is compiled of vitkit's; what comes from the cache is not."""

    def __init__(self) -> None:
        self.count = 0
        self.announced = False

    def on_start(self, event: Any) -> None:
        """Say that compiling begins, the first time."""
        if not event.data["dispatcher"].py_func.__module__.startswith(PACKAGE):
            return
        self.count += 1
        if not self.announced:
            self.announced = True
            logging.getLogger("vitkit").warning(LINE)

    def on_end(self, event: Any) -> None:
        """Do nothing: the base class wants the method."""


_listener = _Listener()


def listen() -> None:
    """Be told, from now on, of what Numba compiles."""
    event.register("numba:compile", _listener)


def counted() -> int:
    """Return how many functions have been compiled since the kernels were loaded."""
    return _listener.count


def processor() -> str:
    """Return what LLVM calls the processor that kernels are compiled for."""
    return str(config.CPU_NAME or get_host_cpu_name())


@contextmanager
def unannounced() -> Iterator[None]:
    """Say nothing of what is compiled inside the block."""
    before, _listener.announced = _listener.announced, True
    try:
        yield
    finally:
        _listener.announced = before


def kept() -> tuple[Path | None, int, int]:
    """Return where compiled functions are kept, how many are there, and their bytes."""
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith(f"{PACKAGE}.") else ():
            path = value.stats.cache_path if is_jitted(value) else None
            if path is not None:
                files = [file.stat().st_size for file in Path(path).glob("*.nbc")]
                return Path(path), len(files), sum(files)
    return None, 0, 0
