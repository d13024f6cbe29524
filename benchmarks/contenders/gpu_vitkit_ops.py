"""The operations of vitkit one by one on a GPU, asked for as one graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from contenders import device, task, vitkit_ops
from contenders.gpu_cases import HEAD, drawn, gpu_cases, place, scale, small
from contenders.gpu_vitkit import array_module_of
from contenders.gpu_vitkit import ceilings as ceilings  # what a server calls
from contenders.op_cases import Case
from contenders.serve import Skip, Work, one_line, short_of_memory
from contenders.sums import sampled, sums
from vitkit import kernels, ops
from vitkit.backend import record, to_numpy
from vitkit.backend.precision import from_bfloat16

Arrays = tuple[Any, ...]
Made = Callable[[], Arrays]
LOOP = {"cuda": 10, "dry": 2}
"""How often a graph does an operation, so that asking for it takes no time of note."""


def prepare(mode: str, order: task.Order) -> Work:
    """Return one operation; tried once, since a kernel may leave a case to the reference."""
    xp = array_module_of(order, "kernel")
    kernels.load(xp)
    if reason := kernels.why_none(xp):
        raise Skip(reason)
    case, gpu = gpu_cases(order.sizes)[order.task], device.of_vitkit(xp)
    gpu.rest()
    op = getattr(ops, case.op, None)
    calls: list[str] = []
    if op is None:
        make = MAKERS[case.op]
        moved = 0
    else:
        make = vitkit_ops.MAKERS[case.op]
        arrays = namespace(case, order.sizes, xp)
        with vitkit_ops.noting_references(op) as calls:
            found = make(arrays)()
        moved = sum(
            each.nbytes for each in (*vars(arrays).values(), *found) if isinstance(each, xp.ndarray)
        )
        del arrays, found
    run = make(namespace(case, order.sizes, xp))
    repeat, note = looped(make(namespace(case, order.sizes, xp)), xp, gpu, LOOP[order.device])
    notes = {"served": not calls, "bytes": case.bytes or moved, "remark": note}
    return Work(lambda: gpu.waited(run), numbers, notes=notes, repeat=repeat)


def looped(
    run: Made, xp: Any, gpu: device.Device, count: int
) -> tuple[Callable[[int], float], str]:
    """Return what times an operation, and what is to be said of it: by a graph if it has one."""
    for _ in range(2):
        run()

    def several() -> None:
        for _ in range(count):
            run()

    try:
        graph, _ = record(several, xp=xp)
    except Exception as error:  # whatever it is, it can still be timed
        if short_of_memory(error):
            raise
        return lambda wanted: gpu.repeat(run, wanted), f"without a graph: {one_line(error)}"
    return (
        lambda wanted: (
            gpu.repeat(graph.replay, -(-wanted // count)) / count * (wanted / -(-wanted // count))
        ),
        "",
    )


@functools.cache
def numbers_of(xp: Any) -> Any:
    """Return the drawn numbers on the device."""
    return xp.asarray(drawn())


def namespace(case: Case, c: task.Configuration, xp: Any) -> Any:
    """Return the arrays of a case on the device."""
    arrays = {name: xp.asarray(each) for name, each in small(case, c.num_classes).items()}
    for name, shape in case.shapes.items():
        if name not in arrays:
            start, size, times = place(name, shape)
            whole = xp.tile(numbers_of(xp), times)
            arrays[name] = (whole[start : start + size] * np.float32(scale(name, shape))).reshape(
                shape
            )
    return SimpleNamespace(**arrays, c=c, case=case, xp=xp)


def numbers(found: Arrays) -> list[float]:
    """Return what is compared of the results, those in 16 bits widened."""
    looked_at = [to_numpy(sampled(each)) for each in found]
    return sums(
        *(from_bfloat16(each, xp=np) if each.dtype == np.uint16 else each for each in looked_at)
    )


def low(array: Any, xp: Any) -> Any:
    """Return an array as bits of bfloat16."""
    from vitkit.kernels.cuda.casts import cast

    return cast(array, "uint16", xp)


def product(a: Any) -> Made:
    from vitkit.kernels.cuda._products import multiply

    x, weight, bias = low(a.x, a.xp), low(a.weight, a.xp), a.bias
    plus = getattr(a, "residual", None)
    out = a.xp.empty((len(x), len(weight)), "uint16" if plus is None else "float32")

    def run() -> Arrays:
        multiply(x, weight, out, transpose_b=True, bias=bias, plus=plus, xp=a.xp)
        return (out,)

    return run


def product_dx(a: Any) -> Made:
    from vitkit.kernels.cuda._products import multiply

    dy, weight = low(a.dy, a.xp), low(a.weight, a.xp)
    out = a.xp.empty((len(dy), weight.shape[1]), "uint16")

    def run() -> Arrays:
        multiply(dy, weight, out, xp=a.xp)
        return (out,)

    return run


def product_dw(a: Any) -> Made:
    from vitkit.kernels.cuda._products import multiply

    dy, x = low(a.dy, a.xp), low(a.x, a.xp)
    out = a.xp.zeros((dy.shape[1], x.shape[1]), "float32")

    def run() -> Arrays:
        multiply(dy, x, out, transpose_a=True, plus=out, xp=a.xp)
        return (out,)

    return run


def through_gelu(a: Any, run: Callable[[Any], Arrays]) -> Made:
    """Return what makes products that go through a GELU, if this GPU has them."""
    from vitkit.kernels.cuda._cublaslt import CublasError
    from vitkit.kernels.cuda._products import GELU

    products = GELU.get(a.xp.__name__)
    if products is None:
        raise Skip("no cuBLASLt here")
    try:
        run(products)
    except CublasError as error:
        raise Skip(str(error)) from None
    return lambda: run(products)


def product_gelu(a: Any) -> Made:
    x, weight = low(a.x, a.xp), low(a.weight, a.xp)
    return through_gelu(a, lambda products: products.forward(x, weight, a.bias, True, a.xp)[:1])


def product_dx_gelu(a: Any) -> Made:
    dy, weight, h = (low(each, a.xp) for each in (a.dy, a.weight, a.h))

    def run(products: Any) -> Arrays:
        dbias = a.xp.zeros(h.shape[-1], "float32")
        return products.backward(dy, weight, h, dbias, a.xp), dbias

    return through_gelu(a, run)


def attention(by: str, backward: bool) -> Callable[[Any], Made]:
    """Return what makes attention by a module of kernels, or its gradient."""

    def make(a: Any) -> Made:
        from vitkit.kernels.cuda import _cudnn, _fused

        module: Any = {"own": _fused, "cudnn": _cudnn}[by]
        qkv = low(a.qkv, a.xp)
        heads = qkv.shape[-1] // (3 * HEAD)
        if not module.serves(qkv, heads, a.xp):
            reason = _cudnn.why_none() if by == "cudnn" else ""
            raise Skip(reason or "does not serve this shape here")
        if not backward:
            return lambda: module.attend(qkv, heads, a.xp)[:1]
        dy, kept = low(a.dy, a.xp), module.attend(qkv, heads, a.xp)
        return lambda: (module.attend_backward(dy, qkv, *kept, a.xp),)

    return make


def norm_low(a: Any) -> Made:
    from vitkit.kernels.cuda.layer_norm import normalize

    given = a.x, a.norm_weight, a.norm_bias, task.LAYER_NORM_EPSILON, "uint16", a.xp
    return lambda: normalize(*given)[:1]


def norm_low_again(a: Any) -> Made:
    from vitkit.kernels.cuda.layer_norm import normalize, normalized_again

    weights = a.norm_weight, a.norm_bias
    _, mean, rstd = normalize(a.x, *weights, task.LAYER_NORM_EPSILON, "uint16", a.xp)
    return lambda: (normalized_again(a.x, *weights, mean, rstd, "uint16", a.xp),)


def norm_low_backward(a: Any) -> Made:
    from vitkit.kernels.cuda.layer_norm import normalize, normalize_backward

    weights = a.norm_weight, a.norm_bias
    _, mean, rstd = normalize(a.x, *weights, task.LAYER_NORM_EPSILON, "uint16", a.xp)
    dy, gradients = low(a.dy, a.xp), [a.xp.zeros_like(each) for each in weights]

    def run() -> Arrays:
        given = dy, a.x, a.norm_weight, mean, rstd, a.residual
        return normalize_backward(*given, *gradients, a.xp), *gradients

    return run


def activate(a: Any) -> Made:
    from vitkit.kernels.cuda.gelu import activate as activated

    h = low(a.h, a.xp)
    return lambda: activated(h, a.c.activation, True, a.xp)[:1]


def through_activation(a: Any) -> Made:
    from vitkit.kernels.cuda.gelu import through_activation as through

    # The gradient is overwritten: by slopes of 1 and -1, or it would be zeros before long.
    dy, slope = low(a.dy, a.xp), low(a.xp.sign(a.h), a.xp)
    dbias = a.xp.zeros(dy.shape[-1], "float32")
    return lambda: (through(dy, slope, dbias, a.xp), dbias)


def narrow_and_sum(a: Any) -> Made:
    from vitkit.kernels.cuda.casts import gained_cast

    dbias = a.xp.zeros(a.dy.shape[-1], "float32")
    return lambda: (gained_cast(a.dy, None, "uint16", dbias, a.xp), dbias)


def column_sums(a: Any) -> Made:
    from vitkit.kernels.cuda.column_sums import add_column_sums

    dy, out = low(a.dy, a.xp), a.xp.zeros(a.dy.shape[-1], "float32")

    def run() -> Arrays:
        add_column_sums(dy, out, adds=False, xp=a.xp)
        return (out,)

    return run


MAKERS: dict[str, Callable[[Any], Made]] = {
    "product": product,
    "product_plus": product,
    "product_dx": product_dx,
    "product_dw": product_dw,
    "product_gelu": product_gelu,
    "product_dx_gelu": product_dx_gelu,
    "attention_own": attention("own", False),
    "attention_own_backward": attention("own", True),
    "attention_cudnn": attention("cudnn", False),
    "attention_cudnn_backward": attention("cudnn", True),
    "norm_low": norm_low,
    "norm_low_again": norm_low_again,
    "norm_low_backward": norm_low_backward,
    "activate": activate,
    "through_activation": through_activation,
    "narrow_and_sum": narrow_and_sum,
    "column_sums": column_sums,
    "narrow": lambda a: lambda: (low(a.w, a.xp),),
}
"""What makes each case that is no operation of ``vitkit.ops``: its run, of its arrays."""
