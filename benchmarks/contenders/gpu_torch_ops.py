"""The operations of vitkit by the functions of PyTorch that mean the same, on a GPU as one graph.

What vitkit holds in bfloat16 is bfloat16 here too; where vitkit reads float32, as for the norms of
a residual stream in float32, PyTorch in pure bfloat16 reads half as much.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from contenders import device, task, torch_ops
from contenders.gpu_cases import HALF, HEAD, drawn, gpu_cases, place, scale, small
from contenders.gpu_torch import ceilings as ceilings  # what a server calls
from contenders.gpu_torch import fastest_attention
from contenders.gpu_torch import place as device_of
from contenders.op_cases import Case
from contenders.serve import Work, one_line, short_of_memory
from contenders.sums import sampled, sums

Tensors = tuple[torch.Tensor, ...]
Made = Callable[[], Tensors]
LOOP = 10
"""How often a graph does an operation, so that asking for it takes no time of note."""


def prepare(mode: str, order: task.Order) -> Work:
    """Return one operation, or its gradient."""
    where, gpu = device_of(order), device.of_torch(order.device)
    case = gpu_cases(order.sizes)[order.task]
    gpu.rest()
    notes = {}
    if "attention" in case.op:
        batch, tokens, width = case.shapes["qkv"] if "qkv" in case.shapes else case.shapes["x"]
        heads = width // (3 * HEAD) if "qkv" in case.shapes else order.sizes.num_heads
        width = HEAD if "qkv" in case.shapes else width // heads
        backward = case.op != case.forward
        shape = (batch, tokens, heads, width)
        notes["by"] = fastest_attention(where, shape, backward)["attention"]
    make = MAKERS[case.op] if case.op in MAKERS else torch_ops.maker(case)
    run = make(tensors(case, order.sizes, where))
    if where == "cpu":
        return Work(run, numbers_of(case), notes=notes, repeat=lambda n: gpu.repeat(run, n))
    repeat, notes["remark"] = looped(lambda: make(tensors(case, order.sizes, where)), gpu)
    return Work(lambda: gpu.waited(run), numbers_of(case), notes=notes, repeat=repeat)


def looped(make: Callable[[], Made], gpu: device.Device) -> tuple[Callable[[int], float], str]:
    """Return what times an operation, and what is to be said of it: by a graph if it has one."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a gradient runs where its forward pass has run
        run = make()
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(LOOP):
                run()
    except Exception as error:  # whatever it is, it can still be timed
        if short_of_memory(error):
            raise
        return lambda wanted: gpu.repeat(run, wanted), f"without a graph: {one_line(error)}"
    return (
        lambda wanted: (
            gpu.repeat(graph.replay, -(-wanted // LOOP)) / LOOP * (wanted / -(-wanted // LOOP))
        ),
        "",
    )


@functools.cache
def block_of(where: str) -> torch.Tensor:
    """Return the drawn numbers on the device."""
    return torch.from_numpy(drawn()).to(where)


def tensors(case: Case, c: task.Configuration, where: str) -> Any:
    """Return the arrays of a case on the device, rounded if the case is of bfloat16."""
    made = {
        name: torch.from_numpy(each).to(where) for name, each in small(case, c.num_classes).items()
    }
    for name, shape in case.shapes.items():
        if name not in made:
            start, size, times = place(name, shape)
            whole = block_of(where).repeat(times)[start : start + size] * scale(name, shape)
            rounds = case.precision == HALF and name != "w"
            made[name] = whole.to(torch.bfloat16 if rounds else torch.float32).reshape(shape)
    return SimpleNamespace(**made, c=c, case=case, autocast=False)


def numbers_of(case: Case) -> Callable[[Tensors], list[float]]:
    """Return what makes the numbers that are compared out of a case's results."""
    if case.forward in torch_ops.RANDOM:
        return lambda found: []
    return lambda found: sums(*(sampled(each.detach()).float().cpu() for each in found))


def without_gradients(function: Callable[[Any], Tensors]) -> Callable[[Any], Made]:
    """Return what makes a run of a function that nobody takes the gradient of."""

    def make(t: Any) -> Made:
        def run() -> Tensors:
            with torch.inference_mode():
                return function(t)

        return run

    return make


def attention(backward: bool) -> Callable[[Any], Made]:
    """Return what makes attention of packed heads, or its gradient."""

    def heads_of(t: Any) -> torch.Tensor:
        batch, tokens, width = t.qkv.shape
        qkv = t.qkv.reshape(batch, tokens, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv.unbind(0))
        return y.transpose(1, 2).reshape(batch, tokens, width // 3)

    def make_backward(t: Any) -> Made:
        t.qkv.requires_grad_()
        y = heads_of(t)
        return lambda: torch.autograd.grad(y, [t.qkv], t.dy, retain_graph=True)

    return make_backward if backward else without_gradients(lambda t: (heads_of(t),))


def norm_backward(t: Any) -> Made:
    inputs = [each.requires_grad_() for each in (t.x, t.norm_weight, t.norm_bias)]
    y = torch_ops.norm(t, t.norm_weight, t.norm_bias)

    def run() -> Tensors:
        dx, dweight, dbias = torch.autograd.grad(y, inputs, t.dy, retain_graph=True)
        return dx + t.residual, dweight, dbias

    return run


def product_plus(t: Any) -> Tensors:
    return (t.residual + functional.linear(t.x, t.weight, t.bias),)


def product_gelu(t: Any) -> Tensors:
    return (functional.gelu(functional.linear(t.x, t.weight, t.bias), approximate="tanh"),)


def product_dx_gelu(t: Any) -> Made:
    h = t.h.requires_grad_()
    y = functional.gelu(h, approximate="tanh")

    def run() -> Tensors:
        (dh,) = torch.autograd.grad(y, [h], t.dy @ t.weight, retain_graph=True)
        return dh, dh.sum(0)

    return run


def activate(t: Any) -> Tensors:
    form = "tanh" if t.c.activation == "gelu_tanh" else "none"
    return (functional.gelu(t.h, approximate=form),)


def through_activation(t: Any) -> Made:
    slope = t.h.sign()

    def run() -> Tensors:
        with torch.inference_mode():
            dh = t.dy * slope
            return dh, dh.sum((0, 1))

    return run


def norm(t: Any) -> Tensors:
    return (torch_ops.norm(t, t.norm_weight, t.norm_bias),)


ATTENTION = {False: attention(False), True: attention(True)}
MAKERS: dict[str, Callable[[Any], Made]] = {
    "product": without_gradients(lambda t: (functional.linear(t.x, t.weight, t.bias),)),
    "product_plus": without_gradients(product_plus),
    "product_dx": without_gradients(lambda t: (t.dy @ t.weight,)),
    "product_dw": without_gradients(lambda t: (t.dy.T @ t.x,)),
    "product_gelu": without_gradients(product_gelu),
    "product_dx_gelu": product_dx_gelu,
    "attention_own": ATTENTION[False],
    "attention_own_backward": ATTENTION[True],
    "attention_cudnn": ATTENTION[False],
    "attention_cudnn_backward": ATTENTION[True],
    "norm_low": without_gradients(norm),
    "norm_low_again": without_gradients(norm),
    "norm_low_backward": norm_backward,
    "activate": without_gradients(activate),
    "through_activation": through_activation,
    "narrow_and_sum": without_gradients(lambda t: (t.dy, t.dy.sum((0, 1)))),
    "column_sums": without_gradients(lambda t: (t.dy.sum(0),)),
    "narrow": without_gradients(lambda t: (t.w.bfloat16(),)),
}
"""What stands for each case that is no operation of ``vitkit.ops``."""
