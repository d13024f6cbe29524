"""The real cuDNN, where it is installed, plans attention for GPUs that are only described to it.

A plan shows that cuDNN has kernels for a shape, not what they compute or how fast they are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitkit.kernels.cuda import _cudnn

DRIVER = """
static char handle[4096];
int cuInit(unsigned flags) { return 100; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
"""
SUCCEED = """cuKernelGetAttribute cuKernelSetAttribute cuLibraryUnload cuModuleUnload""".split()
HANDLES = """cuKernelGetFunction cuLibraryGetKernel cuLibraryLoadData cuLibraryLoadFromFile
cuModuleGetFunction cuModuleLoadData""".split()
NO_DEVICE = """cuCtxGetCurrent cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuDeviceGet
cuDeviceGetCount cuGetErrorName cuGetErrorString cuLaunchCooperativeKernel cuLaunchKernel
cuLaunchKernelEx cuLinkAddData cuLinkComplete cuLinkCreate cuLinkDestroy
cuOccupancyMaxPotentialClusterSize cuStreamGetCtx cuTensorMapEncodeIm2col
cuTensorMapEncodeTiled""".split()
"""What cuDNN wants of a driver before it plans; these say that there is no device."""
SCRIPT = Path(__file__).with_name("cudnn_plans.py")
COMPILER = shutil.which("gcc") or shutil.which("cc")
VIT = [(3, 64), (6, 64), (12, 64), (16, 64), (16, 80)]  # heads of Ti, S, B, L and H
TOKENS = (65, 197, 577)  # 8 x 8, 14 x 14 and 24 x 24 patches and a class token
KINDS = ("90,uint16", "90,float16", "80,uint16")
WIDTHS = [(2, 12, n, d) for n in (65, 197, 257) for d in (32, 64, 80, 128)]
ASKED = sorted(
    {f"90,uint16,{','.join(map(str, sizes))}" for sizes in WIDTHS}
    | {f"{kind},2,{h},{n},{d}" for kind in KINDS for h, d in VIT for n in TOKENS}
    | {"80,float16,2,12,257,80"}
)
REFUSED = "75,float16,2,12,197,64"
LARGE = "90,uint16,256,12,197,64"


def environment(**more: str) -> dict[str, str]:
    """Return what another interpreter needs to import what this one does."""
    folder = str(Path(_cudnn.__file__).parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path]), **more}


def test_the_frontend_is_imported_when_it_is_asked() -> None:
    code = "import sys, vitkit.kernels.cuda._cudnn; print({'cudnn', 'cupy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.strip() == "set()"


def why_no_plans() -> str:
    """Return why the real cuDNN cannot be asked here, as far as it is known before, or nothing."""
    if not sys.platform.startswith("linux"):
        return "a stand-in for the driver is built on Linux only"
    if importlib.util.find_spec("cudnn") is None:
        return "nvidia-cudnn-frontend is not installed"
    return "" if COMPILER else "there is no C compiler for a stand-in for the driver"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a stand-in for the driver."""
    if reason := why_no_plans():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("driver")
    functions = [f"int {name}(void) {{ return 0; }}" for name in SUCCEED]
    functions += [f"int {name}(void** at) {{ *at = handle; return 0; }}" for name in HANDLES]
    functions += [f"int {name}(void) {{ return 100; }}" for name in NO_DEVICE]
    (folder / "driver.c").write_text(DRIVER + "\n".join(functions) + "\n", "utf-8")
    built = ["-shared", "-fPIC", "-w", "-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")]
    subprocess.run([str(COMPILER), *built], check=True)
    return folder


@pytest.fixture
def planned(driver: Path) -> Callable[[str], dict[str, Any]]:
    """Return what plans in a process of its own, with the stand-in."""
    places = [str(driver), os.environ.get("LD_LIBRARY_PATH", "")]
    path = os.pathsep.join(filter(None, places))

    def plan(asked: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), asked],
            capture_output=True,
            text=True,
            check=False,
            env=environment(LD_LIBRARY_PATH=path),
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert not found["why_not"], found["why_not"]
        return dict(found["plans"][asked])

    return plan


Planned = Callable[[str], dict[str, Any]]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
def test_cudnn_plans_both_directions(asked: str, planned: Planned) -> None:
    found = planned(asked)
    assert set(found) == {"forward", "backward", "deterministic"}
    assert all(isinstance(found[name], int) for name in found), found
    assert found["forward"] < 2**20


@pytest.mark.slow
def test_cudnn_plans_nothing_for_older_gpus(planned: Planned) -> None:
    assert all(isinstance(why, str) for why in planned(REFUSED).values())


@pytest.mark.slow
def test_what_the_same_bits_cost(planned: Planned) -> None:
    """The memory that the documentation names, of a plan for 256 images, within a tenth."""
    found = planned(LARGE)
    assert found["backward"] == pytest.approx(157e6, rel=0.1)
    assert found["deterministic"] == pytest.approx(405e6, rel=0.1)
