"""How many threads the kernels use."""

from __future__ import annotations

import functools
import math
import os
import threading
from pathlib import Path

import numba

LIMITS = ("VITKIT_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
"""Variables that say how many, in order of precedence."""

POOL = numba.config.NUMBA_NUM_THREADS
"""The threads that Numba has; it starts no more later."""

_told = threading.local()
"""What each thread has had Numba use.

Numba is not asked at each call, since it takes a lock then that a process shares with all that are
forked from it: one that is killed in that moment would have the others wait for ever.
"""


def threads() -> int:
    """Return the number of threads, and have Numba use no more in the thread that calls this.

    More would wait, working hard at it, for a part that no one has for them: where processors are
    shared that costs a slice of their time for every kernel.
    """
    count = limit()
    most = min(count, POOL)
    if getattr(_told, "most", 0) != most:
        numba.set_num_threads(most)
        _told.most = most
    return count


@functools.cache
def limit() -> int:
    """Return what the environment says, or how many processors there are.

    Those this process may run on, and no more than the time its control group is given.
    """
    for name in LIMITS:
        said = os.environ.get(name, "")
        if said.isdigit() and int(said) > 0:
            return min(int(said), numba.config.NUMBA_NUM_THREADS)
    return max(1, min(numba.config.NUMBA_NUM_THREADS, _quota()))


def parts(count: int, least: int = 32) -> int:
    """Return among how many threads to share ``count`` rows, so that none has less than a tile."""
    return max(1, min(threads(), count // least))


def _quota() -> int:
    """Return how many processors' time the control group may use, rounded up."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else math.ceil(int(quota) / int(period))
