"""Imports flow one way, and optional packages stay optional.

``cli -> config -> plugins -> train -> {models, checkpoint, optim, data} -> nn -> kernels -> ops
-> backend -> {validate, registry} -> {errors, signals}``: a module may import what stands to its
right, never what stands to its left; those in braces never import each other. ``testing`` may
import anything but ``cli``, and is imported late by what runs it: ``cli`` and ``pytest_plugin``.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ORDER = [
    ["cli"],
    ["config"],
    ["plugins"],
    ["train"],
    ["models", "checkpoint", "optim", "data"],
    ["nn"],
    ["kernels"],
    ["ops"],
    ["backend"],
    ["validate", "registry"],
    ["errors", "signals", "_version"],
]
OUTSIDE = ("", "__main__", "pytest_plugin")
"""What stands outside the order: the root, and what others start."""
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
KNOWS_CUPY = ("vitkit.backend", "vitkit.kernels.cuda")
KNOWS_TORCH = "vitkit.testing.parts.array_modules"  # for twins of plugins, where it is installed


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, where, and whether inside a function or for typing only."""

    importer: str
    imported: str
    line: int
    lazy: bool
    typing: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def read_package(folder: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of each module of the package in ``folder``, by dotted name."""
    trees = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def statements(node: ast.AST, lazy: bool, typing: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Yield each node with whether it is in a function, and under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        yield child, lazy, typing
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield from statements(child, lazy or inside, typing or checking)


def called(node: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return getattr(node.func, "attr", "") or getattr(node.func, "id", "")


def imports_of(trees: dict[str, ast.Module]) -> list[Import]:
    """Return every import in the package; vitkit's own are resolved to modules."""
    found = []
    for name, tree in trees.items():
        for node, lazy, typing in statements(tree, False, False):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                assert node.level == 0, f"{name}:{node.lineno} is a relative import"
                targets = [
                    full if (full := f"{base}.{alias.name}") in trees else base
                    for alias in node.names
                ]
            elif isinstance(node, ast.Call) and called(node) == "import_module":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    targets = [str(first.value)]
            found += [
                Import(name, target, getattr(node, "lineno", 0), lazy, typing) for target in targets
            ]
    return found


def part(module: str) -> str:
    """Return the part of vitkit a module belongs to: ``"nn"`` for ``"vitkit.nn.module"``."""
    return module.split(".")[1] if "." in module else ""


def is_own(module: str) -> bool:
    return module.split(".")[0] == "vitkit"


def wrong_direction(imports: list[Import]) -> list[str]:
    """Return the imports to the left, between siblings, of ``testing``, or of the root."""
    problems = []
    for one in imports:
        left, right = part(one.importer), part(one.imported)
        if not is_own(one.imported) or left == right != "" or left in OUTSIDE:
            continue
        if (
            right == "testing" and left == "cli" and (one.lazy or one.typing)
        ):  # vitkit plugins check
            continue
        if right in ("", "testing"):
            problems.append(f"{one}: nothing imports the package root or testing")
        elif left == "testing":
            problems += [f"{one}: testing imports anything but cli"] if right == "cli" else []
        elif left not in LEVEL or right not in LEVEL:
            problems.append(f"{one}: it has no place in the order; give it one in this test")
        elif LEVEL[right] <= LEVEL[left]:
            problems.append(f"{one}: {right} is not to the right of {left}")
    return problems


def cycle(imports: list[Import]) -> list[str]:
    """Return the modules of an import cycle, lazy imports counted and typing ones not."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if is_own(one.imported) and not one.typing:
            graph.setdefault(one.importer, set()).add(one.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def lazy_imports(imports: list[Import]) -> list[str]:
    """Return the imports of vitkit modules in functions outside ``cli``."""
    return [
        str(i)
        for i in imports
        if i.lazy and is_own(i.imported) and part(i.importer) not in ("cli", *OUTSIDE)
    ]


def misplaced_packages(imports: list[Import]) -> list[str]:
    """Return imports of cupy outside its two places, and of torch but for twins."""
    return [
        str(i)
        for i in imports
        if ((package := i.imported.split(".")[0]) == "torch" and i.importer != KNOWS_TORCH)
        or (package in ("cupy", "cupyx") and not i.importer.startswith(KNOWS_CUPY))
    ]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    spec = importlib.util.find_spec("vitkit")
    assert spec is not None
    assert spec.origin is not None
    return read_package(Path(spec.origin).parent)


def test_every_part_is_in_the_order(trees: dict[str, ast.Module]) -> None:
    parts = {part(name) for name in trees} - {*OUTSIDE, "testing"}
    assert parts == set(LEVEL)


def test_imports_flow_one_way(trees: dict[str, ast.Module]) -> None:
    assert wrong_direction(imports_of(trees)) == []


def test_there_is_no_import_cycle(trees: dict[str, ast.Module]) -> None:
    assert cycle(imports_of(trees)) == []


def test_only_cli_imports_late(trees: dict[str, ast.Module]) -> None:
    assert lazy_imports(imports_of(trees)) == []


def test_cupy_has_two_places_and_torch_none(trees: dict[str, ast.Module]) -> None:
    assert misplaced_packages(imports_of(trees)) == []


def test_importing_vitkit_imports_nothing_optional_or_slow() -> None:
    heavy = """cupy torch matplotlib numba llvmlite pydantic scipy PIL typer rich pooch
    sklearn""".split()
    program = f"import sys, vitkit; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


VIOLATIONS = {
    "to the left": ("nn/a.py", "from vitkit.models import vit", wrong_direction),
    "to the left, in a function": (
        "nn/a.py",
        "def f():\n    import vitkit.models.vit",
        wrong_direction,
    ),
    "between siblings": ("models/a.py", "from vitkit.data.loader import Loader", wrong_direction),
    "errors import": ("errors.py", "from vitkit.backend import philox", wrong_direction),
    "of the root": ("nn/a.py", "import vitkit", wrong_direction),
    "of a name of the root": ("nn/a.py", "from vitkit import ViT", wrong_direction),
    "of cli by testing": ("testing/a.py", "import vitkit.cli.main", wrong_direction),
    "of testing": ("nn/a.py", "from vitkit.testing import assert_close", wrong_direction),
    "of a part without a place": ("nn/a.py", "import vitkit.utils", wrong_direction),
    "in a cycle": ("nn/a.py", "from vitkit.nn import b", cycle),
    "in a cycle, in a function": ("nn/a.py", "def f():\n    import vitkit.nn.b", cycle),
    "late": ("nn/a.py", "def f():\n    from vitkit.ops import gelu", lazy_imports),
    "late by name": (
        "nn/a.py",
        "def f():\n    importlib.import_module('vitkit.ops')",
        lazy_imports,
    ),
    "of cupy": ("nn/a.py", "def f():\n    import cupy", misplaced_packages),
    "of torch": ("backend/a.py", "import torch.nn", misplaced_packages),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_planted_violation_is_found(case: str, tmp_path: Path) -> None:
    file, source, check = VIOLATIONS[case]
    clean = {
        "__init__.py": "from vitkit.nn import a",
        "nn/a.py": "import numpy\nfrom vitkit.ops import gelu",
        "nn/b.py": "from vitkit.nn.a import g",
        "ops/gelu.py": "import numpy",
        "backend/x.py": "def f():\n    import cupy",
        "models/vit.py": "import vitkit.nn.a",
        "data/loader.py": "from vitkit.backend import philox",
        "cli/main.py": "def f():\n    from vitkit.data import loader",
    }
    for name, text in clean.items():
        path = tmp_path / "vitkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def problems() -> list[str]:
        return check(imports_of(read_package(tmp_path / "vitkit")))

    assert problems() == []
    planted = tmp_path / "vitkit" / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(source)
    assert problems()
