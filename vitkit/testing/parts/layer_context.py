"""Checks of what a pass through a layer leaves behind: on its context, on ``self``, in memory."""

from __future__ import annotations

import weakref

from vitkit.backend import Array
from vitkit.nn import Checkpoint
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.testing.parts.blame import assert_equal, differences, fail_if
from vitkit.testing.parts.memory import same_bits
from vitkit.testing.parts.passes import (
    DTYPES,
    Subject,
    backward,
    contents,
    everything_on,
    forward,
    gradients_of,
    no_garbage_collector,
    training,
    values_of,
)


def context_is_empty(s: Subject) -> None:
    """Check that backward pops exactly what forward pushed, and runs once."""
    layer, x, ctx = s.placed(), s.inputs(), training()
    y = forward(layer, x, ctx)
    pushed = len(ctx)
    if not pushed:
        raise AssertionError(
            "forward pushed nothing on ctx; it must push, ctx.push(self) where backward needs "
            "nothing, so that a backward without its forward is an error."
        )
    backward(layer, y, ctx)
    if len(ctx) or ctx.nbytes:
        raise AssertionError(
            f"after backward {len(ctx)} of {pushed} entries ({ctx.nbytes} bytes) are still on "
            "ctx. Pop once for each push, in the reverse order."
        )
    try:
        layer.backward(y, ctx)
    except RuntimeError as error:
        if "ran backward but nothing of a forward pass is left" in str(error):
            return
        raise
    except Exception as error:
        raise AssertionError(
            f"a backward without its forward raised {type(error).__name__}: {error}. Take what "
            "was kept with ctx.pop(self), which says what is wrong."
        ) from error
    raise AssertionError("backward ran twice after one forward; it must pop what forward pushed.")


def backward_order(s: Subject) -> None:
    """Check that backward out of order is an error, and leaves entries of other layers alone."""
    layer, x, ctx = s.placed(), s.inputs(), training()
    below, above = Module(), Module()
    ctx.push(below)
    y = forward(layer, x, ctx)
    ctx.push(above)
    advice = "Take what was kept with ctx.pop(self), which sees whose it is."
    try:
        layer.backward(y, ctx)
    except RuntimeError:
        ctx.pop(above)
    except Exception as error:
        raise AssertionError(
            f"backward took the entry of a later layer from ctx, and raised {error!r}. {advice}"
        ) from error
    else:
        raise AssertionError(
            f"backward ran while the entry of a later layer was on top of ctx. {advice}"
        )
    backward(layer, y, ctx)
    if len(ctx) != 1:
        raise AssertionError(
            f"of one entry that an earlier layer had pushed, backward left {len(ctx)}. Pop once "
            "for each push."
        )
    ctx.pop(below)


def nothing_kept_on_self(s: Subject) -> None:
    """Check that a pass leaves no trace on the layer, its parts, its parameters and its class."""
    layer, x = s.placed(), s.inputs()
    held = everything_on(layer)
    values = contents(held)
    s.run(layer, x)
    layer(x)
    layer.forward(x, Context(train=True))  # and one whose backward never comes
    now = everything_on(layer)
    other = [at for at in held if at not in now or now[at] is not held[at]]
    if swapped := [at for at in other if at.endswith((".value", ".grad"))]:
        raise AssertionError(
            f"it exchanges {', '.join(map(_attribute, swapped))} for another array, but optimizers "
            "read the buffer that the first was a view of. Use parameter.add_grad(...)."
        )
    if kept := [at for at in now if at not in held] or other:
        raise AssertionError(
            f"it keeps {', '.join(map(_attribute, kept))}: push it on ctx, ctx.push(self, ...), "
            "and pop it in backward. There the next use in the same pass overwrites it."
        )
    if changed := [at for at, value in contents(now).items() if not same_bits(value, values[at])]:
        raise AssertionError(
            f"a pass changes the numbers of {', '.join(map(_attribute, changed))}; only an "
            "optimizer may."
        )


def _attribute(path: str) -> str:
    """Return ``"'x' on self"`` for ``"self.x"``."""
    owner, _, rest = path.partition(".")
    return f"{rest!r} on {'self' if owner == 'self' else f'the class {owner}'}"


def nothing_kept_in_inference(s: Subject) -> None:
    """Check that a pass that keeps nothing pushes nothing, and lets go of its input."""
    layer = s.placed()
    for ctx in (Context(), Context(train=True, keep=False)):
        with no_garbage_collector():
            x = s.inputs()
            alive = weakref.ref(x)
            y = forward(layer, x, ctx)
            if len(ctx) or ctx.nbytes:
                raise AssertionError(
                    f"a pass that keeps nothing has {len(ctx)} entries ({ctx.nbytes} bytes) on "
                    "ctx. Keep with ctx.push alone, which asks the pass."
                )
            del x, y
            if alive() is not None:
                raise AssertionError("inference keeps its input alive: something else holds it.")


def kept_arrays_are_freed(s: Subject) -> None:
    """Check that backward frees what was kept, without the garbage collector."""
    layer, x = s.placed(), s.inputs()
    permanent = {id(value) for value in everything_on(layer).values()}
    with no_garbage_collector():
        first, ctx = weakref.ref(x), training()
        dy = s.draw(forward(layer, x, ctx).shape)
        del x
        backward(layer, dy, ctx)
        alive = [array for ref in (first, *ctx.seen) if (array := ref()) is not None]
        alive = [array for array in alive if id(array) not in permanent]
        if alive:
            raise AssertionError(
                f"after backward {len(alive)} of the arrays it kept are still alive, the first of "
                f"shape {alive[0].shape}: a cycle of references, or an attribute, holds them."
            )


def checkpointed(s: Subject) -> None:
    """Check that a ``Checkpoint``, which runs forward once more, gives the same to the bit."""
    for dtype in DTYPES:
        plain, x = s.placed(dtype), s.inputs(dtype)
        wrapped = s.placed(dtype, make=lambda: Checkpoint(s.make()))
        names = [", ".join(values_of(layer)) for layer in (plain, wrapped)]
        if names[0] != names[1]:
            raise AssertionError(f"its parameters are {names[0]}, but in a Checkpoint {names[1]}.")
        got, expected = _both_passes(s, wrapped, dtype), _both_passes(s, plain, dtype)
        fail_if(
            differences(got, expected, assert_equal),
            "in a Checkpoint, which runs forward again before backward, it computes something else",
        )
        ctx = Context(train=True)
        wrapped.forward(x, ctx)
        if (len(ctx), ctx.nbytes) != (1, x.nbytes):
            raise AssertionError(
                f"a Checkpoint around it keeps {len(ctx)} entries of {ctx.nbytes} bytes, not x "
                f"alone, {x.nbytes} bytes. Push on the context that forward is given."
            )


def _both_passes(s: Subject, layer: Module, dtype: str) -> dict[str, Array]:
    """Return the output and every gradient."""
    y, dx, _ = s.run(layer, s.inputs(dtype))
    return {"y": y, "dx": dx, **gradients_of(layer)}
