"""F9: no file of vitkit, of its examples or of its benchmarks makes a dangerous call.

Shown by reading the syntax tree of each, and by ruff's rules, which ``tox -e lint`` runs. Both are
tried on a planted example of everything that they are to find.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dangerous import found_in, found_in_folder
from injecting import Injected

import vitkit

ROOT = Path(__file__).parents[2]
PACKAGE = Path(vitkit.__file__).parent  # the installed one, which may be elsewhere
FOLDERS = {"vitkit": (PACKAGE, 250), "examples": (ROOT / "examples", 15)}
FOLDERS["benchmarks"] = (ROOT / "benchmarks", 30)
COMPUTED = "importlib.import_module of a name that is computed"
ALLOWED = {
    # Names that vitkit makes up: of its own modules, and of one library for each.
    "vitkit/__init__.py": {COMPUTED},
    "vitkit/backend/modules.py": {COMPUTED},
    "vitkit/kernels/__init__.py": {COMPUTED},
    "vitkit/kernels/state.py": {COMPUTED},
    "benchmarks/contenders/once.py": {COMPUTED},
    "benchmarks/contenders/serve.py": {COMPUTED},
    # A plugin that its user names is Python, and is run: pytest --vitkit-plugin, vitkit --plugin.
    "vitkit/pytest_plugin.py": {COMPUTED},
    "vitkit/plugins/discovery.py": {
        "importlib.util.spec_from_file_location",
        "importlib.util.module_from_spec",
        "loader.exec_module",
    },
    # Sends an object of the caller's own to itself; no file is read.
    "vitkit/testing/parts/pickled.py": {"pickle"},
}
"""What is there for a reason, by file."""

PLANTED = {
    "import pickle": "",
    "import pickle as p": "",
    "from pickle import loads": "",
    "import _pickle": "",
    "import cPickle": "",
    "import cloudpickle": "",
    "import dill": "",
    "import joblib": "",
    "from joblib import load": "",
    "import marshal": "",
    "import shelve": "",
    "import yaml": "",
    "from torch import hub": "",
    "import torch.hub": "",
    "importlib.import_module('pickle')": "",
    "import_module('marshal')": "",
    "importlib.import_module(name)": "",
    "pickle.loads(data)": "S301",
    "marshal.loads(data)": "S302",
    "tempfile.mktemp()": "S306",
    "eval('1')": "S307",
    "run = eval": "",
    "builtins.eval('1')": "S307",
    "exec('1')": "S102",
    "getattr(builtins, 'exec')('1')": "",
    "compile('1', 'f', 'exec')": "",
    "compile(text, 'f', mode)": "",
    "__import__(name)": "",
    "urllib.request.urlopen(address)": "S310",
    "request.urlretrieve(address)": "S310",
    "yaml.load(text)": "S506",
    "archive.extractall()": "S202",
    "tarfile.open(name).extractall(place)": "S202",
    "shutil.unpack_archive(name)": "",
    "numpy.load(file)": "",
    "np.load(file, mmap_mode='r')": "",
    "np.load(file, allow_pickle=True)": "",
    "np.load(file, allow_pickle=trusted)": "",
    "np.load(file, **options)": "",
    "load(file)": "",
    "np.lib.format.read_array(file)": "",
    "torch.load(file)": "",
    "pandas.read_pickle(file)": "S301",
    "subprocess.run('ls', shell=True)": "S602",
    "subprocess.run('ls', shell=choice)": "",
    "run_it('ls', shell=True)": "S604",
    "subprocess.getoutput('ls')": "S605",
    "os.system('ls')": "S605",
    "system('ls')": "S605",
    "os.popen('ls')": "S605",
    "os.execvp('ls', [])": "S606",
    "os.spawnl(mode, 'ls')": "S606",
    "runpy.run_path(file)": "",
    "spec.loader.exec_module(module)": "",
    "requests.get(address, verify=False)": "S501",
}
"""A line that must be found, and ruff's rule for it where ruff has one."""
IMPORTS = """
import builtins, importlib, marshal, os, pandas, pickle, requests, runpy, shutil, subprocess
import tarfile, tempfile, torch, urllib.request, yaml, numpy as np
from importlib import import_module
from os import system
from urllib import request
"""
HARMLESS = """
import importlib, json, os, re, subprocess, numpy as np
from ast import literal_eval
from numpy import load as of_numpy
pattern = re.compile("x")
model.eval()
function = torch.compile(function)
np.load(file, allow_pickle=False)
of_numpy(file, allow_pickle=False)
numpy.savez(file, allow_pickle=False)
plugins.load(plugin)
json.load(file)
literal_eval("1")
tar.extractfile(member)
ast.parse("1", mode="eval")
subprocess.run(["ls"], shell=False)
importlib.import_module("cupy")
requests.get(address, verify=True)
os.path.join("exec", "eval")
def compile_(): ...
"""


@pytest.mark.parametrize("name", FOLDERS)
def test_no_file_makes_a_dangerous_call(name: str) -> None:
    folder, at_least = FOLDERS[name]
    count, found = found_in_folder(folder)
    assert count >= at_least, f"{folder} has only {count} files"
    by_file: dict[str, set[str]] = {}
    for line in found:
        where, _, what = line.partition(" ")
        by_file.setdefault(where.partition(":")[0], set()).add(what)
    expected = {file: kinds for file, kinds in ALLOWED.items() if file.startswith(f"{name}/")}
    assert by_file == expected, found


def test_what_is_planted_is_found(injected: Injected) -> None:
    missed = [line for line in PLANTED if not list(found_in(ast.parse(_with_imports(line))))]
    assert missed == []
    assert list(found_in(ast.parse(HARMLESS))) == []
    injected("dangerous calls", len(PLANTED), at_least=50)


def test_a_file_is_found_where_it_is_planted(tmp_path: Path) -> None:
    place = tmp_path / "vitkit" / "deep"
    place.mkdir(parents=True)
    (place / "planted.py").write_text("\ndef f(x):\n    return [eval(y) for y in x]\n")
    (place / "clean.py").write_text(HARMLESS)
    assert found_in_folder(tmp_path / "vitkit") == (2, ["vitkit/deep/planted.py:3 eval"])


def test_the_rules_of_ruff_are_on_and_nobody_turns_them_off() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    off = [rule for rules in lint["per-file-ignores"].values() for rule in rules]
    harmless = {"S101", "S603"}  # asserts, and subprocesses without a shell, in tests
    assert {rule for rule in [*off, *lint["ignore"]] if rule.startswith("S")} <= {
        *harmless,
        "SIM905",
    }
    silenced = re.compile(
        r"#\s*(?:ruff:\s*)?noqa(?::?$|.*?\bS(?:10[2-9]|2\d\d|3\d\d|5\d\d|60[1-9]))"
    )
    found = [
        f"{file.relative_to(folder.parent).as_posix()}"
        for folder, _ in FOLDERS.values()
        for file in sorted(folder.rglob("*.py"))
        for line in file.read_text("utf-8").splitlines()
        if silenced.search(line) and "S603" not in line
    ]
    assert found == ["vitkit/testing/parts/pickled.py"]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_ruff_finds_what_is_planted() -> None:
    lines = [*IMPORTS.splitlines(), *(line for line, rule in PLANTED.items() if rule)]
    options = "--no-cache --output-format json --stdin-filename vitkit/planted.py -".split()
    end = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *options],
        input="\n".join(lines),
        capture_output=True,
        cwd=ROOT,
        text=True,
        timeout=60,
    )
    assert end.returncode == 1, end.stderr
    rules: dict[int, set[str]] = {}
    for each in json.loads(end.stdout):
        rules.setdefault(each["location"]["row"], set()).add(each["code"])
    found = {line: rules.get(row, set()) for row, line in enumerate(lines, 1)}
    missed = {
        line: found[line] for line, rule in PLANTED.items() if rule and rule not in found[line]
    }
    assert missed == {}


def _with_imports(line: str) -> str:
    """Return a module with nothing dangerous but a line."""
    modules = [
        "import builtins, importlib, os, pandas, requests, runpy, shutil, subprocess, tarfile",
        "import tempfile, torch, urllib.request, numpy, numpy as np",
        "from importlib import import_module",
        "from numpy import load",
        "from os import system",
        "from urllib import request",
        "",
    ]
    if "yaml." in line or "pickle." in line or "marshal." in line:
        modules.append(f"import {line.partition('.')[0]}")
    assert not list(found_in(ast.parse("\n".join(modules[:-1]))))
    return "\n".join([*modules, line])
