"""PyTorch on a GPU in pure bfloat16: eager, compiled, compiled with ``max-autotune``.

Weights, activations and their gradients are bfloat16. AdamW, fused, updates a float32 copy of the
weights by gradients that are widened for it and clipped there; then that copy is rounded to the
weights. All three are single calls for all parameters.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from contenders import device, task
from contenders.serve import Skip, Work, one_line, timed
from contenders.torch_contender import TorchViT, compile_it, optimizer

MODES: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compiled": {"dynamic": False},
    "max_autotune": {"dynamic": False, "mode": "max-autotune"},
}
"""How each is compiled."""
KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
"""What computes attention; whichever is faster is used."""
HALF = torch.bfloat16


class Masters:
    """The float32 weights that AdamW updates, of which the model's are the rounded ones.

    Parameters
    ----------
    model : torch.nn.Module
        The model in float32; it is in bfloat16 afterwards.
    decayed : tuple of str
        The parameters that weight decay applies to.
    """

    def __init__(self, model: nn.Module, decayed: tuple[str, ...]) -> None:
        named = list(model.named_parameters())
        copies = [(name, nn.Parameter(each.detach().clone())) for name, each in named]
        self.low, self.high = [each for _, each in named], [each for _, each in copies]
        model.to(HALF)  # changes the parameters where they are
        for each in self.high:
            each.grad = torch.zeros_like(each)
        self.adamw = optimizer(copies, decayed, fused=True, lr=device.LEARNING_RATE)

    @torch.no_grad()
    def update(self) -> torch.Tensor:
        """Make one step by the model's gradients; return their norm."""
        torch._foreach_copy_([each.grad for each in self.high], [each.grad for each in self.low])
        norm = nn.utils.clip_grad_norm_(self.high, task.MAX_GRAD_NORM, foreach=True)
        self.adamw.step()
        torch._foreach_copy_(self.low, self.high)
        return norm


def place(order: task.Order) -> str:
    """Return what PyTorch calls the device of an order."""
    if order.device != "cuda":
        return "cpu"
    if not torch.cuda.is_available():
        raise Skip("PyTorch sees no GPU")
    return "cuda"


def made(order: task.Order) -> tuple[TorchViT, device.Device, torch.Tensor, torch.Tensor]:
    """Return the model in float32, the device, and images in bfloat16 and labels on it."""
    where = place(order)
    gpu = device.of_torch(order.device)
    gpu.start()
    model = TorchViT(order.sizes)
    model.load_state_dict(load_file(order.weights))
    images, labels = (torch.from_numpy(each).to(where) for each in task.read_data(order))
    return model.to(where), gpu, images.to(HALF), labels


def prepare(mode: str, order: task.Order) -> Work:
    """Return a training step or an inference of PyTorch."""
    if MODES[mode] is not None:
        torch.compiler.reset()  # or the shapes of the last order would count as seen
    c, train = order.sizes, order.task == "train"
    shape = (c.batch_size, c.tokens, c.num_heads, c.dim // c.num_heads)
    notes = fastest_attention(place(order), shape, train)
    model, gpu, images, labels = made(order)
    run = (trainer if train else inferrer)(model, images, labels, order, MODES[mode])

    def numbers(result: Any) -> list[float]:
        if train:
            return [float(each) for each in result]
        return result[:8].double().ravel().tolist()

    return Work(
        lambda: gpu.waited(run),
        numbers,
        notes=notes,
        repeat=lambda count: gpu.repeat(run, count),
        peak=lambda: gpu.taken,
    )


def trainer(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: task.Order,
    how: dict[str, Any] | None,
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function that makes one training step and returns its loss and gradient's norm."""
    masters = Masters(model, order.decayed)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(x).float(), y)

    forward = loss_of if how is None else compile_it(loss_of, **how)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss = forward(images, labels)
        loss.backward()
        return loss.detach(), masters.update()

    return step


def inferrer(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: task.Order,
    how: dict[str, Any] | None,
) -> Callable[[], torch.Tensor]:
    """Return a function that returns the logits."""
    model.to(HALF).eval()
    forward = model if how is None else compile_it(model, **how)

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return forward(images)

    return infer


def evidence(mode: str, order: task.Order, file: Path) -> dict[str, Any]:
    """Write the gradients of one step, or the logits, to a file; return the loss."""
    model, _, images, labels = made(order)
    model.to(HALF)
    logits = model(images)
    if order.task == "infer":
        save_file({"logits": logits.detach().float().cpu()}, file)
        return {"loss": None}
    loss = cross_entropy(logits.float(), labels)
    loss.backward()
    gradients = {name: each.grad.float().cpu() for name, each in model.named_parameters()}
    save_file(gradients, file)
    return {"loss": float(loss.detach())}


def fastest_attention(where: str, shape: tuple[int, ...], train: bool) -> dict[str, Any]:
    """Let PyTorch's ways to compute attention race, and use the fastest from then on.

    Parameters
    ----------
    where : str
        What PyTorch calls the device.
    shape : tuple of int
        Batch, tokens, heads, and how wide a head is.
    train : bool
        Whether the gradient counts too.

    Returns
    -------
    dict
        ``attention``, which one, and ``attention_ms`` of each, or why it cannot run.
    """
    found: dict[str, float | str] = {}
    for name, kernel in KERNELS.items():
        try:
            with sdpa_kernel(kernel):
                found[name] = 1e3 * attention_seconds(where, shape, train)
        except RuntimeError as error:
            found[name] = one_line(error)
    able = {name: ms for name, ms in found.items() if isinstance(ms, float)}
    best = min(able, key=able.__getitem__, default="what PyTorch chooses")
    if able:
        cuda = torch.backends.cuda
        cuda.enable_cudnn_sdp(best == "cuDNN")
        cuda.enable_flash_sdp(best == "flash")
        cuda.enable_mem_efficient_sdp(False)
        cuda.enable_math_sdp(True)  # what is left where neither serves
    return {"attention": best, "attention_ms": found}


def attention_seconds(
    where: str, shape: tuple[int, ...], train: bool, rounds: int = 5, count: int = 5
) -> float:
    """Return the seconds of one attention of a shape, and of its gradient."""
    gpu = device.of_torch(where)
    batch, tokens, heads, width = shape
    packed = (batch, tokens, 3, heads, width)
    qkv = torch.randn(packed, device=where, dtype=HALF, requires_grad=train)
    dy = torch.randn((batch, heads, tokens, width), device=where, dtype=HALF)

    def once() -> None:
        y = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        if train:
            torch.autograd.grad(y, [qkv], dy)

    def turn() -> None:
        for _ in range(count):
            once()
        gpu.synchronize()

    turn()
    return statistics.median(timed(turn)[0] for _ in range(rounds)) / count


def ceilings(mode: str, order: task.Order, file: Path) -> dict[str, Any]:
    """Return the GPU's name, its rate of bfloat16 products, and how fast it copies its memory."""
    where = place(order)
    size, numbers = (8192, 2**30) if where == "cuda" else (64, 2**14)
    name = torch.cuda.get_device_name() if where == "cuda" else "none"
    gpu = device.of_torch(order.device)
    a, b = (torch.randn(size, size, device=where, dtype=HALF) for _ in range(2))
    given, taken = (torch.zeros(numbers, device=where) for _ in range(2))
    given.normal_()
    found = gpu.ceilings(
        lambda: torch.mm(a, b), 2.0 * size**3, lambda: taken.copy_(given), given.nbytes
    )
    return {"gpu": name, "by": f"PyTorch, {size} x {size} bfloat16", **found}
