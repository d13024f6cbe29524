"""What is asked of CuPy is there, under the names that it is asked by: no GPU is needed to see it.

Skipped where CuPy is not installed; the environment ``gpu`` of tox installs it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vitkit
from vitkit.kernels.cuda import _kernel
from vitkit.testing.strict_device import CUPY, DeviceArray

ROOT = Path(vitkit.__file__).parent
MODULES = {"xp": "", "cupy": "", "_cupy": "", "cuda": "cuda", "_cuda": "cuda"}
"""What the code calls CuPy's modules, and which they are."""
ASKED = {
    "RawModule": "code options name_expressions",
    "RawKernel.__call__": "grid block args",
    "RawKernel.max_dynamic_shared_size_bytes": "",
    "ndarray.get": "",
    "ndarray.set": "arr stream",
    "cuda.Device.compute_capability": "",
    "cuda.Event": "disable_timing",
    "cuda.Event.record": "",
    "cuda.Event.synchronize": "",
    "cuda.Graph.launch": "stream",
    "cuda.MemoryPool": "allocator",
    "cuda.MemoryPool.free_all_blocks": "",
    "cuda.MemoryPool.malloc": "size",
    "cuda.MemoryPool.total_bytes": "",
    "cuda.Memory": "size",
    "cuda.MemoryPointer": "mem offset",
    "cuda.Stream": "non_blocking",
    "cuda.Stream.begin_capture": "",
    "cuda.Stream.end_capture": "",
    "cuda.Stream.is_capturing": "",
    "cuda.Stream.record": "event",
    "cuda.Stream.synchronize": "",
    "cuda.Stream.wait_event": "event",
    "cuda.runtime.CUDARuntimeError": "",
    "cuda.runtime.driverGetVersion": "",
    "cuda.runtime.getDevice": "",
    "cuda.runtime.getDeviceCount": "",
    "cuda.runtime.getDeviceProperties": "device",
    "cuda.runtime.memGetInfo": "",
    "cuda.runtime.runtimeGetVersion": "",
    "cuda.get_elapsed_time": "start_event end_event",
    "cuda.PinnedMemoryPool.free_all_blocks": "",
}
"""What is asked of CuPy's objects, with the words that say how."""


@pytest.fixture(scope="module")
def cupy() -> ModuleType:
    module: ModuleType = pytest.importorskip("cupy", reason="CuPy is not installed")
    return module


def names_of(node: ast.expr) -> list[str]:
    """Return ``a.b.c`` as a list; one that begins with something else begins with nothing."""
    if isinstance(node, ast.Attribute):
        return [*names_of(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def used(source: str) -> set[str]:
    """Return the names of CuPy that a source uses: ``"exp"``, ``"cuda.Stream"``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        path = names_of(node)
        places = [place for place, name in enumerate(path[:-1]) if name in MODULES]
        if places and path[0] != "vitkit":
            last = places[-1]
            module = [MODULES[path[last]]] if MODULES[path[last]] else []
            found.add(".".join([*module, *path[last + 1 :]]))
    return {name for name in found if not name.split(".")[-1].startswith("__")}


def sources() -> Iterator[tuple[str, str]]:
    """Yield every file that computes on a GPU, and its text; not those that imitate one."""
    for file in sorted(ROOT.rglob("*.py")):
        folder = file.relative_to(ROOT).parts[0]
        if folder not in ("testing", "cli"):
            yield str(file.relative_to(ROOT)), file.read_text("utf-8")


def missing(names: set[str], cupy: ModuleType) -> list[str]:
    def there(name: str) -> bool:
        try:
            operator.attrgetter(name)(cupy)
        except AttributeError:
            return False
        return True

    return sorted(name for name in names if not there(name))


def test_names_are_found_in_a_source() -> None:
    source = """
from vitkit.kernels.cuda import _arrays
y = xp.exp(self.xp.log(x)); self._cuda.Stream(); cupy.cuda.runtime.getDevice(); x.sum()
print(cupy.__name__, sys.modules["cupy"].RawModule, vitkit.kernels.cuda._kernel.source)
"""
    runtime = {"cuda", "cuda.runtime", "cuda.runtime.getDevice"}
    assert used(source) == {"exp", "log", "cuda.Stream", *runtime}
    everything = set().union(*(used(text) for _, text in sources()))
    assert {
        "empty",
        "where",
        "ascontiguousarray",
        "cuda.Event",
        "cuda.using_allocator",
    } < everything


def test_every_name_is_there(cupy: ModuleType) -> None:
    assert missing({"exp", "cuda.NoStream", "no_such"}, cupy) == ["cuda.NoStream", "no_such"]
    wrong = {file: found for file, text in sources() if (found := missing(used(text), cupy))}
    assert wrong == {}


def words(thing: Any) -> set[str]:
    """Return the words of what documents a thing: CuPy's compiled functions say no more."""
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return set(re.findall(r"\w+", thing.__doc__ or ""))
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return set() if takes_any else set(parameters)


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_of_its_objects(name: str, cupy: ModuleType) -> None:
    thing = operator.attrgetter(name)(cupy)
    assert set(ASKED[name].split()) <= words(thing)


def test_a_kernel_can_be_described(cupy: ModuleType) -> None:
    """It is compiled when its function is asked for, which needs a GPU."""
    compiled = functools.partial(cupy.RawModule, code="", options=_kernel.OPTIONS)
    compiled(name_expressions=("f<float, 4>",))
    with pytest.raises(TypeError):
        compiled(names=())


def test_errors_are_of_the_kinds_that_are_caught(cupy: ModuleType) -> None:
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)


def test_the_error_function_is_where_it_is_looked_for(cupy: ModuleType) -> None:
    special = pytest.importorskip("cupyx.scipy.special", reason="CuPy is not installed")
    assert isinstance(special.erf, cupy.ufunc)


def test_the_stand_in_has_no_name_of_its_own(cupy: ModuleType) -> None:
    assert missing(set(CUPY), cupy) == []
    own = {name for name in vars(DeviceArray) if not name.startswith("_")}
    assert missing({f"ndarray.{name}" for name in own}, cupy) == []


def test_the_stand_in_has_no_keyword_of_its_own(cupy: ModuleType) -> None:
    wrong = {}
    for name, keywords in CUPY.items():
        function = getattr(cupy, name)
        if keywords is None or isinstance(function, cupy.ufunc):
            continue  # a ufunc says nothing of its keywords
        if (known := words(function)) and (more := set(keywords) - known):
            wrong[name] = sorted(more)
    assert wrong == {}
