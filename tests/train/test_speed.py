"""What ``vitkit bench`` measures and counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitkit.models import ViT
from vitkit.train import speed
from vitkit.train.speed import flops, measure, turns


def test_the_operations_of_vit_b_16_are_those_published() -> None:
    # torchvision's ViT_B_16_Weights says 17.564e9, counting a multiply-add as one.
    assert flops(ViT("B/16", backend=None)) / 2 == pytest.approx(17.564e9, rel=2e-3)


def test_a_measurement(make_model: Callable[..., ViT]) -> None:
    model = make_model()
    before = model.state_dict()["head.bias"]
    done: list[int] = []
    found = measure(model, batch_size=4, rounds=2, on_turn=done.append)
    assert sum(done) == turns(2)
    assert (model.state_dict()["head.bias"] != before).any()
    for what, passes in (("train", 3), ("infer", 1)):
        row = found[what]
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
        expected = passes * 4 * flops(model) / row["seconds"] / 1e9
        assert row["gflops"] == pytest.approx(expected)
        assert row["times_as_fast"] > 0
        assert row["share_of_matmul"] > 0
    assert found["matmul"]["gflops"] > 0


def test_ratios_are_those_of_single_rounds(
    make_model: Callable[..., ViT], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"train": [1.0, 2.0, 8.0], "train by references": [3.0, 3.0, 24.0]}
    seconds |= {"infer": [1.0, 1.0, 1.0], "infer by references": [1.0, 1.0, 1.0]}
    seconds["matmul"] = [0.5, 2.0, 8.0]
    monkeypatch.setattr(speed, "_race", lambda *_: seconds)
    found = measure(make_model(), batch_size=4)
    assert found["train"]["seconds"] == 2
    assert found["train"]["times_as_fast"] == 3  # of 3, 1.5 and 3
    rate = found["matmul"]["gflops"] * 2 / found["train"]["gflops"]  # work in products and in steps
    assert found["train"]["share_of_matmul"] == pytest.approx(2 / rate)
    assert found["infer"]["times_as_fast"] == 1
