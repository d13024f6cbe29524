"""The same numbers for vitkit and for PyTorch, one comparison, and a report of the worst error.

Torch computes on the CPU in the precision under test, on one thread; vitkit computes on the array
module under test. Tolerances are those of :func:`vitkit.testing.assert_close`, of the largest
expected number of each array: 1e-10 in float64, and 1e-5 times the root of the length of the
reduction in float32, which every test states.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.models import ViTConfig
from vitkit.testing import assert_close
from vitkit.testing.gradients import RTOL

# From timm's names, which are vitkit's, to those of torch.nn's own modules.
TORCH_NAMES = (
    ("patch_embed.proj.", "patches."),
    ("attn.qkv.", "self_attn.in_proj_"),
    ("attn.proj.", "self_attn.out_proj."),
    ("mlp.fc1.", "linear1."),
    ("mlp.fc2.", "linear2."),
    ("pre_logits.fc.", "pre_logits."),
)


class Error(NamedTuple):
    """How far one array was off: as a share of what is allowed, and of its largest number."""

    share: float
    relative: float
    where: str


ERRORS = pytest.StashKey[dict[str, Error]]()


@pytest.fixture(scope="session")
def torch() -> Iterator[Any]:
    """Return PyTorch, deterministic, on one thread, without TF32; skip where it is missing."""
    torch = pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")
    if os.environ.get("CUPY_TF32") == "1":
        pytest.fail("CUPY_TF32=1 keeps 10 bits of float32; unset it to compare with PyTorch")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    yield torch
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(params=["float64", "float32"])
def parity(
    request: pytest.FixtureRequest, torch: Any, xp: ArrayModule, rng: np.random.Generator
) -> Parity:
    """Return what a test needs to compare the two libraries, at each precision."""
    worst = request.config.stash.setdefault(ERRORS, {})
    return Parity(torch, xp, request.param, rng, request.node.name, worst)


class Parity:
    """Both libraries at one precision."""

    def __init__(
        self,
        torch: Any,
        xp: ArrayModule,
        dtype: str,
        rng: np.random.Generator,
        test: str,
        worst: dict[str, Error],
    ) -> None:
        self.torch, self.xp, self.dtype, self.rng = torch, xp, dtype, rng
        self._test, self._worst = test, worst

    def leaf(self, values: Any) -> tuple[Array, Any]:
        """Return the same numbers as an array of ``xp`` and as a tensor that wants a gradient."""
        host = np.asarray(values, self.dtype)
        return self.xp.asarray(host), self.torch.tensor(host, requires_grad=True)

    def normal(self, *shape: int, scale: float = 1.0) -> tuple[Array, Any]:
        """Return normal random numbers as :meth:`leaf` does."""
        return self.leaf(scale * self.rng.standard_normal(shape))

    def labels(self, classes: int, *shape: int) -> tuple[Array, Any]:
        """Return random class indices, as an array of ``xp`` and as a tensor."""
        host = self.rng.integers(0, classes, shape)
        return self.xp.asarray(host), self.torch.tensor(host)

    def close(self, actual: Array, expected: Any, *, reduction: int, what: str = "") -> None:
        """Assert that an array has the tensor's numbers and the dtype of this precision."""
        assert expected is not None, f"{what}: torch has no gradient"
        assert actual.dtype == self.dtype, f"{what}: {actual.dtype}, expected {self.dtype}"
        want = expected.detach().numpy()
        self._note(to_numpy(actual), want, reduction, what)
        try:
            assert_close(actual, want, reduction=reduction)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from None

    def _note(self, got: np.ndarray, want: np.ndarray, reduction: int, what: str) -> None:
        """Remember the worst error of this precision."""
        largest = np.abs(want).max(initial=0.0)
        if got.shape != want.shape or not largest:
            return
        relative = float(np.abs(got.astype("float64") - want).max() / largest)
        roots = math.sqrt(reduction) if self.dtype == "float32" else 1.0
        error = Error(relative / (RTOL[got.dtype] * roots), relative, f"{self._test} {what}")
        if error > self._worst.get(self.dtype, Error(0, 0, "")):
            self._worst[self.dtype] = error

    def place(self, layer: nn.Module) -> nn.Module:
        """Place a layer and give every parameter random numbers, so that none is zero."""
        layer.place(self.xp, seed=1, dtype=self.dtype)
        for _, parameter in layer.named_parameters():
            noise = 0.2 * self.rng.standard_normal(parameter.shape)
            parameter.value += self.xp.asarray(noise, dtype=self.dtype)
        return layer

    def copy_weights(self, layer: nn.Module, module: Any, name: Callable[[str], str]) -> None:
        """Give the torch module the layer's weights; every one of its parameters gets some."""
        module.to(getattr(self.torch, self.dtype))
        weights = {name(key): self.torch.tensor(value) for key, value in layer.state_dict().items()}
        module.load_state_dict(weights, strict=True)

    def gradients_close(
        self, layer: nn.Module, module: Any, name: Callable[[str], str], *, reduction: int
    ) -> None:
        """Assert that every parameter of the layer has the gradient of its torch twin."""
        twins = dict(module.named_parameters())
        for key, parameter in layer.named_parameters():
            self.close(
                parameter.grad, twins.pop(name(key)).grad, reduction=reduction, what=f"d {key}"
            )
        assert not twins

    def layer_close(
        self,
        layer: nn.Module,
        module: Any,
        shape: tuple[int, ...],
        *,
        reduction: int,
        name: Callable[[str], str] = lambda key: key,
        call: Callable[[Any, Any], Any] = lambda module, x: module(x),
        ctx: nn.Context | None = None,
        uses: int = 1,
    ) -> None:
        """Assert that a layer has the value and every gradient of a torch module.

        The layer is placed, given random weights, and applied ``uses`` times in one pass;
        ``call(module, x)`` says how the torch module is called.
        """
        if ctx is None:
            ctx = nn.Context(keep=True)
        self.copy_weights(self.place(layer), module, name)
        x, tx = self.normal(*shape)
        y, ty = x, tx
        for _ in range(uses):
            y, ty = layer.forward(y, ctx), call(module, ty)
        self.close(y, ty, reduction=reduction, what="y")
        dy, tdy = self.normal(*y.shape)
        layer.zero_grad()
        dx = dy
        for _ in range(uses):
            dx = layer.backward(dx, ctx)
        ty.backward(tdy)
        assert len(ctx) == 0
        self.close(dx, tx.grad, reduction=reduction, what="dx")
        self.gradients_close(layer, module, name, reduction=reduction)


def torch_name(name: str) -> str:
    """Return what torch.nn's modules call the parameter ``name`` of vitkit."""
    for ours, theirs in TORCH_NAMES:
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(name="torch_name")
def torch_name_fixture() -> Callable[[str], str]:
    """Return the function from vitkit's names to those of torch.nn's modules."""
    return torch_name


class Draws:
    """The masks of a pass, drawn anew from the documented keys: seed, step and a count."""

    def __init__(self, parity: Parity, seed: int, step: int) -> None:
        self.parity, self.seed, self.step, self.count = parity, seed, step, 0

    def mask(self, shape: tuple[int, ...], rate: float) -> Any:
        """Return the tensor that the next dropout multiplies by; ones, undrawn, at rate 0."""
        tensor = self.parity.torch.tensor
        if rate == 0:
            return tensor(np.ones(shape, self.parity.dtype))
        self.count += 1
        numbers = philox(self.seed, "dropout", self.step, self.count).random(shape, np.float32)
        return tensor((numbers >= rate).astype(self.parity.dtype) / (1 - rate))

    def put_in_block(self, layer: Any, batch: int, tokens: int, rate: float, path: float) -> None:
        """Replace the dropouts of a TransformerEncoderLayer, in the order of the forward pass."""
        dim, mlp_dim = layer.linear1.in_features, layer.linear1.out_features
        whole, sample = (batch, tokens, dim), (batch, 1, 1)
        layer.dropout1 = self.times(self.mask(whole, rate) * self.mask(sample, path))
        layer.dropout = self.times(self.mask((batch, tokens, mlp_dim), rate))
        layer.dropout2 = self.times(self.mask(whole, rate) * self.mask(sample, path))

    def times(self, mask: Any) -> Any:
        """Return a torch module that multiplies by the mask."""

        class Times(self.parity.torch.nn.Module):  # type: ignore[name-defined,misc]
            def forward(self, x: Any) -> Any:
                return (x * mask).to(x.dtype)  # which may be narrower than the mask's

        return Times()


@pytest.fixture
def draws(parity: Parity) -> Callable[[int, int], Draws]:
    """Return a function that draws the masks of the pass of a seed and a step."""
    return lambda seed, step: Draws(parity, seed, step)


def torch_block(torch: Any, dim: int, heads: int, mlp_dim: int, act: str, eps: float) -> Any:
    """Return PyTorch's own pre-norm encoder layer."""

    def gelu_tanh(x: Any) -> Any:
        return torch.nn.functional.gelu(x, approximate="tanh")

    return torch.nn.TransformerEncoderLayer(
        dim,
        heads,
        mlp_dim,
        dropout=0.0,
        activation=gelu_tanh if act == "gelu_tanh" else act,
        layer_norm_eps=eps,
        batch_first=True,
        norm_first=True,
    )


@pytest.fixture(name="torch_block")
def torch_block_fixture(torch: Any) -> Callable[..., Any]:
    """Return the function that makes PyTorch's own pre-norm encoder layer."""
    return lambda *args: torch_block(torch, *args)


@pytest.fixture
def torch_vit(torch: Any) -> Callable[[ViTConfig], Any]:
    """Return a function that builds a ViT out of PyTorch's own modules."""
    tnn = torch.nn

    class TorchViT(tnn.Module):  # type: ignore[name-defined,misc]
        def __init__(self, c: ViTConfig) -> None:
            super().__init__()
            self.patches = tnn.Conv2d(c.in_channels, c.dim, c.patch_size, stride=c.patch_size)
            self.cls_token = tnn.Parameter(torch.empty(1, 1, c.dim)) if c.pool == "cls" else None
            self.pos_embed = tnn.Parameter(torch.empty(1, c.num_tokens, c.dim))
            self.pos_drop = tnn.Identity()
            sizes = (c.dim, c.num_heads, c.mlp_dim, c.activation, c.layer_norm_eps)
            self.blocks = tnn.ModuleList(torch_block(torch, *sizes) for _ in range(c.depth))
            self.norm = tnn.LayerNorm(c.dim, c.layer_norm_eps)
            size = c.representation_size
            self.pre_logits = tnn.Linear(c.dim, size) if size else None
            self.head = tnn.Linear(size or c.dim, c.num_classes)

        def features(self, images: Any) -> Any:
            x = self.patches(images).flatten(2).transpose(1, 2)
            if self.cls_token is not None:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            x = self.pos_drop(x + self.pos_embed)
            for block in self.blocks:
                x = block(x)
            x = self.norm(x)
            return x.mean(dim=1) if self.cls_token is None else x[:, 0]

        def forward(self, images: Any) -> Any:
            x = self.features(images)
            return self.head(x if self.pre_logits is None else torch.tanh(self.pre_logits(x)))

    return TorchViT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    worst = terminalreporter.config.stash.get(ERRORS, {})
    for dtype, error in sorted(worst.items()):
        terminalreporter.write_line(
            f"parity with PyTorch, {dtype}: worst error {error.relative:.2g} of the largest "
            f"number, {100 * error.share:.2g} % of what is allowed ({error.where})"
        )
