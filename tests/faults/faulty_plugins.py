"""The faulty plugins of row F18: what each does, and what is said of it."""

from __future__ import annotations

from typing import NamedTuple

STEP = 8  # at which those break that break while training; an epoch of the tests has five
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
    steps = 0

    def on_step_end(self, state, log):
        self.steps += 1

    def state_dict(self):
        return {state}

    def load_state_dict(self, values):
        self.steps = values["steps"]

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

    ``last`` is the checkpoint that the run goes on from, ``apart`` one that is not whole and is
    kept beside it.
    """

    source: str
    use: str
    reason: str
    right: str
    last: str
    apart: str = ""


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
    "gone": Fault("", "(its module 'faulty_module'|faulty.py) is not there"),
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
        optimizer(f"if given['step'] == {STEP}: {RAISE}"),
        "optimizer=faulty",
        "ValueError: no luck",
        optimizer(),
        "step-00000005",
        "step-00000007-partial",
    ),
    "raises in backward": Breaks(
        activation(backward=f"if passes == {STEP}: {RAISE}"),
        "model.activation=faulty",
        "ValueError: no luck",
        activation(),
        "step-00000007",
    ),
    "raises in state_dict": Breaks(
        callback("{'steps': 1 // (self.steps < 6)}"),
        "train.callbacks=['faulty']",
        r"The state of callback 'faulty' \(Faulty\) cannot be saved: .* ZeroDivisionError: ",
        callback("{'steps': self.steps}"),
        "step-00000005",
        "step-00000010-partial",
    ),
    "wrong shape": Breaks(
        activation(y="(x * x)[..., :1]"),
        "model.activation=faulty",
        r"square returned float32 \(.*, 1\)",
        activation(),
        "step-00000000",
    ),
    "wrong dtype": Breaks(
        activation(y="(x * x).astype('float64')"),
        "model.activation=faulty",
        r"square returned float64 \(",
        activation(),
        "step-00000000",
    ),
    "state that cannot be stored": Breaks(
        callback("{'steps': {self.steps}}"),
        "train.callbacks=['faulty']",
        r"The state of callback 'faulty' \(Faulty\) cannot be saved: .* type set at 'steps'; exp",
        callback("{'steps': self.steps}"),
        "step-00000005-partial",
    ),
}
FOR_THE_KIT: dict[str, Kit] = {
    "changes its input": Kit(
        activation(forward="x *= 1.0000001"), "FAILED  .*: square changes its argument x in place"
    ),
    "wrong backward": Kit(
        activation(dx="2.1 * x * dy"), r"FAILED  gradient: square_backward is not the derivative"
    ),
}
NOISY = f"print('noise')\n{activation(forward='print(1 / 3)')}"
SLOW = f"import time\ntime.sleep(1.2)\n{HOOK}"
COUNT = len(AT_LOADING) + len(WHILE_TRAINING) + len(FOR_THE_KIT) + len((NOISY, SLOW))
