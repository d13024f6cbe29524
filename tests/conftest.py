"""What every test may ask for: the array module under test, random numbers, real data.

``VITKIT_TEST_XP`` chooses the array module: ``numpy`` (the default), ``strict`` (the stand-in for
a GPU), ``cupy``, or ``gpu``: CuPy where it works, and the stand-in elsewhere.
``VITKIT_REQUIRE_GPU=1`` turns "skipped for want of a GPU" into a failure.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from vitkit import kernels, ops
from vitkit.backend import ArrayModule, array_module, cuda_status, philox
from vitkit.errors import BackendError
from vitkit.testing import strict_device

XP = os.environ.get("VITKIT_TEST_XP") or "numpy"
REQUIRE_GPU = os.environ.get("VITKIT_REQUIRE_GPU") == "1"
LOCAL = ("127.0.0.1", "::1", "localhost")

hypothesis.settings.register_profile(
    "vitkit",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # the machine may be busy
)
hypothesis.settings.load_profile("vitkit")


def chosen_xp() -> ArrayModule:
    """Return the array module that ``VITKIT_TEST_XP`` names."""
    if XP == "strict":
        return strict_device.xp
    if XP == "gpu":
        usable = cuda_status().usable
        return array_module("cupy") if usable or REQUIRE_GPU else strict_device.xp
    if XP in ("numpy", "cupy"):
        return array_module(XP)
    raise pytest.UsageError(f"VITKIT_TEST_XP must be numpy, strict, cupy or gpu; got {XP!r}.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU that works; skipped elsewhere")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    try:
        chosen_xp()
    except BackendError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture
def kernels_on() -> None:
    """Skip where the environment has every operation run by its reference."""
    if ops._op.SWITCHED_OFF:
        pytest.skip("VITKIT_KERNELS=off: no kernel is asked")


def pytest_report_header() -> str:
    status = "not asked" if XP in ("numpy", "strict") else cuda_status().detail
    return f"vitkit: xp = {chosen_xp().__name__} (VITKIT_TEST_XP={XP}), GPU: {status}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what tests of faults have injected; the workers of xdist cannot print it."""
    lines = [
        str(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in report.user_properties
        if name == "injected" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("injected faults")
        for line in sorted(lines):
            terminalreporter.line(line)


def spellings(xp: ArrayModule) -> list[str]:
    """Return the ways in which operations can run: by references, and by kernels if there are."""
    kernels.load(xp)
    served = {name for op in vars(ops).values() if isinstance(op, ops.Op) for name in op.kernels}
    used = os.environ.get("VITKIT_KERNELS") != "off" and xp.__name__ in served
    return ["reference", "kernels"] if used else ["reference"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for the fixture ``spelling`` once in each way there is."""
    if "spelling" in metafunc.fixturenames:
        metafunc.parametrize("spelling", spellings(chosen_xp()), indirect=True, scope="module")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not cuda_status().usable:
        reason = f"needs a GPU: {cuda_status().detail}"
        if REQUIRE_GPU:
            pytest.fail(f"{reason}; VITKIT_REQUIRE_GPU=1 does not allow to skip", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def xp() -> ArrayModule:
    """Return the array module under test."""
    return chosen_xp()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator of its own for each test; the same in every run."""
    return philox(0, request.node.nodeid)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data sets; skip where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VITKIT_DATA_DIR") or beside)
    if not folder.is_dir():
        pytest.skip(f"needs real data: {folder} is not a folder; set VITKIT_DATA_DIR")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have what is remembered of folders of images kept elsewhere."""
    place = tmp_path_factory.mktemp("remembered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitkit.data.remembered.cache", lambda: place)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def refuse(host: Any) -> None:
        if host not in (*LOCAL, "", None):
            raise RuntimeError(f"A test tried to reach {host!r}; tests use no network.")

    def refuse_address(address: Any) -> None:
        if isinstance(address, tuple):  # other families, such as Unix sockets, are local
            refuse(address[0])

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse_address(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse_address(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield
