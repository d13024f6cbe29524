"""When kernels are there, and what a model is told where they are not."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from vitkit import ViT, kernels, ops
from vitkit.kernels.ahead import BRANCHES
from vitkit.kernels.state import operations

SIZES = {"image_size": 8, "in_channels": 1, "num_classes": 3, "dim": 32, "depth": 1, "num_heads": 1}
LOADED = (
    "from vitkit import ViT, ops\n"
    "with ops.reference_only():\n"
    "    ViT('Ti/4', image_size=8, num_classes=3, dim=32, depth=1, num_heads=1)\n"
    "print(sorted(ops.linear.kernels))"
)


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_model_made_among_references_finds_kernels_later() -> None:
    if reason := kernels.why_none(np):
        pytest.skip(f"no CPU kernels here: {reason}")
    assert run(LOADED) == "['numpy']"


def test_the_environment_turns_them_off() -> None:
    assert run(LOADED, VITKIT_KERNELS="off") == "[]"


def test_an_unknown_precision_is_an_error() -> None:
    known = "float32, tf32, bfloat16, float16"
    with pytest.raises(ValueError, match=f"precision must be one of {known}; got 'fp8'"):
        ViT("Ti/4", **SIZES, precision="fp8")


def test_bfloat16_needs_float32() -> None:
    with pytest.raises(ValueError, match="precision='bfloat16' needs dtype='float32'; got float64"):
        ViT("Ti/4", **SIZES, precision="bfloat16", dtype="float64")


@pytest.mark.parametrize("precision", ["tf32", "float16"])
@pytest.mark.parametrize("name", BRANCHES)
def test_cpu_kernels_leave_other_precisions_to_the_references(name: str, precision: str) -> None:
    if reason := kernels.why_none(np):
        pytest.skip(f"no CPU kernels here: {reason}")
    args, options = BRANCHES[name](precision)
    kernel = operations()[name].kernels["numpy"]
    assert kernel(*args, **options, xp=np) is NotImplemented


def test_among_references_bfloat16_rounds_as_it_says() -> None:
    images = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype("float32")
    with ops.reference_only():
        full = ViT("Ti/4", **SIZES, init="scratch")
        rounded = ViT("Ti/4", **SIZES, init="scratch", precision="bfloat16")
        assert rounded.precision == "bfloat16"
        difference = np.abs(rounded.features(images) - full.features(images)).max()
    assert 1e-4 < difference < 0.1
