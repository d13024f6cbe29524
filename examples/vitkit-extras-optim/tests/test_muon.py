"""Muon keeps the contract of optimizers, and is what PyTorch calls Muon."""

import numpy as np
import pytest

from vitkit.nn import Linear
from vitkit.testing import check_optimizer
from vitkit_extras_optim import Muon, muon_reference
from vitkit_extras_optim.muon import orthogonalized


def test_it_keeps_the_contract() -> None:
    check_optimizer(Muon, reference=muon_reference)


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_it_is_that_of_pytorch(shape: tuple[int, int], nesterov: bool, adjust_lr: str) -> None:
    """PyTorch iterates in bfloat16, whose eight bits are 0.4 %, five times over."""
    torch = pytest.importorskip("torch")
    layer = Linear(shape[1], shape[0]).place(np, seed=1)
    ours = Muon(0.1, nesterov=nesterov, adjust_lr=adjust_lr, weight_decay=0.05).attach(layer)
    w = torch.nn.Parameter(torch.from_numpy(layer.weight.value.copy()))
    theirs = torch.optim.Muon(
        [w], 0.1, weight_decay=0.05, nesterov=nesterov, adjust_lr_fn=adjust_lr
    )
    rng = np.random.default_rng(2)
    for _ in range(3):
        before = layer.weight.value.copy()
        w.data = torch.from_numpy(before.copy())
        layer.weight.grad[...] = rng.standard_normal(shape)
        w.grad = torch.from_numpy(layer.weight.grad.copy())
        ours.step()
        theirs.step()
        step, expected = layer.weight.value - before, w.detach().numpy() - before
        assert np.linalg.norm(step - expected) < 0.02 * np.linalg.norm(expected)


def test_every_direction_is_learned_at_the_same_pace() -> None:
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for n in (16, 8))
    slow = (u * np.geomspace(1, 0.01, 8)) @ v.T
    singular = np.linalg.svd(orthogonalized(slow, 5, xp=np), compute_uv=False)
    assert 0.6 < singular.min() < singular.max() < 1.25


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adjust_lr must be one of original, match_rms_adamw"):
        Muon(adjust_lr="none")
    with pytest.raises(ValueError, match=r"momentum must be a number >= 0 and < 1; got 1\.0"):
        Muon(momentum=1.0)
