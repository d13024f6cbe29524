"""Trajectories against torch.optim, and against the papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit.optim import LAMB, SGD, Adam, AdamW, Lion, Optimizer, clip_global_norm
from vitkit.testing import assert_close

STEPS = 12

AGAINST_TORCH: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sgd": (SGD(0.1), "SGD", {}),
    "sgd with decay": (SGD(0.1, weight_decay=0.3), "SGD", {}),
    "sgd with momentum": (SGD(0.1, momentum=0.9), "SGD", {"momentum": 0.9}),
    "sgd with momentum and decay": (
        SGD(0.1, momentum=0.9, weight_decay=0.3),
        "SGD",
        {"momentum": 0.9},
    ),
    "sgd with Nesterov": (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
        "SGD",
        {"momentum": 0.9, "nesterov": True},
    ),
    "adam": (Adam(0.03), "Adam", {}),
    "adam with decay": (
        Adam(0.03, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
        "Adam",
        {"betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "adamw": (AdamW(0.03), "AdamW", {}),
    "adamw with decay": (
        AdamW(0.03, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
        "AdamW",
        {"betas": (0.8, 0.95), "eps": 1e-3},
    ),
}
EACH = [
    SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
    Adam(0.03, weight_decay=0.3),
    AdamW(0.03, weight_decay=0.3),
    LAMB(0.03, weight_decay=0.3),
    Lion(0.03, weight_decay=0.3),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", AGAINST_TORCH)
def test_follows_torch(
    case: str, dtype: str, make_model: Any, set_gradients: Any, torch: Any, to_torch: Any
) -> None:
    optimizer, theirs, settings = AGAINST_TORCH[case]
    model = make_model(dtype)
    weights = to_torch(model)
    decayed = {name for name, p in model.named_parameters() if p.decay}
    assert 0 < len(decayed) < len(weights)
    reference = getattr(torch.optim, theirs)(
        [
            {
                "params": [p for name, p in weights.items() if (name in decayed) is decay],
                "weight_decay": optimizer.weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ],
        lr=optimizer.lr,
        **settings,
    )
    optimizer.attach(model)
    for step in range(STEPS):  # after every step: t = 1, 2, 3 are where bias correction shows
        for name, gradient in set_gradients(model, step).items():
            weights[name].grad = torch.from_numpy(gradient)
        reference.step()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert_close(parameter.value, weights[name].detach().numpy())


def lamb_by_the_paper(w: Any, g: Any, m: Any, v: Any, t: int, decay: float) -> Any:
    """Algorithm 2 of arXiv:1904.00962, line by line."""
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
    u = r + decay * w
    return w - 0.03 * (np.linalg.norm(w) / np.linalg.norm(u)) * u, m, v


@pytest.mark.parametrize("always_adapt", [True, False])
def test_lamb_follows_the_paper(always_adapt: bool, make_model: Any, set_gradients: Any) -> None:
    model = make_model()
    optimizer = LAMB(0.03, weight_decay=0.3, always_adapt=always_adapt).attach(model)
    expected = model.state_dict()
    m = {name: np.zeros_like(value) for name, value in expected.items()}
    v = {name: np.zeros_like(value) for name, value in expected.items()}
    plain = make_model()
    adam = Adam(0.03, eps=1e-6).attach(plain)
    for t in range(1, STEPS + 1):
        set_gradients(plain, t)
        adam.step()
        for name, g in set_gradients(model, t).items():
            decay = 0.0 if name.endswith(("bias", "embed", "token")) else 0.3
            expected[name], m[name], v[name] = lamb_by_the_paper(
                expected[name], g, m[name], v[name], t, decay
            )
        optimizer.step()
        without_adaptation = plain.state_dict()
        for name, parameter in model.named_parameters():
            adapted = parameter.decay or always_adapt
            assert_close(parameter.value, (expected if adapted else without_adaptation)[name])


def test_lion_follows_the_paper(make_model: Any, set_gradients: Any) -> None:
    model = make_model()
    optimizer = Lion(0.03, betas=(0.9, 0.99), weight_decay=0.3).attach(model)
    expected = model.state_dict()
    m = {name: np.zeros_like(value) for name, value in expected.items()}
    for t in range(STEPS):
        for name, g in set_gradients(model, t).items():
            decay = 0.0 if name.endswith(("bias", "embed", "token")) else 0.3
            c = 0.9 * m[name] + 0.1 * g
            expected[name] = expected[name] - 0.03 * (np.sign(c) + decay * expected[name])
            m[name] = 0.99 * m[name] + 0.01 * g
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert_close(parameter.value, expected[name])


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: type(o).__name__)
def test_flat_buffers_equal_single_parameters(
    optimizer: Optimizer, make_model: Any, set_gradients: Any
) -> None:
    flat, single = make_model(), make_model()
    settings: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if isinstance(optimizer, SGD):
        settings |= {"momentum": 0.9, "nesterov": True}
    one_by_one = type(optimizer)(**settings)
    one_by_one.elementwise = False
    optimizer.attach(flat)
    one_by_one.attach(single)
    if optimizer.elementwise:
        assert len(optimizer._segments) == 2 < len(one_by_one._segments)
    for step in range(3):
        set_gradients(flat, step)
        set_gradients(single, step)
        optimizer.step()
        one_by_one.step()
    expected = single.state_dict()
    for name, value in flat.state_dict().items():
        assert_close(value, expected[name])


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: type(o).__name__)
def test_keeps_float32_and_the_gradients(
    optimizer: Optimizer, make_model: Any, set_gradients: Any
) -> None:
    model = make_model("float32")
    optimizer.attach(model)
    before = set_gradients(model, 0)
    optimizer.step(np.float64(0.01))  # a wide scalar must not widen the arrays
    for name, parameter in model.named_parameters():
        assert parameter.value.dtype == np.float32
        np.testing.assert_array_equal(parameter.grad.tolist(), before[name].tolist())
    state = optimizer.state_dict()
    assert {a.dtype for key, a in state.items() if key != "step"} == {np.dtype(np.float32)}
    assert state["step"] == 1


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: type(o).__name__)
def test_waits_for_no_device(optimizer: Optimizer, make_model: Any, set_gradients: Any) -> None:
    from vitkit.testing import strict_device

    model = make_model("float32", strict_device.xp)
    optimizer.attach(model)
    set_gradients(model, 0)
    with strict_device.count_syncs() as syncs:
        clip_global_norm(model.groups, 1.0, xp=model.xp)
        optimizer.step()
        optimizer.step()
    assert syncs == []


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: type(o).__name__)
def test_continues_from_its_state_bit_for_bit(
    optimizer: Optimizer, make_model: Any, set_gradients: Any
) -> None:
    model, resumed = make_model("float32"), make_model("float32")
    optimizer.attach(model)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step()
    weights, state = model.state_dict(), optimizer.state_dict()

    def three_more(m: Any) -> dict[str, np.ndarray]:
        for step in range(3, 6):
            set_gradients(m, step)
            optimizer.step()
        return {**m.state_dict(), **optimizer.state_dict()}

    straight = three_more(model)
    optimizer.attach(resumed)
    assert optimizer.steps == 0
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert optimizer.steps == 3
    again = three_more(resumed)
    assert again.keys() == straight.keys()
    for name, array in straight.items():
        assert again[name].tobytes() == array.tobytes(), name


def test_lr_of_a_step_overrides_for_that_step_only(make_model: Any, set_gradients: Any) -> None:
    model = make_model()
    optimizer = SGD(0.5).attach(model)
    before = model.state_dict()
    gradients = set_gradients(model, 0)
    optimizer.step(lr=0.25)
    optimizer.step()
    for name, value in model.state_dict().items():
        assert_close(value, before[name] - 0.75 * gradients[name])
