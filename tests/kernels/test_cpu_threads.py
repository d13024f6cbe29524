"""The same bits in every run, and on any number of threads."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_calls import NAMES, bits_of

SHAPES = [(3, 5), (197, 33), (2_051, 8)]
# Those in which each thread sums what it was given: other threads, other last digits.
SUMS_BY_THREAD = {"mlp_branch_backward_inplace", "attention_branch_backward_inplace"}
COUNTS = (1, 2, 4)
names = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.usefixtures("no_lucky_memory")


@names
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits(name: str, shape: tuple[int, int], set_threads: Callable[..., None]) -> None:
    found: list[str] = []
    for count in COUNTS:
        set_threads(count)
        runs = {bits_of(name, *shape) for _ in range(3)}
        assert len(runs) == 1, f"runs on {count} threads differ"
        found += runs
    if name.partition(",")[0] not in SUMS_BY_THREAD:
        assert len(set(found)) == 1, "the result depends on the number of threads"


IN_ANOTHER_PROCESS = f"""
import json
from kernel_calls import NAMES, bits_of
from vitkit.kernels.cpu._threads import threads
found = {{name: [bits_of(name, *shape) for shape in {SHAPES}] for name in NAMES}}
print(json.dumps([threads(), found]))
"""


def test_the_same_bits_from_four_threads_of_two_processes() -> None:
    here = Path(__file__).parent
    limits = {"NUMBA_NUM_THREADS": "4", "VITKIT_NUM_THREADS": "4"}
    path = os.pathsep.join([str(here), str(here.parents[1])])
    # One after the other: the second runs what the first has compiled, or found compiled.
    runs = [
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS],
            env={**os.environ, **limits, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    (count, found), (_, again) = map(json.loads, runs)
    assert count == 4
    assert set(found) == set(NAMES)
    assert found == again


# In these, code that is optimized once more with its callers rounds otherwise.
ROUNDED_TWICE = ("adamw_update_inplace", "adam_update_inplace, no decay")
FROM_A_CACHE = f"""
import json
from kernel_calls import bits_of
from vitkit.kernels.cpu._compilations import counted
found = [bits_of(name, 197, 33) for name in {ROUNDED_TWICE}]
print(json.dumps([counted(), found]))
"""


def test_the_same_bits_from_what_was_compiled_and_from_the_cache(tmp_path: Path) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1])])
    runs = [
        subprocess.run(
            [sys.executable, "-c", FROM_A_CACHE],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    (compiled, found), (again, loaded) = map(json.loads, runs)
    assert compiled > 0
    assert again == 0
    assert found == loaded


# Numba has one lock for a process and all that are forked from it; one killed while it holds the
# lock never gives it back. A child of Linux is killed for want of memory, say.
AFTER_A_KILL = """
import os, signal
from kernel_calls import NAMES, bits_of
from numba.np.ufunc import parallel
before = bits_of(NAMES[0], 3, 5)
pid = os.fork()
if not pid:
    parallel._backend_init_process_lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
assert not parallel._backend_init_process_lock.acquire(block=False), "it holds the lock no more"
assert bits_of(NAMES[0], 3, 5) == before
pid = os.fork()
if not pid:
    os._exit(bits_of(NAMES[0], 3, 5) != before)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="Numba has the lock where fork is the rule"
)
def test_a_killed_child_does_not_hold_up_its_parent() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1])])
    limits = {"NUMBA_THREADING_LAYER": "workqueue"}  # OpenMP refuses to go on after a fork
    subprocess.run(
        [sys.executable, "-c", AFTER_A_KILL],
        env={**os.environ, **limits, "PYTHONPATH": path},
        check=True,
        timeout=120,
    )
