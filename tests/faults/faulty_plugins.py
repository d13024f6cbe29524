"""The faulty plugins of row F18: what each does, and what is said of it."""

from __future__ import annotations

from typing import NamedTuple

STEP = 4  # at which those break that break while training; an epoch of the tests has six
HOOK = """
from vitkit import hookimpl
from vitkit.optim import SGD

class Faulty(SGD):
    pass

@hookimpl
def register_optimizers(register):
    register("faulty", Faulty)
"""
"""A plugin with nothing wrong, for faults that are added to it."""
OPTIMIZER = """
from vitkit import hookimpl
from vitkit.optim import SGD

class Faulty(SGD):
    def update(self, w, g, *slots, **given):
        {fault}
        super().update(w, g, *slots, **given)

@hookimpl
def register_optimizers(register):
    register("faulty", Faulty)
"""
ACTIVATION = """
from vitkit import hookimpl

passes = 0

def square(x, *, xp):
    {forward}
    return {y}

def square_backward(dy, x, *, xp):
    global passes
    passes += 1
    {backward}
    return {dx}

@hookimpl
def register_activations(register):
    register("faulty", square, square_backward)
"""
CALLBACK = """
from vitkit import hookimpl
from vitkit.train.callbacks import Callback

class Faulty(Callback):
    def state_dict(self):
        return {state}

    def load_state_dict(self, values):
        pass

@hookimpl
def register_callbacks(register):
    register("faulty", Faulty)
"""


class Fault(NamedTuple):
    """A plugin that cannot be loaded, and why."""

    source: str
    reason: str


class Breaks(NamedTuple):
    """A plugin that breaks a run: how it is used, what is said, and the plugin put right.

    ``step`` is the step of the checkpoint that is left, None where the run has not come to one.
    """

    source: str
    use: str
    reason: str
    right: str
    step: int | None


class Kit(NamedTuple):
    """A plugin that runs and is wrong: what only the conformance kit says."""

    source: str
    reason: str


def optimizer(fault: str = "pass") -> str:
    return OPTIMIZER.format(fault=fault)


def activation(
    *, forward: str = "pass", y: str = "x * x", backward: str = "pass", dx: str = "2 * x * dy"
) -> str:
    return ACTIVATION.format(forward=forward, y=y, backward=backward, dx=dx)


def callback(state: str) -> str:
    return CALLBACK.format(state=state)


def edited(old: str, new: str) -> str:
    assert old in HOOK
    return HOOK.replace(old, new)


AT_LOADING: dict[str, Fault] = {
    "import error": Fault("raise ImportError('no luck')", "ImportError: no luck"),
    "syntax error": Fault("def (:", r"line 1 of \w+\.py: invalid syntax"),
    "SystemExit": Fault("raise SystemExit(3)", r"tried to end the program \(SystemExit: 3\)"),
    "KeyboardInterrupt": Fault("raise KeyboardInterrupt", "it raised KeyboardInterrupt"),
    "missing dependency": Fault(
        "import surely_not_installed", "it needs 'surely_not_installed', which is not installed"
    ),
    "gone": Fault("", "its module 'faulty_module' is not there|there is no file"),
    "name of another plugin": Fault(
        edited('"faulty"', '"tiger"'),
        r"registers the optimizer 'tiger', which plugin 'alpha \(dist-alpha 1\.0\)' has already",
    ),
    "name of a built-in": Fault(
        edited('"faulty"', '"adamw"'),
        "registers the optimizer 'adamw', which plugin 'vitkit' has already registered",
    ),
    "misspelt hook": Fault(
        edited("register_optimizers", "register_optimisers"),
        "no hook 'register_optimisers'; did you mean 'register_optimizers'",
    ),
    "signature of a hook": Fault(
        edited("register_optimizers(register)", "register_optimizers(registry, register=None)"),
        r"register_optimizers\(registry, register\) must take one argument, 'register'",
    ),
    "other version of the hooks": Fault(
        f"VITKIT_API = 99\n{HOOK}", "version 99 of the plugin hooks, .* version 1: upgrade vitkit"
    ),
    "raises in its hook": Fault(
        edited('register("faulty", Faulty)', "raise ValueError('no luck')"), "ValueError: no luck"
    ),
    "hook without a mark": Fault(
        edited("@hookimpl\n", ""), "register_optimizers is not marked: write @vitkit.hookimpl"
    ),
    "no hook": Fault("ANSWER = 42", "it implements no hook"),
}
RAISE = "raise ValueError('no luck')"
WHILE_TRAINING: dict[str, Breaks] = {
    f"raises at step {STEP}": Breaks(
        optimizer(f"if given['step'] == {STEP + 1}: {RAISE}"),
        "optimizer=faulty",
        "ValueError: no luck",
        optimizer(),
        None,
    ),
    "raises in backward": Breaks(
        activation(backward=f"if passes == {STEP + 1}: {RAISE}"),
        "model.activation=faulty",
        "ValueError: no luck",
        activation(),
        STEP,
    ),
    "raises in state_dict": Breaks(
        callback("1 / 0"),
        "train.callbacks=['faulty']",
        "ZeroDivisionError: division by zero",
        callback("{'a': 1}"),
        None,
    ),
    "wrong shape": Breaks(
        activation(y="(x * x)[..., :1]"),
        "model.activation=faulty",
        r"square returned float32 \(.*, 1\)",
        activation(),
        0,
    ),
    "wrong dtype": Breaks(
        activation(y="(x * x).astype('float64')"),
        "model.activation=faulty",
        r"square returned float64 \(",
        activation(),
        0,
    ),
    "state that cannot be stored": Breaks(
        callback("{'a': object()}"),
        "train.callbacks=['faulty']",
        "object",
        callback("{'a': 1}"),
        None,
    ),
}
FOR_THE_KIT: dict[str, Kit] = {
    "changes its input": Kit(
        activation(forward="x *= 1.0000001"), r"FAILED  forward: .*(square|x)"
    ),
    "wrong backward": Kit(
        activation(dx="2.1 * x * dy"), r"FAILED  gradient: square_backward is not the derivative"
    ),
}
NOISY = f"print('noise')\n{optimizer('print(1 / 3)')}"
SLOW = f"import time\ntime.sleep(1.2)\n{HOOK}"
COUNT = len(AT_LOADING) + len(WHILE_TRAINING) + len(FOR_THE_KIT) + len((NOISY, SLOW))
