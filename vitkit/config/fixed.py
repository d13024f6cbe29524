"""What a resumed run cannot change."""

from __future__ import annotations

from typing import Any

FIXED = """dtype seed optimizer model. data.name data.val_fraction data.augment train.batch_size
train.grad_accum train.ema_decay train.monitor train.mode""".split()
"""What a resumed run cannot change: what its state is made of, and what its position counts."""
FREE = ("model.residual_in_fp32",)
"""What it can for all that: how the same is computed, as ``train.precision`` is."""


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return a line for each setting that a resumed run cannot change, and that has changed."""
    problems = []
    for key, value in now.items():
        name, old = f"{prefix}{key}", before.get(key)
        if isinstance(value, dict):
            problems += changes(old or {}, value, f"{name}.")
        elif value != old and (name in FIXED or prefix in FIXED) and name not in FREE:
            problems.append(f"{name}: got {value}, but the run began with {old}; leave it out.")
    return problems
