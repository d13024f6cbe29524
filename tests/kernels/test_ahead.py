"""What is compiled ahead is all that models need, and the line that says what is not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vitkit.kernels import why_none
from vitkit.kernels.ahead import BRANCHES, CALLS, compile_all
from vitkit.kernels.state import describe, operations, serving

if why_none(np):
    pytest.skip(f"there are no kernels here: {why_none(np)}", allow_module_level=True)

from vitkit.kernels.cpu import _compilations, _processor

WITH_KERNEL = {name for name, op in operations().items() if "numpy" in op.kernels}

# Prints, as JSON, for what types each function of the kernels was made ready in this process.
SIGNATURES = """
import json, sys
from numba.extending import is_jitted
found = {
    f"{name}.{key}": sorted(map(str, value.signatures))
    for name, module in sys.modules.items() if name.startswith("vitkit.kernels.cpu.")
    for key, value in vars(module).items() if is_jitted(value) and value.signatures
}
print(json.dumps(found))
"""
AHEAD = "from vitkit.kernels.ahead import compile_all\ncompile_all()\n"
USE = """
import numpy as np
from vitkit import nn, ops, optim
from vitkit.data import ArrayDataset, Loader
from vitkit.kernels import served_precision
from vitkit.models import ViT
from vitkit.train import Trainer
from vitkit.train.callbacks import Average

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (24, 3, 16, 16), np.uint8)
data = ArrayDataset(images, np.arange(24, dtype=np.uint8) % 4, classes=list("abcd"))
MODELS = [
    dict(pool="cls", dropout=0.1, drop_path=0.2, activation="gelu_tanh"),
    dict(pool="mean", gradient_checkpointing=True, drop_path=0.1, activation="relu"),
    dict(pool="cls", depth=1, num_heads=4, representation_size=8),
    dict(precision="bfloat16", drop_path=0.1),
]
RULES = [optim.AdamW(), optim.SGD(0.1, momentum=0.9), optim.LAMB(), optim.Lion(), optim.Adam()]

def loss(logits, labels, *, xp):
    soft = xp.eye(4)[labels]
    ops.softmax_cross_entropy(logits, soft.astype("float32"), xp=xp)
    return ops.softmax_cross_entropy(logits, labels, 0.1, xp=xp)

for number, options in enumerate(MODELS):
    sizes = dict(image_size=16, num_classes=4, dim=32, depth=2, num_heads=2, mlp_dim=64)
    model = ViT("Ti/4", **{**sizes, **options})
    average = Average(optim.EMA(model))
    trainer = Trainer(model, RULES[number], loss=loss, max_grad_norm=1.0, callbacks=[average])
    loader = Loader(data, 7, shuffle=True)
    trainer.fit(loader, epochs=1)
    trainer.predict(images[:1])
    x = np.ones((2, 3, 16, 16), "float32")
    x.flags.writeable = False
    model(x)
    model.attention_maps(x)
Trainer(model, RULES[4]).fit(loader, epochs=1)
for layer in (nn.LayerNorm(6, xp=np), nn.Linear(6, 2, xp=np), nn.MLP(6, 8, xp=np)):
    ctx = nn.Context(train=True)
    y = layer.forward(np.ones((3, 6), "float32"), ctx)
    layer.backward(y, ctx)
"""


def signatures(program: str) -> dict[str, list[str]]:
    """Return what a program of its own makes ready, by function."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program + SIGNATURES],
        capture_output=True,
        text=True,
        env={**os.environ, "VITKIT_DISABLE_PLUGINS": "1"},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_every_kernel_is_called_ahead() -> None:
    assert {*CALLS, *BRANCHES} == WITH_KERNEL
    assert not CALLS.keys() & BRANCHES.keys()


def test_models_need_nothing_that_is_not_compiled_ahead() -> None:
    ahead = signatures(AHEAD)  # first, so that what both use comes from the cache afterwards
    used = signatures(USE)
    assert len(used) > 20
    missing = {
        f"{name}{kind}"
        for name, kinds in used.items()
        for kind in kinds
        if kind not in ahead.get(name, ())
    }
    assert not missing


def test_progress_and_what_was_done() -> None:
    seen: list[tuple[str, int, int]] = []
    done = compile_all(lambda *args: seen.append(args))
    names = [name for name, _, _ in seen]
    assert {name.partition(",")[0] for name in names} == WITH_KERNEL
    assert [number for _, number, _ in seen] == list(range(len(seen)))
    assert {total for *_, total in seen} == {len(seen)}
    assert ("mlp_branch, bfloat16" in names) is (not _processor.why_no_bfloat16())
    assert done.seconds > 0
    again = compile_all()
    assert again.functions == 0  # all of them are here


def test_what_is_kept() -> None:
    compile_all()
    kept = describe()["compiled"]
    assert kept["functions"] > 20
    assert kept["bytes"] > 1e5


def event(module: str) -> Any:
    """Return what Numba tells when it compiles a function of a module."""
    function = type("F", (), {"__module__": module})
    dispatcher = type("D", (), {"py_func": function})
    return type("E", (), {"data": {"dispatcher": dispatcher}})


def test_the_first_compilation_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    listener = _compilations._Listener()
    with caplog.at_level(logging.WARNING, "vitkit"):
        listener.on_start(event("somebody.else"))
        assert (listener.count, caplog.messages) == (0, [])
        for _ in range(2):
            listener.on_start(event("vitkit.kernels.cpu.mlp"))
            listener.on_end(event("vitkit.kernels.cpu.mlp"))
    assert listener.count == 2
    assert caplog.messages == [_compilations.LINE]
    assert "vitkit kernels compile" in _compilations.LINE


def test_what_is_compiled_ahead_is_not_announced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = _compilations._Listener()
    monkeypatch.setattr(_compilations, "_listener", listener)
    with _compilations.unannounced():
        listener.on_start(event("vitkit.kernels.cpu.mlp"))
    assert caplog.messages == []
    listener.on_start(event("vitkit.kernels.cpu.mlp"))
    assert caplog.messages == [_compilations.LINE]


def test_numba_tells_what_it_compiles() -> None:
    program = """
import numpy as np
from vitkit.kernels.cpu import _compilations, _rows
from vitkit.kernels.cpu._compile import plainly  # which keeps nothing

def f(x):
    return x + 1

f.__module__ = "vitkit.kernels.cpu.f"
before = _compilations.counted()
plainly(f)(1)
assert _compilations.counted() == before + 1
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{_compilations.LINE}\n"


def test_the_description() -> None:
    found = describe()
    assert json.loads(json.dumps(found)) == found
    assert found["why_none"] == ""
    assert serving()["mlp_branch"] == "vitkit.kernels.cpu.mlp"
    assert serving()["pool_first"] == ""
    assert serving().keys() == operations().keys()
    assert found["vector_bits"] in (128, 256, 512)
    assert bool(found["bfloat16"]) is not bool(found["why_no_bfloat16"])


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("VITKIT_NUM_THREADS", "1", "VITKIT_NUM_THREADS"), ("OMP_NUM_THREADS", "1", None)],
)
def test_where_the_number_of_threads_comes_from(
    variable: str, value: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VITKIT_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert describe()["threads_from"] == "the processors there are"
    monkeypatch.setenv(variable, value)
    assert describe()["threads_from"] == (expected or variable)


def test_where_compiled_code_cannot_be_kept_the_references_run() -> None:
    program = """
from numba.core import caching
for place in caching.CacheImpl._locator_classes:  # a read-only installation, and no home
    place.from_function = classmethod(lambda cls, *args: None)
from vitkit.models import ViT
print(ViT("Ti/4", image_size=8, dim=8, depth=1, num_heads=2).num_parameters > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True\n"
    assert done.stderr.startswith("The numpy kernels cannot be used (cannot cache function ")
    assert "operations run by their references" in done.stderr


def test_without_kernels() -> None:
    program = """
from vitkit.kernels.ahead import compile_all
from vitkit.kernels.state import describe, serving
assert describe() == {"why_none": "VITKIT_KERNELS=off"}
assert set(serving().values()) == {""}
try:
    compile_all()
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "VITKIT_KERNELS": "off"},
        timeout=60,
        check=True,
    )
    assert done.stdout == "There are no CPU kernels to compile: VITKIT_KERNELS=off.\n"
