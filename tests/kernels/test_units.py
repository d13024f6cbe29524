"""What multiplies bfloat16: the units that this machine does not use are looked at too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitkit import kernels

if reason := kernels.why_none(np):
    pytest.skip(f"no CPU kernels here: {reason}", allow_module_level=True)

from vitkit.kernels.cpu import _processor

# A processor that this one need not be: nothing of what is compiled for it is run.
SAPPHIRE_RAPIDS = {
    "NUMBA_CPU_NAME": "sapphirerapids",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16,"
    "+amx-tile,+amx-bf16",
}
PAIRS = {"avx512f", "avx512vl", "avx512bf16"}
COMPILE = """
from numba import float32, int64, types
from vitkit.kernels.cpu import _processor

_processor.why_no_tiles = lambda: {why!r}
from vitkit.kernels.cpu import _attention_pairs, _gradients, _products

line, rows = (types.Array(float32, axes, "C") for axes in (1, 2))
packed, halves = (types.Array(types.uint16, axes, "C") for axes in (1, 2))
for kernel, signature in (
    (_products.affine, (halves, packed, line, halves, rows, int64)),
    (_gradients.add_weight_gradient_pairs, (halves, halves, rows, line, rows, int64)),
    (_attention_pairs.forward, (halves, int64, int64, halves, rows, rows, rows, rows, int64)),
):
    kernel.compile(signature)
    text = kernel.inspect_asm(kernel.signatures[0])
    print(*sorted(word for word in ("tdpbf16ps", "vdpbf16ps") if word in text))
"""


def run(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    sys.platform != "linux" or not _processor.features() & {"sse2"}, reason="for x86-64 on Linux"
)
@pytest.mark.parametrize(("why", "instruction"), [("", "tdpbf16ps"), ("none here", "vdpbf16ps")])
def test_each_unit_s_kernels_compile_to_its_instruction(
    why: str, instruction: str, tmp_path: Path
) -> None:
    printed = run(COMPILE.format(why=why), tmp_path, **SAPPHIRE_RAPIDS)
    assert printed.split() == [instruction] * 3


@pytest.mark.parametrize(
    ("tiles", "features", "unit"),
    [
        ("", PAIRS, "amx"),
        ("the processor has no amx-tile", PAIRS, "avx512bf16"),
        ("the processor has no amx-tile", PAIRS - PAIRS - {"avx512vl"}, ""),
        ("the processor has no amx-tile", PAIRS - {"avx512vl"}, ""),
    ],
)
def test_tiles_come_before_pairs_and_pairs_before_nothing(
    tiles: str, features: set[str], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_processor, "why_no_tiles", lambda: tiles)
    monkeypatch.setattr(_processor, "features", lambda: features)
    assert _processor.bfloat16_unit() == unit
    expected = "" if unit else "the processor has no amx-tile, and there is no AVX-512 BF16"
    assert _processor.why_no_bfloat16() == expected


def test_without_amx_the_dot_products_compute_the_same(tmp_path: Path) -> None:
    if _processor.bfloat16_unit() != "amx":
        pytest.skip("the other tests run on this processor's unit: it has no AMX")
    if "avx512bf16" not in _processor.features():
        pytest.skip("the processor has no avx512bf16")
    here = Path(__file__).with_name("test_bfloat16.py")
    left = sorted(_processor.features() - {"amx-tile", "amx-bf16", "amx-int8"})
    run(
        f"import sys, pytest; sys.exit(pytest.main(['-q', {str(here)!r}]))",
        tmp_path,
        NUMBA_CPU_NAME="cooperlake",
        NUMBA_CPU_FEATURES=",".join(f"+{feature}" for feature in left),
    )
