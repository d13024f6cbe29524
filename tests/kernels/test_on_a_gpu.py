"""The tests of CUDA kernels need no host: on a GPU that is pretended they pass as they do here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitkit.testing import cuda_on_cpu

FOLDER = Path(__file__).parent
FILES = """attention casts dropout gelu images layer_norm losses norms patches pooling positions
softmax tensor updates""".split()
KERNELS = 100  # that these tests run at least
HOST_ONLY = """
import numpy as np
import pytest
from vitkit import ops
from vitkit.backend import to_numpy
from vitkit.testing import strict_device
from where import kernels_of

xp = strict_device.xp

@pytest.fixture
def emulated(request):
    with kernels_of(request.module, 0):
        yield

@pytest.mark.usefixtures("emulated")
def test_another_device():
    with pytest.raises(TypeError):
        xp.ones(3) + strict_device.xp.ones(3)
    with pytest.raises(TypeError):
        ops.softmax(strict_device.xp.ones((3, 4), "float32"), xp=xp)

@pytest.mark.usefixtures("emulated")
def test_the_host():
    assert xp.__name__ == "cupy"
    array = xp.ones(3)
    for function in (np.exp, np.asarray, np.sum):
        with pytest.raises(TypeError):
            function(array)
    with pytest.raises(TypeError):
        array + np.ones(3)
    assert to_numpy(array).tolist() == [1, 1, 1]
"""


def on_a_pretended_gpu(*arguments: str) -> str:
    """Return what pytest says of files of tests where a GPU is pretended."""
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    paths = [str(FOLDER), str(FOLDER / "cuda"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "pretended_gpu",
                "-p",
                "no:cacheprovider",
            ),
            *("-p", "no:xdist", *arguments),
        ],
        cwd=FOLDER.parents[1],
        env={**os.environ, "VITKIT_TEST_XP": "gpu", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_what_only_the_host_can_do_is_an_error_there(tmp_path: Path) -> None:
    file = tmp_path / "test_host_only.py"
    file.write_text(HOST_ONLY, "utf-8")
    assert "2 passed" in on_a_pretended_gpu(str(file))


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_on")
def test_tests_of_kernels_run_where_a_gpu_works() -> None:
    files = [str(FOLDER / "cuda" / f"test_{name}.py") for name in FILES]
    said = on_a_pretended_gpu("-k", "not planted", *files)
    assert "skipped" not in said
    launched = re.search(r"pretended GPU: (\d+) launches of (\d+) kernels", said)
    assert launched is not None
    assert int(launched[1]) > int(launched[2]) >= KERNELS
