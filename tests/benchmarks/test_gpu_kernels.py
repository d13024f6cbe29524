"""Kernels on a GPU one by one: what is left out, what is said, and which operations there are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def test_kernels_that_nobody_can_measure(gpu_modules: Any) -> None:
    kernels, process = gpu_modules.gpu_kernels, gpu_modules.process

    class Refusing:
        closed = False

        def ask(self, **request: Any) -> Any:
            raise process.Dropped("skipped", "sees no GPU")

        def close(self) -> None:
            self.closed = True

    racer = Refusing()
    order = gpu_modules.task.Order("", "tiny", device="dry")
    trial = SimpleNamespace(racers={"torch": racer}, missing={}, order=order)
    assert kernels.ceilings(trial) == {}
    assert trial.missing == {"PyTorch": "sees no GPU"}
    assert racer.closed
    found: dict[str, Any] = {"cut": [], "cases": {}, "ceilings": {}}
    cases = gpu_modules.gpu_cases.gpu_cases(order.sizes)
    clock = SimpleNamespace(budget=9.0, spent=lambda: 0.0, left=lambda: 9.0)
    kernels.measure(trial, {name: cases[name] for name in ("gelu", "softmax")}, found, clock, None)
    assert found["cut"] == ["Not measured, since nobody can: gelu, softmax."]


def test_kernels_that_there_is_no_time_for(gpu_modules: Any, tmp_path: Path) -> None:
    times = iter([0.0, 0.0, 5.0])
    clock = SimpleNamespace(budget=9.0, spent=lambda: next(times), left=lambda: 4.0)
    order = gpu_modules.task.Order("", "tiny", device="dry")
    cases = gpu_modules.gpu_cases.gpu_cases(order.sizes)
    one = {
        "flop": 0, "bytes": 800, "served": False, "reasons": {}, "difference": {"kernel": 0.0},
        "seconds": {"kernel": {"0": 2e-6}, "torch": {"0": 1e-6}}, "torch": {"remark": "slowly"},
    }  # fmt: skip
    trial = SimpleNamespace(racers={"kernel": None}, measure=lambda case: dict(one))
    top = {"bytes_per_second": 8e8, "product_flops": 1e12}
    found: dict[str, Any] = {"cut": [], "cases": {}, "ceilings": top}
    out = tmp_path / "found.json"
    kernels = gpu_modules.gpu_kernels
    kernels.measure(trial, {name: cases[name] for name in ("gelu", "softmax")}, found, clock, out)
    assert found["cut"] == ["Not measured, since the budget of 9 s is spent: softmax."]
    assert out.exists()
    row = found["cases"]["gelu"]["summary"]
    assert row["floor_us"] == pytest.approx(1.0)
    assert row["of_floor"] == pytest.approx(0.5)
    assert kernels.line("gelu", found["cases"]["gelu"]) == [
        "gelu", "2", "1", "50%", "0 GB/s", "1", "0.50", "left to the reference; PyTorch slowly",
    ]  # fmt: skip


def test_each_form_of_gelu_has_its_products(gpu_modules: Any) -> None:
    known = gpu_modules.gpu_kernels.operations()
    assert {"product_gelu", "product_dx_gelu", "activate", "clip_by_norm_inplace"} <= set(known)
    assert known == sorted(set(known))
