"""vitkit on a GPU: by references, in three precisions, and each step as one CUDA graph.

In bfloat16 what flows between blocks, the residual, is float32, or bfloat16 as PyTorch's is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from contenders import device, task
from contenders.dry import GeluProducts
from contenders.serve import Skip, Work
from contenders.vitkit_contender import checked_model
from vitkit import ViT, ops
from vitkit.backend import array_module, can_record, to_numpy
from vitkit.backend.precision import to_bfloat16
from vitkit.data import Batch
from vitkit.errors import BackendError
from vitkit.kernels.cuda import _products
from vitkit.optim import AdamW
from vitkit.train import train_step
from vitkit.train.graph import GraphedForward, GraphedStep

GRAPHED = "_graph"
"""How the modes end that record a graph; before it stands the precision."""
NARROW = "_narrow"
"""How a precision ends in which the residual is bfloat16 too."""
STEPS = 4
"""Until the gradient is that of a replay: two steps run, one is recorded."""
_dry = contextlib.ExitStack()


def array_module_of(order: task.Order, mode: str) -> Any:
    """Return CuPy; or, for a dry run, an imitation of it with the same kernels on the CPU."""
    if order.device == "cuda":
        try:
            return array_module("cupy")
        except BackendError as error:
            raise Skip(str(error)) from error
    from vitkit.testing import cuda_on_cpu, strict_device

    if mode != "reference":
        if reason := cuda_on_cpu.why_not():
            raise Skip(reason)
        _dry.enter_context(cuda_on_cpu.emulated())  # until the process ends
        _products.GELU[strict_device.xp.__name__] = GeluProducts()
    return strict_device.xp


def made(mode: str, order: task.Order) -> tuple[ViT, device.Device, Batch]:
    """Return model, device, and images and labels on it."""
    xp = array_module_of(order, mode)
    gpu = device.of_vitkit(xp)
    gpu.start()
    precision = "float32" if mode == "reference" else mode.removesuffix(GRAPHED)
    if mode.endswith(GRAPHED) and not can_record(xp):
        raise Skip(f"work on {xp.__name__} cannot be recorded")
    wide = not precision.endswith(NARROW)
    precision = precision.removesuffix(NARROW)
    model = checked_model(order.sizes, precision, xp, seed=None, residual_in_fp32=wide)
    model.load_state_dict(load_file(order.weights))
    images, labels = (xp.asarray(each) for each in task.read_data(order))
    return model, gpu, Batch(images, labels, np.arange(len(labels)), 0)


def prepare(mode: str, order: task.Order) -> Work:
    """Return a training step or an inference of vitkit."""
    model, gpu, batch = made(mode, order)
    graphed = mode.endswith(GRAPHED)
    if order.task == "train":
        run = trainer(model, batch, graphed)

        def numbers(result: Any) -> list[float]:
            return [float(to_numpy(each)) for each in result]

    else:
        infer: Callable[..., Any] = GraphedForward(model) if graphed else model

        def run() -> Any:
            return infer(batch.images)

        def numbers(result: Any) -> list[float]:
            return to_numpy(result[:8]).astype(np.float64).ravel().tolist()

    return Work(
        lambda: gpu.waited(run),
        numbers,
        repeat=lambda count: gpu.repeat(run, count),
        peak=lambda: gpu.taken,
    )


def trainer(
    model: ViT,
    batch: Batch,
    graphed: bool,
    lr: float = device.LEARNING_RATE,
    max_grad_norm: float | None = task.MAX_GRAD_NORM,
) -> Callable[[], tuple[Any, Any]]:
    """Return a function that makes one training step and returns its loss and gradient's norm.

    The images are float32 and on the device already, as everyone's.
    """
    optimizer = AdamW(
        lr, betas=task.BETAS, eps=task.EPSILON, weight_decay=task.WEIGHT_DECAY
    ).attach(model)
    loss = ops.softmax_cross_entropy
    preprocess: Any = _as_they_are  # where a Preprocess would have pixels to turn into numbers
    settings: dict[str, Any] = {"max_grad_norm": max_grad_norm}
    graph = GraphedStep(model, optimizer, loss, preprocess, **settings) if graphed else None
    count = 0

    def step() -> tuple[Any, Any]:
        nonlocal count
        when: dict[str, Any] = {"lr": lr, "seed": 0, "step": count}
        count += 1
        if graph is not None:
            log = graph([batch], **when)
        else:
            log = train_step(model, optimizer, [batch], loss, preprocess, **when, **settings)
        return log.loss, log.grad_norm

    return step


def _as_they_are(images: Any, model: Any) -> Any:
    return images


def evidence(mode: str, order: task.Order, file: Path) -> dict[str, Any]:
    """Write the gradients of one step, or the logits, to a file; return the loss.

    A learning rate of zero leaves the weights as they were, so the gradient of a graph's first
    replay is that of the same loss.
    """
    model, _, batch = made(mode, order)
    graphed = mode.endswith(GRAPHED)
    if order.task == "infer":
        infer = GraphedForward(model) if graphed else model
        for _ in range(STEPS if graphed else 1):
            logits = infer(batch.images)
        save_file({"logits": to_numpy(logits)}, file)
        return {"loss": None}
    step = trainer(model, batch, graphed, lr=0.0, max_grad_norm=None)
    for _ in range(STEPS if graphed else 1):
        loss, _ = step()
    gradients = {name: to_numpy(each.grad).copy() for name, each in model.named_parameters()}
    save_file(gradients, file)
    return {"loss": float(to_numpy(loss))}


def ceilings(mode: str, order: task.Order, file: Path) -> dict[str, Any]:
    """Return the GPU's name, its rate of bfloat16 products, and how fast it copies its memory."""
    from vitkit.kernels.cuda._products import multiply

    xp = array_module_of(order, mode)
    size, numbers = (8192, 2**30) if order.device == "cuda" else (64, 2**14)
    rng = np.random.default_rng(0)
    a, b = (
        xp.asarray(to_bfloat16(rng.standard_normal((size, size), np.float32), xp=np))
        for _ in range(2)
    )
    out = xp.empty((size, size), "uint16")
    few = xp.asarray(rng.standard_normal(2**14, np.float32))
    given, taken = xp.tile(few, numbers // 2**14), xp.empty(numbers, "float32")
    found = device.of_vitkit(xp).ceilings(
        lambda: multiply(a, b, out, xp=xp),
        2.0 * size**3,
        lambda: taken.__setitem__(..., given),
        given.nbytes,
    )
    return {"gpu": name_of(xp), "by": f"vitkit, {size} x {size} bfloat16", **found}


def name_of(xp: Any) -> str:
    """Return what the GPU is called."""
    if xp.__name__ != "cupy":
        return "none"
    return str(xp.cuda.runtime.getDeviceProperties(0)["name"].decode())
