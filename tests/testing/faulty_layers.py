"""A sound layer, and layers that are it with one fault each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, philox
from vitkit.nn import Context, Dropout, Module, Parameter
from vitkit.nn.init import normal, ones

TOKENS, WIDTH = 5, 8
SHAPE = (TOKENS, WIDTH)


class Sound(Module):
    """The right version: a residual branch of a square matrix, tanh, a scale and dropout."""

    def __init__(self, *, xp: ArrayModule = None) -> None:
        self.weight = Parameter((WIDTH, WIDTH), normal(0.5))
        self.scale = Parameter((WIDTH,), ones, decay=False)
        self.drop = Dropout(0.3)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        xp = self.xp
        self.expect_width(x, WIDTH)
        a = self.activate(xp.matmul(x, self.weight.value.T))
        y = self.drop.forward(a * self.scale.value, ctx)
        self.push(ctx, x, a)
        return x + y

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, a = self.pop(ctx)
        dbranch = self.drop.backward(dy, ctx)
        self.add_to_scale((dbranch * a).sum(axis=(0, 1)))
        dh = dbranch * self.scale.value * (1 - a * a)
        self.weight.add_grad(self.dweight(dh.reshape(-1, WIDTH), x.reshape(-1, WIDTH)))
        return self.dx(dy, dh)

    def activate(self, h: Array) -> Array:
        return self.xp.tanh(h)

    def push(self, ctx: Context, x: Array, a: Array) -> None:
        ctx.push(self, x, a)

    def pop(self, ctx: Context) -> Any:
        return ctx.pop(self)

    def add_to_scale(self, grad: Array) -> None:
        self.scale.add_grad(grad)

    def dweight(self, dh: Array, x: Array) -> Array:
        return dh.T @ x

    def dx(self, dy: Array, dh: Array) -> Array:
        return dy + dh @ self.weight.value


class KeepsOnSelf(Sound):
    def push(self, ctx: Context, x: Array, a: Array) -> None:
        self.x = x
        ctx.push(self, a)

    def pop(self, ctx: Context) -> Any:
        return self.x, *ctx.pop(self)


class KeepsOnTheClass(Sound):
    def push(self, ctx: Context, x: Array, a: Array) -> None:
        type(self).last = x  # type: ignore[attr-defined]
        ctx.push(self, a)

    def pop(self, ctx: Context) -> Any:
        return type(self).last, *ctx.pop(self)  # type: ignore[attr-defined]


class KeepsInAList(Sound):
    def __init__(self, *, xp: ArrayModule = None) -> None:
        self.masks: list[Array] = []
        super().__init__(xp=xp)

    def activate(self, h: Array) -> Array:
        self.masks.append(h > 0)
        return super().activate(h)


class KeepsInInference(Sound):
    def forward(self, x: Array, ctx: Context) -> Array:
        if not ctx.train:
            self.seen = x
        return super().forward(x, ctx)


class KeepsACircle(Sound):
    def push(self, ctx: Context, x: Array, a: Array) -> None:
        circle: list[Any] = [x]
        circle.append(circle)
        ctx.push(self, circle, a)

    def pop(self, ctx: Context) -> Any:
        circle, a = ctx.pop(self)
        return circle[0], a


class WritesIntoABuffer(Sound):
    def __init__(self, *, xp: ArrayModule = None) -> None:
        self.count = np.zeros(1)
        super().__init__(xp=xp)

    def activate(self, h: Array) -> Array:
        self.count[0] += 1
        return super().activate(h)


class AssignsAGradient(Sound):
    def add_to_scale(self, grad: Array) -> None:
        self.scale.grad[...] = grad


class ExchangesAGradient(Sound):
    def add_to_scale(self, grad: Array) -> None:
        self.scale.grad = self.scale.grad + grad


class ForgetsAParameter(Sound):
    def add_to_scale(self, grad: Array) -> None:
        pass


class ForgetsTheResidual(Sound):
    def dx(self, dy: Array, dh: Array) -> Array:
        return dh @ self.weight.value


class ForgetsTheBranch(Sound):
    def dx(self, dy: Array, dh: Array) -> Array:
        return dy


class Transposes(Sound):
    def dweight(self, dh: Array, x: Array) -> Array:
        return x.T @ dh


class AveragesRows(Sound):
    def dweight(self, dh: Array, x: Array) -> Array:
        return dh.T @ x / max(1, len(x))


class WrongSign(Sound):
    def add_to_scale(self, grad: Array) -> None:
        self.scale.add_grad(-grad)


class ReturnsNothing(Sound):
    def backward(self, dy: Array, ctx: Context) -> Array:
        super().backward(dy, ctx)


class ScalesInBackwardAlone(Sound):
    """Rescales for dropout in backward, whether or not forward dropped anything."""

    def __init__(self, *, xp: ArrayModule = None) -> None:
        super().__init__(xp=xp)
        self.drop.backward = self.rescaled  # type: ignore[method-assign]

    def rescaled(self, dy: Array, ctx: Context) -> Array:
        (key,) = ctx.pop(self.drop)
        if key is None:
            return dy * (1 / (1 - self.drop.rate))
        return Dropout._backward(dy, self.drop.rate, key, xp=self.xp)


class LeaksFloat64(Sound):
    def activate(self, h: Array) -> Array:
        return super().activate(h) * np.sqrt(1.0)


class LeaksInAGradient(Sound):
    def add_to_scale(self, grad: Array) -> None:
        self.scale.add_grad(grad.astype("float64"))


class DrawsFromNumpy(Sound):
    def forward(self, x: Array, ctx: Context) -> Array:
        noise = np.random.random() if ctx.train else 0.0  # noqa: NPY002
        return super().forward(x, ctx) + noise


class DrawsFromItsOwn(Sound):
    def __init__(self, *, xp: ArrayModule = None) -> None:
        self.generator = np.random.default_rng(0)
        super().__init__(xp=xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        noise = self.generator.random() if ctx.train else 0.0
        return super().forward(x, ctx) + noise


class DrawsInInference(Sound):
    def forward(self, x: Array, ctx: Context) -> Array:
        seed, step, count = ctx.seeds.next()
        noise = philox(seed, "noise", step, count).random()
        return super().forward(x, ctx) + noise


class ForgetsTheSeed(Module):
    """Draws by step and count alone: each run drops the same."""

    def __init__(self, *, xp: ArrayModule = None) -> None:
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        mask = self.xp.ones(x.shape, x.dtype)
        if ctx.train:
            _, step, count = ctx.seeds.next()
            drawn = philox(0, "mask", step, count).random(x.shape) < 0.5
            mask = self.xp.asarray(drawn.astype(x.dtype))
        ctx.push(self, mask)
        return x * mask

    def backward(self, dy: Array, ctx: Context) -> Array:
        (mask,) = ctx.pop(self)
        return dy * mask


class OtherwiseInTraining(Sound):
    def __init__(self, *, xp: ArrayModule = None) -> None:
        super().__init__(xp=xp)
        self.drop.rate = 0.0

    def forward(self, x: Array, ctx: Context) -> Array:
        return super().forward(x, ctx) + (0.5 if ctx.train else 0.0)


class WritesIntoX(Sound):
    def forward(self, x: Array, ctx: Context) -> Array:
        x += 0.0 * x + 1.0
        return super().forward(x, ctx)


class WritesIntoDy(Sound):
    def dx(self, dy: Array, dh: Array) -> Array:
        dy += dh @ self.weight.value
        return dy


class WaitsForTheDevice(Sound):
    def forward(self, x: Array, ctx: Context) -> Array:
        if float(x.sum()) == math.inf:
            raise ValueError("x is infinite.")
        return super().forward(x, ctx)


class ComputesWithNumpy(Sound):
    def activate(self, h: Array) -> Array:
        return np.tanh(h)


class Overflows(Sound):
    def activate(self, h: Array) -> Array:
        e = self.xp.exp(2 * h)
        return (e - 1) / (e + 1)


class PushesTwice(Sound):
    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.push(self, x)
        return super().forward(x, ctx)


class PopsWhatIsThere(Sound):
    def pop(self, ctx: Context) -> Any:
        return ctx._entries.pop()[1]


class MixesSamples(Sound):
    """Takes the mean over the batch away, with the right gradient."""

    def forward(self, x: Array, ctx: Context) -> Array:
        y = super().forward(x, ctx)
        return y - y.mean(axis=0) if len(y) else y

    def backward(self, dy: Array, ctx: Context) -> Array:
        return super().backward(dy - dy.mean(axis=0) if len(dy) else dy, ctx)


class HidesNumbers(Sound):
    """Multiplies by numbers that are drawn when it is made, and are no parameter."""

    made = 0

    def __init__(self, *, xp: ArrayModule = None) -> None:
        HidesNumbers.made += 1
        self.hidden = 1.0 + HidesNumbers.made % 7
        super().__init__(xp=xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        return super().forward(x, ctx) * self.hidden

    def backward(self, dy: Array, ctx: Context) -> Array:
        return super().backward(dy * self.hidden, ctx)


class Scale(Module):
    """A scale for each channel that takes an ``x`` of any width, and is right at its own."""

    def __init__(self, *, xp: ArrayModule = None) -> None:
        self.weight = Parameter((WIDTH,), ones, decay=False)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        self.xp  # noqa: B018
        ctx.push(self, x)
        return x * self.weight.value

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.pop(self)
        self.weight.add_grad((dy * x).sum(axis=(0, 1)))
        return dy * self.weight.value


class NeverAsksForArrays(Module):
    """Has no parameter whose array would be missing, and computes with what it finds."""

    def __init__(self, *, xp: ArrayModule = None) -> None:
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.push(self, x)
        return x * x

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.pop(self)
        return 2 * x * dy


class PushesNothing(Module):
    def __init__(self, *, xp: ArrayModule = None) -> None:
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        return self.xp.negative(x)

    def backward(self, dy: Array, ctx: Context) -> Array:
        return -dy


class TakesXpByPosition(Sound):
    def __init__(self, xp: ArrayModule = None) -> None:
        super().__init__(xp=xp)


class IgnoresXp(Sound):
    def __init__(self, *, xp: ArrayModule = None) -> None:
        super().__init__()


class AddsOne(Sound):
    """Another function than that of the twin, with the right gradients."""

    def forward(self, x: Array, ctx: Context) -> Array:
        return super().forward(x, ctx) + 1.0


class NoLayer:
    """Has the two methods, but is no module."""

    forward = Sound.forward
    backward = Sound.backward


def twin(torch: Any, scale: str = "scale") -> Any:
    """Return the twin of the sound layer in PyTorch, its second parameter named ``scale``."""

    class Twin(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(WIDTH, WIDTH))
            setattr(self, scale, torch.nn.Parameter(torch.empty(WIDTH)))

        def forward(self, x: Any) -> Any:
            return x + torch.tanh(x @ self.weight.T) * getattr(self, scale)

    return Twin()
