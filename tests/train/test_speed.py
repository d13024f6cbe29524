"""What ``vitkit bench`` measures and counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitkit.models import ViT
from vitkit.train.speed import flops, measure


def test_the_operations_of_vit_b_16_are_those_published() -> None:
    # torchvision's ViT_B_16_Weights says 17.564e9, counting a multiply-add as one.
    assert flops(ViT("B/16", backend=None)) / 2 == pytest.approx(17.564e9, rel=2e-3)


def test_a_measurement(make_model: Callable[..., ViT]) -> None:
    model = make_model()
    before = model.state_dict()["head.bias"]
    found = measure(model, batch_size=4, rounds=2)
    assert (model.state_dict()["head.bias"] != before).any()
    for what, passes in (("train", 3), ("infer", 1)):
        row = found[what]
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
        expected = passes * 4 * flops(model) / row["seconds"] / 1e9
        assert row["gflops"] == pytest.approx(expected)
