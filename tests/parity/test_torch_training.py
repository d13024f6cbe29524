r"""Ten updates of the whole model beside PyTorch's: losses, norms, parameters, state.

Every optimizer with every schedule, with weight decay on weight matrices only, gradients clipped
to a global norm, and another batch at each step. The tolerance is that of a single pass, at every
step.

**Adam's epsilon.** Softmax does not see a number added to all scores of a row, so the gradient of
the keys' bias is exactly zero, and what a computer finds there is rounding: about 1e-17 in float64
and 1e-8 in float32, after clipping. Adam divides it by its own size plus :math:`\epsilon`, and so
it does with any gradient that happens to be nearly zero. Let two gradients differ by at most
:math:`\delta`; then for :math:`d = \hat m / (\sqrt{\hat v} + \epsilon)`, with :math:`\hat m` a mean
of the gradients and :math:`\sqrt{\hat v}` a norm of them,

.. math:: |\Delta d| \le \min\Bigl(2 \kappa,\; (1 + \kappa)
          \frac{\delta}{\sqrt{\hat v} + \epsilon}\Bigr), \qquad |d| \le \kappa = 1.05

(Cauchy-Schwarz, for the default betas and ten steps). With :math:`\epsilon = 10^{-4}`, about a
hundredth of a gradient here, no rounding matters: both precisions compare every parameter so.
With the default, :math:`10^{-8}`, rounding decides the sign of some float32 updates, in PyTorch as
well, so there is nothing to compare; in float64 every parameter is compared as before but for the
keys' bias, which must stay within the bound that its measured :math:`\delta` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from vitkit import ViT, nn, ops, optim
from vitkit.backend import Array, to_numpy

STEPS, BATCH, CLASSES, DIM = 10, 6, 5, 24
SIZES: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "in_channels": 2,
    "num_classes": CLASSES,
    "dim": DIM,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 40,
}
LONGEST = 72  # terms of the longest sums: 30 tokens in a batch, 32 numbers in a patch, 72 in qkv
MAX_NORM = 1.5
KAPPA = 1.05
NO_DECAY = ("pos_embed", "cls_token")


class Case(NamedTuple):
    """An optimizer of vitkit, torch's, and what torch calls the state."""

    ours: Callable[..., optim.Optimizer]
    theirs: str
    settings: dict[str, Any]
    weight_decay: float = 0.0
    slots: dict[str, str] = {}  # noqa: RUF012 (never changed)


MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
VELOCITY = {"m": "momentum_buffer"}
ADAM = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-4}
OPTIMIZERS = {
    "AdamW": Case(optim.AdamW, "AdamW", ADAM, 0.3, MOMENTS),
    "Adam": Case(optim.Adam, "Adam", ADAM, 0.0, MOMENTS),
    "Adam, decay": Case(optim.Adam, "Adam", ADAM, 0.3, MOMENTS),
    "SGD": Case(optim.SGD, "SGD", {"lr": 0.05}),
    "SGD, momentum": Case(optim.SGD, "SGD", {"lr": 0.02, "momentum": 0.9}, 0.1, VELOCITY),
    "SGD, Nesterov": Case(
        optim.SGD, "SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}, 0.1, VELOCITY
    ),
}


def after_warmup(torch: Any, optimizer: Any, steps: int, then: Any) -> Any:
    """Return torch's linear warm-up of so many steps, followed by another scheduler."""
    schedulers = torch.optim.lr_scheduler
    warmup = schedulers.LinearLR(optimizer, 1 / steps, 1.0, total_iters=steps - 1)
    return schedulers.SequentialLR(optimizer, [warmup, then], milestones=[steps])


SCHEDULES: dict[str, tuple[Callable[[float], Callable[[int], float]], Callable[[Any, Any], Any]]]
SCHEDULES = {
    "cosine": (
        lambda lr: optim.Cosine(lr, STEPS, warmup_steps=3),
        lambda t, o: after_warmup(t, o, 3, t.optim.lr_scheduler.CosineAnnealingLR(o, STEPS - 3)),
    ),
    "linear": (
        lambda lr: optim.Linear(lr, STEPS, warmup_steps=2, min_lr=0.25 * lr),
        lambda t, o: after_warmup(
            t, o, 2, t.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, total_iters=STEPS - 2)
        ),
    ),
    "steps": (
        lambda lr: optim.Step(lr, (3, 7), factor=0.3),
        lambda t, o: t.optim.lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.3),
    ),
}


def decay_groups(twin: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return torch's parameter groups: decay on matrices and kernels, and on nothing else."""
    split: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in twin.named_parameters():
        split[parameter.ndim >= 2 and name not in NO_DECAY].append(parameter)
    return [
        {"params": split[True], "weight_decay": weight_decay},
        {"params": split[False], "weight_decay": 0.0},
    ]


class Trajectory:
    """A model, its torch twin, and an optimizer with its schedule for each."""

    def __init__(
        self, case: Case, schedule: str, parity: Any, torch_vit: Any, torch_name: Any
    ) -> None:
        self.case, self.parity, self.torch_name = case, parity, torch_name
        self.model = parity.place(ViT("Ti/16", backend=None, **SIZES))
        self.twin = torch_vit(self.model.config)
        parity.copy_weights(self.model, self.twin, torch_name)
        self.ours = case.ours(**case.settings, weight_decay=case.weight_decay).attach(self.model)
        self.theirs = getattr(parity.torch.optim, case.theirs)(
            decay_groups(self.twin, case.weight_decay), **case.settings
        )
        make_rate, make_scheduler = SCHEDULES[schedule]
        self.rate = make_rate(self.ours.lr)
        self.scheduler = make_scheduler(parity.torch, self.theirs)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter, Any]]:
        """Yield each parameter's name, the parameter, and its twin."""
        twins = dict(self.twin.named_parameters())
        for name, parameter in self.model.named_parameters():
            yield name, parameter, twins[self.torch_name(name)]

    def step(self, step: int) -> None:
        """Make one update on both sides, and compare the loss and the clipped norm."""
        parity = self.parity
        images, timages = parity.normal(BATCH, 2, 8, 8)
        labels, tlabels = parity.labels(CLASSES, BATCH)

        ctx = nn.Context(train=True, step=step)
        logits = self.model.forward(images, ctx)
        loss, dlogits = ops.softmax_cross_entropy(logits, labels, xp=parity.xp)
        self.model.zero_grad()
        self.model.backward(dlogits, ctx)
        norm = optim.clip_global_norm(self.model.groups, MAX_NORM, xp=parity.xp)
        self.ours.step(lr=self.rate(step))

        tloss = parity.torch.nn.functional.cross_entropy(self.twin(timages), tlabels)
        self.theirs.zero_grad()
        tloss.backward()
        tnorm = parity.torch.nn.utils.clip_grad_norm_(self.twin.parameters(), MAX_NORM)
        self.theirs.step()
        self.scheduler.step()

        assert float(tnorm) > MAX_NORM  # so clipping did something
        parity.close(loss, tloss, reduction=LONGEST, what=f"step {step}: loss")
        parity.close(norm, tnorm, reduction=LONGEST, what=f"step {step}: norm")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trajectory(
    optimizer: str, schedule: str, parity: Any, torch_vit: Any, torch_name: Any
) -> None:
    run = Trajectory(OPTIMIZERS[optimizer], schedule, parity, torch_vit, torch_name)
    for step in range(STEPS):
        run.step(step)
        for name, parameter, twin in run.parameters():
            parity.close(parameter.value, twin, reduction=LONGEST, what=f"step {step}: {name}")
    state = run.ours.state_dict()
    assert state["step"] == STEPS
    for name, _, twin in run.parameters():
        for slot, called in run.case.slots.items():
            ours, theirs = parity.xp.asarray(state[f"{name}.{slot}"]), run.theirs.state[twin]
            parity.close(ours, theirs[called], reduction=LONGEST, what=f"{called} of {name}")


@pytest.mark.parametrize("parity", ["float64"], indirect=True)
@pytest.mark.parametrize("optimizer", ["AdamW", "Adam"])
def test_trajectory_with_the_default_epsilon(
    optimizer: str, parity: Any, torch_vit: Any, torch_name: Any
) -> None:
    case = OPTIMIZERS[optimizer]
    case = case._replace(settings={"lr": case.settings["lr"]})
    run = Trajectory(case, "cosine", parity, torch_vit, torch_name)
    delta, drift = 0.0, 0.0
    for step in range(STEPS):
        run.step(step)
        for name, parameter, twin in run.parameters():
            if name.endswith("attn.qkv.bias"):
                delta = max(delta, *(np.abs(g).max() for g in keys(parameter.grad, twin.grad)))
        assert delta < 1e-15
        drift += run.rate(step) * (1 + KAPPA) * 2 * delta / 1e-8
        for name, parameter, twin in run.parameters():
            value, other = parameter.value, twin
            if name.endswith("attn.qkv.bias"):
                ours, theirs = keys(value, twin)
                assert np.abs(ours - theirs).max() <= drift
                value = parity.xp.concatenate((value[:DIM], value[2 * DIM :]))
                other = parity.torch.cat((twin[:DIM], twin[2 * DIM :]))
            parity.close(value, other, reduction=LONGEST, what=f"step {step}: {name}")


def keys(array: Array, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of the keys, of what is laid out as queries, keys and values."""
    return to_numpy(array)[DIM : 2 * DIM], tensor.detach().numpy()[DIM : 2 * DIM]
