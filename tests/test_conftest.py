"""The fixtures and markers that all tests rest on do what they say."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitkit.backend import cuda_status, philox

NO_GPU = not cuda_status().usable


def run_pytest(folder: Path, source: str, **environment: str) -> tuple[int, str]:
    """Run tests with this suite's conftest in a process of their own."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_inner.py").write_text(source)
    done = subprocess.run(
        [sys.executable, *"-m pytest -ra -p no:cacheprovider --rootdir".split(), *[folder] * 2],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTEST_ADDOPTS": "",
            "VITKIT_REQUIRE_GPU": "",
            "VITKIT_TEST_XP": "",
            **environment,
        },
    )
    return done.returncode, done.stdout + done.stderr


NEEDS_GPU = "import pytest\n\n@pytest.mark.gpu\ndef test_it(): pass\n"
SHOWS_XP = "def test_it(xp): assert xp.__name__ == {name!r}\n"
SPELLED = """import pytest
@pytest.fixture
def spelling(request): return request.param
def test_it(spelling): pass
"""


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_without_a_gpu_its_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, NEEDS_GPU)
    assert code == 0
    assert f"needs a GPU: {cuda_status().detail}" in output
    assert "1 skipped" in output


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_a_required_gpu_that_is_missing_fails(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, NEEDS_GPU, VITKIT_REQUIRE_GPU="1")
    assert code == 1
    assert "VITKIT_REQUIRE_GPU=1 does not allow to skip" in output


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
@pytest.mark.parametrize(
    "settings",
    [{"VITKIT_TEST_XP": "cupy"}, {"VITKIT_TEST_XP": "gpu", "VITKIT_REQUIRE_GPU": "1"}],
)
def test_a_suite_that_asks_for_cupy_does_not_run_without(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    code, output = run_pytest(tmp_path, NEEDS_GPU, **settings)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert cuda_status().detail in output


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("numpy", "numpy"),
        ("strict", "strict_device"),
        ("gpu", "strict_device" if NO_GPU else "cupy"),
    ],
)
def test_the_array_module_is_the_one_chosen(tmp_path: Path, choice: str, name: str) -> None:
    code, output = run_pytest(tmp_path, SHOWS_XP.format(name=name), VITKIT_TEST_XP=choice)
    assert code == 0, output
    assert f"vitkit: xp = {name} (VITKIT_TEST_XP={choice})" in output


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"VITKIT_TEST_XP": "numpy", "VITKIT_KERNELS": ""}, 2),
        ({"VITKIT_TEST_XP": "numpy", "VITKIT_KERNELS": "off"}, 1),
        ({"VITKIT_TEST_XP": "strict", "VITKIT_KERNELS": ""}, 1),
    ],
)
def test_nothing_runs_twice_without_kernels_to_tell_apart(
    tmp_path: Path, settings: dict[str, str], times: int
) -> None:
    code, output = run_pytest(tmp_path, SPELLED, **settings)
    assert code == 0, output
    assert f"{times} passed" in output


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, NEEDS_GPU, VITKIT_TEST_XP="tpu")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "must be numpy, strict, cupy or gpu; got 'tpu'" in output


def test_no_test_reaches_the_network() -> None:
    with pytest.raises(RuntimeError, match=r"tried to reach '192\.0\.2\.1'"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match=r"tried to reach 'example\.org'"):
        socket.create_connection(("example.org", 80), timeout=1)
    with socket.socket() as one, pytest.raises(RuntimeError, match="tests use no network"):
        one.connect_ex(("192.0.2.1", 80))


def test_this_machine_is_reached() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_random_numbers_are_those_of_the_test(
    rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    assert rng.random() == philox(0, request.node.nodeid).random()
