"""From a backend's name to its array module, and what is said where CuPy cannot work."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import special

from vitkit import backend
from vitkit.backend import ArrayModule, array_module, cuda_status, to_numpy
from vitkit.errors import BackendError, VitkitError
from vitkit.nn.linear import Linear
from vitkit.testing import assert_close, strict_device


class FakeRuntimeError(RuntimeError):
    """What ``cupy.cuda.runtime.CUDARuntimeError`` is: an error with a status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FakeRuntime:
    """``cupy.cuda.runtime`` on a machine described by its arguments."""

    CUDARuntimeError = FakeRuntimeError

    def __init__(
        self,
        devices: int | FakeRuntimeError,
        driver: int = 13000,
        version: int = 12090,
        capability: int = 90,
    ) -> None:
        self.devices = devices
        self.driver = driver
        self.version, self.capability = version, capability

    def getDeviceCount(self) -> int:
        if isinstance(self.devices, FakeRuntimeError):
            raise self.devices
        return self.devices

    def runtimeGetVersion(self) -> int:
        return self.version

    def getDevice(self) -> int:
        return 0

    def driverGetVersion(self) -> int:
        return self.driver

    def getDeviceProperties(self, device: int) -> dict[str, bytes]:
        major, minor = divmod(self.capability, 10)
        return {"name": b"Pretend GPU", "major": major, "minor": minor}


def fake_cupy(runtime: FakeRuntime, ones: Callable[..., Any] = np.ones) -> Any:
    cupy: Any = ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.cuda = ModuleType("cupy.cuda")
    cupy.cuda.runtime = runtime
    cupy.float32 = np.float32
    cupy.ones = ones
    return cupy


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ModuleType | None], None]]:
    """Put a pretended cupy, or its absence, in the place of the real one."""

    def put(module: ModuleType | None) -> None:
        if module is None:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        else:
            monkeypatch.setitem(sys.modules, "cupy", module)
        cuda_status.cache_clear()

    yield put
    cuda_status.cache_clear()


def missing_library(*args: Any) -> Any:
    raise ImportError("libcublas.so.12: cannot open shared object file\nmore lines")


class CompileException(Exception):
    """What CuPy raises where NVRTC fails; its text ends with the source."""


def no_architecture(*args: Any) -> Any:
    raise CompileException(
        "nvrtc: error: invalid value for --gpu-architecture (-arch)\n\nmore lines"
    )


def no_kernel_image(*args: Any) -> Any:
    raise FakeRuntimeError(209, "cudaErrorNoKernelImageForDevice: no kernel image is available")


MACHINES = {
    "cupy missing": (None, ["CuPy is not installed", "vitkit[cuda12]", "vitkit[cuda13]"]),
    "no driver": (
        fake_cupy(FakeRuntime(FakeRuntimeError(35, "cudaErrorInsufficientDriver"), driver=0)),
        ["no NVIDIA driver", "CUDA 12.9", "reports nothing", "install or update"],
    ),
    "no device": (
        fake_cupy(FakeRuntime(FakeRuntimeError(100, "cudaErrorNoDevice"))),
        ["no CUDA device is visible", "CUDA_VISIBLE_DEVICES"],
    ),
    "libraries missing": (
        fake_cupy(FakeRuntime(1), missing_library),
        ["CUDA libraries do not work", "libcublas.so.12", "cupy-cuda12x[ctk]"],
    ),
}
OLD = ["too old for CUDA 13: pip uninstall cupy-cuda13x, then", "'cupy-cuda12x[ctk]'"]
NEW = ["update the driver, then pip install --upgrade 'cupy-cuda13x[ctk]'"]
ANCIENT = ["CUDA 12 and 13 run on compute capability 5.0 and newer", "another GPU"]
UNSUPPORTED = [
    (61, 13000, "6.1", "13.0", OLD),
    (70, 14010, "7.0", "14.1", ["too old for CUDA 14: pip uninstall cupy-cuda14x", *OLD[1:]]),
    (75, 13000, "7.5", "13.0", ["too new for CUDA 13.0", *NEW]),
    (103, 12040, "10.3", "12.4", ["too new for CUDA 12.4", *NEW]),
    (50, 12040, "5.0", "12.4", ["too new for CUDA 12.4", *NEW]),
    (35, 12090, "3.5", "12.9", ANCIENT),
    (37, 13000, "3.7", "13.0", ANCIENT),
]


@pytest.mark.parametrize("fails", [no_architecture, no_kernel_image])
@pytest.mark.parametrize(("capability", "version", "has", "cuda", "words"), UNSUPPORTED)
def test_a_gpu_that_is_not_supported_has_its_own_cause_and_cure(
    capability: int,
    version: int,
    has: str,
    cuda: str,
    words: list[str],
    fails: Callable[..., Any],
    install: Callable[[ModuleType], None],
) -> None:
    install(fake_cupy(FakeRuntime(1, version=version, capability=capability), fails))
    status = cuda_status()
    assert (status.usable, status.cause) == (False, "unsupported GPU")
    with pytest.raises(BackendError, match=r"the GPU \(Pretend GPU, compute capability") as caught:
        array_module("cupy")
    told = "architecture (-arch)" if fails is no_architecture else "cudaErrorNoKernelImage"
    for word in [f"compute capability {has})", f"none that CUDA {cuda} runs on", told, *words]:
        assert word in str(caught.value)
    assert "more lines" not in str(caught.value)
    assert "libraries" not in status.detail
    assert array_module("auto") is np


@pytest.mark.parametrize("cause", MACHINES)
def test_the_cause_and_the_cure_are_named(
    cause: str, install: Callable[[ModuleType | None], None]
) -> None:
    module, words = MACHINES[cause]
    install(module)
    status = cuda_status()
    assert (status.usable, status.cause) == (False, cause)
    with pytest.raises(BackendError, match="backend='cupy' was asked for, but ") as caught:
        array_module("cupy")
    for word in [*words, status.cure, "backend='numpy'"]:
        assert word in str(caught.value)
    assert "more lines" not in str(caught.value)
    assert array_module("auto") is np


def test_no_device_is_also_a_count_of_zero(install: Callable[[ModuleType], None]) -> None:
    install(fake_cupy(FakeRuntime(0)))
    assert cuda_status().cause == "no device"
    assert "no CUDA device is visible" in cuda_status().detail


def test_another_cuda_error_is_quoted(install: Callable[[ModuleType], None]) -> None:
    install(fake_cupy(FakeRuntime(FakeRuntimeError(999, "cudaErrorUnknown: unknown error"))))
    assert cuda_status().cause == "no device"
    assert "cudaErrorUnknown" in cuda_status().detail


def test_a_folder_of_kernels_that_refuses_them(install: Callable[[ModuleType], None]) -> None:
    """One that is there but cannot be written is noticed at the first kernel."""

    def refuse(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/home/other/.cupy/kernel_cache/tmp")

    install(fake_cupy(FakeRuntime(1), refuse))
    status = cuda_status()
    assert (status.cause, status.cure.startswith("set CUPY_CACHE_DIR")) == ("cupy broken", True)
    assert "kernel_cache" in status.detail


def test_a_wrong_product_is_not_trusted(install: Callable[[ModuleType], None]) -> None:
    install(fake_cupy(FakeRuntime(1), lambda shape, dtype: np.full(shape, 2, dtype)))
    assert cuda_status().cause == "libraries missing"
    assert "sums to 32.0, not 8" in cuda_status().detail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("cupy was built for another NumPy"), ".*another NumPy.* Cure: pip"),
        (OSError("libnvrtc.so.12: cannot open shared object file"), ".*nvrtc.* Cure: pip"),
        # its folder of compiled kernels, in the home of somebody else or on a full disk
        (
            PermissionError(13, "Permission denied", "/home/a/.cupy"),
            ".*cupy.* Cure: set CUPY_CACHE",
        ),
    ],
    ids=["ImportError", "no library", "PermissionError"],
)
def test_a_broken_installation_is_named(
    error: Exception,
    said: str,
    install: Callable[[ModuleType | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(importlib.machinery.ModuleSpec):
        """Found, but it does not import."""

    class Finder:
        def find_spec(self, name: str, *rest: Any) -> importlib.machinery.ModuleSpec | None:
            return Broken(name, self) if name == "cupy" else None  # type: ignore[arg-type]

        def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
            raise error

        def exec_module(self, module: ModuleType) -> None: ...

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    cuda_status.cache_clear()
    assert cuda_status().cause == "cupy broken"
    with pytest.raises(BackendError, match=f"CuPy does not import {said}"):
        array_module("cupy")


def test_a_working_device_is_described_and_chosen(install: Callable[[ModuleType], None]) -> None:
    cupy = fake_cupy(FakeRuntime(2))
    install(cupy)
    status = cuda_status()
    assert status == backend.CudaStatus(
        True, "ok", "2 device(s), Pretend GPU, CUDA runtime 12090", ""
    )
    assert array_module("auto") is array_module("cupy") is array_module(cupy) is cupy


def test_the_status_is_found_out_once(install: Callable[[ModuleType], None]) -> None:
    install(fake_cupy(FakeRuntime(1)))
    assert cuda_status() is cuda_status()


def test_numpy_never_looks_for_cupy(install: Callable[[ModuleType], None]) -> None:
    class Poison(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"cupy.{name} was touched")

    install(Poison("cupy"))
    assert array_module("numpy") is np
    assert array_module(np) is np
    assert cuda_status.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cuppy", "; did you mean 'cupy'?"),
        ("Numpy", "; did you mean 'numpy'?"),
        ("autom", "; did you mean 'auto'?"),
        ("torch", "."),
        ("", "."),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(BackendError) as caught:
        array_module(name)
    assert str(caught.value) == f"backend must be 'numpy', 'cupy' or 'auto'; got {name!r}{hint}"


@pytest.mark.parametrize("wrong", [np.linalg, sys, 3, None])
def test_what_is_no_array_module_is_refused(wrong: Any) -> None:
    with pytest.raises(BackendError, match=r"xp must be an array module \(cupy or numpy"):
        array_module(wrong)


def test_a_backend_error_is_a_runtime_error_of_vitkit() -> None:
    assert issubclass(BackendError, VitkitError)
    assert issubclass(BackendError, RuntimeError)


def test_to_numpy_copies_from_the_device_and_leaves_the_host_alone(xp: ArrayModule) -> None:
    host = np.arange(6.0).reshape(2, 3)
    assert to_numpy(host) is host
    there = to_numpy(xp.asarray(host))
    assert type(there) is np.ndarray
    np.testing.assert_array_equal(there, host)
    assert to_numpy(np.float32(2)).dtype == np.float32
    assert to_numpy([1, 2]).tolist() == [1, 2]


def test_to_numpy_knows_an_array_without_importing_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Array:
        __module__ = "cupy"

        def get(self) -> np.ndarray:
            return np.ones(3)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert to_numpy(Array()).tolist() == [1, 1, 1]
    assert "cupy" not in sys.modules


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_that_of_scipy_and_keeps_the_dtype(xp: ArrayModule, dtype: str) -> None:
    host = np.linspace(-4, 4, 101).astype(dtype)
    there = backend.erf(xp.asarray(host), xp=xp)
    assert there.dtype == dtype
    assert_close(there, special.erf(host.astype("float64")))


def test_synchronize_waits_on_any_backend(xp: ArrayModule) -> None:
    with strict_device.count_syncs() as syncs:
        backend.synchronize(xp)
    assert syncs == (["synchronize"] if xp is strict_device.xp else [])


def test_two_backends_live_in_one_process(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 4)).astype("float32")
    on_host, on_device = (Linear(4, 3, xp=xp) for xp in (np, strict_device.xp))
    y = on_host(x)
    y_there = on_device(strict_device.xp.asarray(x))
    assert type(y) is np.ndarray
    assert isinstance(y_there, strict_device.DeviceArray)
    np.testing.assert_array_equal(to_numpy(y_there), y)
    with pytest.raises(TypeError, match="host array"):
        on_device(x)
