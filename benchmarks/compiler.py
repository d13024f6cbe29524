"""A C++ compiler that compiles the same text once, for processes that are started one by one.

In a dry run each of them has the same kernels compiled, which takes longer than all else.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WRAPPER = '''#!{python}
"""Stands in for a compiler that is called with options, -o, what to make, and of what."""
import hashlib, os, shutil, subprocess, sys
if sys.argv[-3:-2] != ["-o"]:  # somebody else asks
    os.execv({compiler!r}, [{compiler!r}, *sys.argv[1:]])
made, text = sys.argv[-2:]
with open(text, "rb") as file:
    name = hashlib.sha256(file.read()).hexdigest()
kept = os.path.join(os.path.dirname(__file__), name)
if not os.path.exists(kept):
    code = subprocess.run([{compiler!r}, *sys.argv[1:]]).returncode
    if code:
        sys.exit(code)
    shutil.copy(made, kept + str(os.getpid()))
    os.replace(kept + str(os.getpid()), kept)
shutil.copy(kept, made)
'''


@contextmanager
def once() -> Iterator[None]:
    """Let processes that are started inside the block compile each text once."""
    before = os.environ.get("CXX")
    compiler = shutil.which(before or "g++")
    if compiler is None or sys.platform == "win32":
        yield  # whoever needs one says so
        return
    with tempfile.TemporaryDirectory(prefix="vitkit-cxx-") as folder:
        wrapper = Path(folder) / Path(compiler).name  # by which PyTorch knows what it is
        wrapper.write_text(WRAPPER.format(python=sys.executable, compiler=compiler))
        wrapper.chmod(0o755)
        os.environ["CXX"] = str(wrapper)
        try:
            yield
        finally:
            del os.environ["CXX"]
            if before is not None:
                os.environ["CXX"] = before
