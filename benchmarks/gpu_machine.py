"""The GPU that a result was measured on: what it is, and how it was while it computed."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

import machine

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.5e12,
    "H200": 989.5e12,
    "GH200": 989.5e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations a second with float32 sums, by NVIDIA's data sheets, by name."""
FACTS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem")
STATE = ("clocks.sm", "power.draw", "temperature.gpu")
UNITS = ("MHz", "W", "C")
MILLISECONDS = 100  # between two looks at the state


def describe(threads: int) -> dict[str, Any]:
    """Return what :func:`machine.describe` does, and the GPU as ``nvidia-smi`` sees it."""
    return {**machine.describe(threads), "gpu": facts()}


def facts() -> dict[str, str]:
    """Return what ``nvidia-smi`` says of the first GPU, or why it says nothing."""
    try:
        values = _smi(FACTS).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return {"name": "unknown", "why": f"nvidia-smi: {str(error) or type(error).__name__}"}
    return dict(zip(FACTS, values, strict=True))


def _smi(fields: tuple[str, ...]) -> Any:
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)


def peak(name: str, measured: float | None) -> tuple[float | None, str]:
    """Return the bfloat16 operations a second that a GPU is held to, and where they are from.

    Parameters
    ----------
    name : str
        The GPU's.
    measured : float or None
        The rate of a large product, for a GPU that is not in the table.
    """
    known = [each for each in PEAKS if each in name]
    if known:
        longest = max(known, key=len)
        return PEAKS[longest], f"{PEAKS[longest] / 1e12:g} TFLOP/s, dense bf16 by the data sheet"
    if measured is None:
        return None, "unknown GPU, and no product of matrices was measured"
    return measured, f"{measured / 1e12:.4g} TFLOP/s, a large product measured here: unknown GPU"


class Watch:
    """Looks at clocks, power and temperature from its start until it is closed.

    Attributes
    ----------
    why : str
        Why it sees nothing; empty if it does.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[float, tuple[float, ...]]] = []
        self.why = ""
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(STATE)}"]
        command += ["--format=csv,noheader,nounits", f"--loop-ms={MILLISECONDS}"]
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            self.why = f"nvidia-smi: {error.strerror or error}"
            return
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # what this GPU does not tell is no number
                self._seen.append((time.perf_counter(), tuple(map(float, line.split(",")))))

    def between(self, start: float, end: float) -> dict[str, float]:
        """Return the medians of what was seen between two readings of ``time.perf_counter``."""
        seen = [state for when, state in self._seen if start <= when <= end]
        medians = map(statistics.median, zip(*seen, strict=True))
        return dict(zip(UNITS, medians, strict=False))

    def close(self) -> None:
        """Look no more."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
