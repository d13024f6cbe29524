"""PyTorch: eager, with the fused AdamW, compiled, in bfloat16 by autocast.

Attention is ``scaled_dot_product_attention``; with ``fused`` and all that follow, AdamW is one
call. Tuning is a matter of the environment, see :mod:`contenders.entries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from contenders import task
from contenders.serve import Skip, Work, one_line, short_of_memory

MOST = 25
"""How many operations a profile lists."""


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        y = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, c: task.Configuration) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.dim, c.mlp_dim), nn.Linear(c.mlp_dim, c.dim)
        self.form = "tanh" if c.activation == "gelu_tanh" else "none"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(gelu(self.fc1(x), approximate=self.form))


class Block(nn.Module):
    def __init__(self, c: task.Configuration) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(c.dim, task.LAYER_NORM_EPSILON)
        self.attn = Attention(c.dim, c.num_heads)
        self.norm2 = nn.LayerNorm(c.dim, task.LAYER_NORM_EPSILON)
        self.mlp = Mlp(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TorchViT(nn.Module):
    """The model of the papers under timm's names, which are vitkit's too."""

    def __init__(self, c: task.Configuration) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, c.tokens, c.dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, c.dim, *[c.patch_size] * 2)})
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.depth)])
        self.norm = nn.LayerNorm(c.dim, task.LAYER_NORM_EPSILON)
        self.head = nn.Linear(c.dim, c.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def prepare(mode: str, order: task.Order) -> Work:
    """Return a training step or an inference of PyTorch."""
    model = TorchViT(order.sizes)
    model.load_state_dict(load_file(order.weights))
    images, labels = map(torch.from_numpy, task.images_and_labels(order.sizes))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode)
    if order.task == "train":
        adamw = optimizer(model.named_parameters(), order.decayed, fused=mode != "eager")
        run = trainer(model, adamw, autocast, images, labels, compiled="compiled" in mode)
    else:
        run = inferrer(model, autocast, images, compiled="compiled" in mode)
    return Work(run, lambda y: y.detach().double().ravel().tolist(), lambda: profile(run))


def optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    decayed: tuple[str, ...],
    fused: bool,
    lr: float = task.LEARNING_RATE,
) -> torch.optim.Optimizer:
    """Return AdamW that spares the parameters from weight decay which vitkit spares."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in parameters:
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": task.WEIGHT_DECAY},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=task.BETAS,
        eps=task.EPSILON,
        fused=True if fused else None,
    )


def trainer(
    model: nn.Module,
    adamw: torch.optim.Optimizer,
    autocast: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    compiled: bool,
) -> Callable[[], torch.Tensor]:
    """Return a function that makes one training step and returns its loss."""

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast:
            return cross_entropy(model(x), y)

    forward = compile_it(loss_of) if compiled else loss_of

    def step() -> torch.Tensor:
        adamw.zero_grad()
        loss = forward(images, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), task.MAX_GRAD_NORM)
        adamw.step()
        return loss

    return step


def inferrer(
    model: nn.Module, autocast: Any, images: torch.Tensor, compiled: bool
) -> Callable[[], torch.Tensor]:
    """Return a function that returns the logits."""

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        with autocast:
            return model(x)

    forward = compile_it(logits_of) if compiled else logits_of
    model.eval()

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return forward(images)

    return infer


def compile_it(function: Callable[..., torch.Tensor], **how: Any) -> Callable[..., torch.Tensor]:
    """Return the function compiled; Skip at its first call if that does not work here.

    It needs a C++ compiler, and says so in many ways.
    """
    compiled, worked = torch.compile(function, **how), False

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        nonlocal worked
        if worked:
            return compiled(*tensors)
        try:
            result = compiled(*tensors)
        except Exception as error:
            if short_of_memory(error):
                raise
            raise Skip(f"torch.compile does not work here: {one_line(error)}") from error
        worked = True
        return result

    return call


def profile(run: Callable[[], Any]) -> dict[str, float]:
    """Return milliseconds of each operation in one run, those that it calls not counted with it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run()
    spent = {event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()}
    longest = sorted(spent.items(), key=lambda item: -item[1])
    return dict(longest[:MOST])
