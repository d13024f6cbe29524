"""The kernels for the tile unit (AMX) on processors without one: its instructions by software.

``install`` belongs in a process of its own, before any kernel is imported: what is compiled after
it calls functions of ``tiles.c`` where an instruction of the unit would be. Nothing else differs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import inspect
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OPTIONS = "-std=gnu11 -O3 -mavx512f -mfma -fno-math-errno -shared -fPIC -Wall -Wextra".split()
PLANTED = {
    "threads without tiles": ("llvm.x86.ldtilecfg", "tiles_forgotten"),
    "fewer rows in a tile": ("[16] * 8 + [0] * 8", "[8] * 8 + [0] * 8"),
    "another step between pairs": (
        "builder.mul(b_row, ir.Constant(INT, 16))",
        "builder.mul(b_row, ir.Constant(INT, 15))",
    ),
    "no last columns": ("_LEFT(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)", "pass"),
    "no last rows": ("_UPPER(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)", "pass"),
    "no corner": ("_CORNER(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)", "pass"),
    "rows beyond the last": ("i = min(r, rows - SIDE)", "i = r"),
    "sums that are not resumed": ("(INT, 0)), resume, fresh)", "(INT, 0)), fresh, fresh)"),
}
"""Texts of ``_amx.py``, and what stands in their place where the fault is planted."""


def why_not() -> str:
    """Return why the kernels for tiles cannot be run here, or nothing."""
    from vitkit.kernels.cpu import _processor

    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "only on Linux on x86-64 are kernels compiled for tiles"
    if missing := _processor.VECTORS - _processor.features():
        return f"what is around the tiles needs {', '.join(sorted(missing))}"
    return "" if shutil.which(_compiler()) else f"there is no C compiler {_compiler()!r}"


def _compiler() -> str:
    return os.environ.get("CC") or "cc"


def build(folder: Path) -> Path:
    """Compile the instructions; returns the library."""
    built = folder / "tiles.so"
    command = [_compiler(), *OPTIONS, "-o", built, Path(__file__).with_name("tiles.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


class Unit:
    """The tile unit by software.

    Parameters
    ----------
    library : str
        What ``build`` returned.

    Attributes
    ----------
    users, used : set of str
        The kernels that configure tiles, and those that have multiplied any.
    """

    def __init__(self, library: str) -> None:
        self.lib = ctypes.CDLL(library)
        self.lib.tiles_allow.argtypes = [ctypes.c_size_t] * 2
        self.users: set[str] = set()
        self.used: set[str] = set()

    def begin(self, *arrays: np.ndarray) -> None:
        """Forget what threads have configured; from now on tiles may lie in these arrays."""
        self.lib.tiles_begin()
        for array in arrays:
            self.lib.tiles_allow(array.ctypes.data, array.nbytes)

    def counts(self) -> list[int]:
        """Return how many blocks of each kind were stored, and how many threads multiplied.

        Kinds are sums of 1 (two rows of tiles), 2 (two columns) and 4 (added to what was there).
        """
        found = (ctypes.c_long * 9)()
        self.lib.tiles_counts(found)
        return list(found)

    def watched(self, kernel: Any, python: Callable[..., None]) -> Callable[..., None]:
        """Return a kernel whose tiles may lie in the arrays it is given, and nowhere else.

        Its scratch memory has NaN in it, and of that each thread has one row.
        """
        names = list(inspect.signature(python).parameters)
        title = f"{python.__module__.rpartition('.')[2]}.{python.__name__}"
        if {"configure_tiles", "prepare"} & set(python.__code__.co_names):
            self.users.add(title)

        @functools.wraps(python)
        def call(*arguments: Any) -> None:
            arrays = []
            for name, given in zip(names, arguments, strict=True):
                if name == "scratch":
                    given.fill(np.nan)
                    arrays += list(given)
                elif isinstance(given, np.ndarray):
                    arrays.append(given)
            self.begin(*arrays)
            before = self.counts()
            kernel(*arguments)
            if self.counts() != before:
                self.used.add(title)

        return call


def install(library: str, planted: str = "") -> Unit:
    """Have all kernels that are imported from now on use the unit by software."""
    import llvmlite.binding

    from vitkit.kernels.cpu import _processor

    _processor.why_no_tiles = lambda: ""
    from vitkit.kernels.cpu import _compile

    assert "vitkit.kernels.cpu._amx" not in sys.modules, "kernels are there already"
    unit, parallel, function = Unit(library), _compile.parallel, _compile.function
    llvmlite.binding.load_library_permanently(library)

    def by_software(module: Any, name: str, result: Any, *arguments: Any) -> Any:
        tail = name.removeprefix("llvm.x86.")
        ours = f"tiles_{tail}" if hasattr(unit.lib, f"tiles_{tail}") else name
        return function(module, ours, result, *arguments)

    _compile.function = by_software
    _compile.parallel = lambda python: unit.watched(parallel(python), python)
    if planted:
        _import_changed("vitkit.kernels.cpu._amx", *PLANTED[planted])
    return unit


def _import_changed(name: str, old: str, new: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text("utf-8")
    assert source.count(old) == 1, f"{name} has {old!r} {source.count(old)} times"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    exec(compile(source.replace(old, new), spec.origin, "exec"), module.__dict__)  # noqa: S102
