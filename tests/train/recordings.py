"""A small model on the stand-in for a GPU, images for it, and what is recorded there."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vitkit
from vitkit.backend import ArrayModule, Recording, philox
from vitkit.data import ArrayDataset
from vitkit.ops import softmax_cross_entropy
from vitkit.testing import strict_device
from vitkit.train import graph


def made(precision: str = "float32", **settings: Any) -> vitkit.ViT:
    """Return a model of two blocks and five classes, whose head is not zero as a new one's is."""
    sizes = {"image_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "num_heads": 1}
    sizes |= {"mlp_dim": 48, "init": "scratch", "xp": strict_device.xp, "precision": precision}
    model = vitkit.ViT("Ti/4", **{**sizes, **settings})
    head = philox(settings.get("seed", 0), "head").standard_normal((5, 32)) / 4
    model.load_state_dict({"head.weight": head}, strict=False)
    return model


def pictures(count: int, rng: np.random.Generator) -> ArrayDataset:
    """Return images for it."""
    images = rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return ArrayDataset(images, rng.integers(0, 5, count), classes=list("abcde"))


def waiting(model: vitkit.ViT) -> vitkit.ViT:
    """Return the model, whose passes now read a value on the host, as a plugin's may."""
    forward = model.forward

    def waits(x: Any, ctx: Any) -> Any:
        assert np.isfinite(float(x.sum()))
        return forward(x, ctx)

    vars(model)["forward"] = waits
    return model


class Counted:
    """What was recorded, counted when it is done again."""

    def __init__(self, recording: Recording, recordings: Recordings) -> None:
        self._recording, self._recordings = recording, recordings

    def replay(self) -> None:
        self._recordings.replays += 1
        self._recording.replay()


class Recordings:
    """Notes what is recorded, which of it is alive, and how often it is done again.

    Parameters
    ----------
    monkeypatch : pytest.MonkeyPatch
        Puts it between, until the test ends.
    refuse : callable, optional
        Called before each recording with how many there were; may raise.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[int], None] = lambda count: None
    ) -> None:
        self.made: list[weakref.ref[Counted]] = []
        self.tried = self.replays = 0
        record = graph.record

        def noted(function: Callable[[], Any], *, xp: ArrayModule) -> Any:
            self.tried += 1
            refuse(self.tried - 1)
            recording, result = record(function, xp=xp)
            counted = Counted(recording, self)
            self.made.append(weakref.ref(counted))
            return counted, result

        monkeypatch.setattr(graph, "record", noted)

    @property
    def alive(self) -> int:
        """How many there are now."""
        return sum(each() is not None for each in self.made)


def no_room(recordings: Recordings, size: int) -> Callable[..., Any]:
    """Return a loss that finds no memory for batches of a size while there are graphs."""

    def loss(logits: Any, labels: Any, *, xp: ArrayModule) -> Any:
        if len(logits) == size and recordings.alive:
            raise MemoryError("graphs are in the way")
        return softmax_cross_entropy(logits, labels, xp=xp)

    return loss
