"""Memory that shows what was not written, or beside an array; numbers of threads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import kernel_calls, beside them


def filled_with_nan(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def spoilt(*args: Any, **kwargs: Any) -> np.ndarray:
        array = make(*args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    return spoilt


@pytest.fixture
def no_lucky_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let new memory hold NaN, not an earlier and right answer where nothing was written.

    And look, when lent memory comes back, whether it was written beside the array.
    """
    from vitkit.kernels.cpu import _memory

    overrun: list[int] = []

    class Spoilt(_memory._Loan):
        def __init__(self, shelf: Any, block: np.ndarray, shape: tuple[int, ...], kind: str):
            block.fill(255)  # NaN in every dtype
            super().__init__(shelf, block, shape, kind)
            first = -block.ctypes.data % 64  # where the array begins
            last = first + int(np.prod(shape)) * np.dtype(kind).itemsize
            self._beside = [block[:first], block[last:]]

        def __del__(self) -> None:
            # No function of NumPy's, which looks at the errstate: the collector may come here while
            # that is being left.
            if any(part.tobytes().strip(b"\xff") for part in self._beside):
                overrun.append(self._block.size)
            super().__del__()

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, filled_with_nan(getattr(np, name)))
    monkeypatch.setattr(_memory, "_Loan", Spoilt)
    yield
    assert not overrun, "something was written beside an array that a kernel made"


@pytest.fixture
def set_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Return a function that says among how many threads kernels divide their work."""
    import numba

    from vitkit.kernels.cpu._threads import limit, threads

    def set_threads(count: int) -> None:
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", max(count, present))
        monkeypatch.setenv("VITKIT_NUM_THREADS", str(count))
        limit.cache_clear()
        assert threads() == count

    present = numba.config.NUMBA_NUM_THREADS
    yield set_threads
    limit.cache_clear()
