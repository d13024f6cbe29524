"""The suite fails for each of these bugs, planted one at a time in a copy of the package.

Most are the ancestors' own bugs; the others are those that hand-written gradients invite. A plant
replaces text that must occur exactly once, so it cannot silently miss; the copy without a plant
passes the same tests; and a plant must fail them by a wrong number, not by an exception of the
interpreter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("pyproject.toml", "vitkit", "tests/conftest.py"),
    *("tests/parity", "tests/ops", "tests/kernels"),
)

OPS = "tests/parity/test_torch_ops.py"
LOSSES = "tests/parity/test_torch_losses.py"
LAYERS = "tests/parity/test_torch_layers.py"
MODEL = "tests/parity/test_torch_vit.py"
GRADIENTS = f"{MODEL}::test_logits_loss_and_every_gradient"
KERNELS = "tests/kernels/test_cpu.py"
TRAJECTORY = "tests/parity/test_torch_training.py::test_trajectory"


class Plant(NamedTuple):
    """A bug: in which file what is replaced by what, and the test that must see it."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    test: str

    @property
    def in_kernel(self) -> bool:
        """Whether the bug is in a kernel, and the reference sound."""
        return self.file.startswith("kernels/")


def plant(name: str, file: str, old: str, new: str, test: str) -> Plant:
    """Return a plant of a single change."""
    return Plant(name, file, ((old, new),), test)


PLANTS = (
    # Softmax and attention: what all four ancestors got wrong.
    plant(
        "softmax sums over another axis",
        "ops/softmax.py",
        "y /= y.sum(axis=axis, keepdims=True)",
        "y /= y.sum(axis=0, keepdims=True)",
        f"{OPS}::test_softmax",
    ),
    plant(
        "softmax subtracts the maximum of another row",
        "ops/softmax.py",
        "x.max(axis=axis, keepdims=True)",
        "x.max(axis=0, keepdims=True)",
        "tests/ops/test_softmax.py",
    ),
    plant(
        "softmax backward without the sum over the row",
        "ops/softmax.py",
        "y * (dy - (dy * y).sum(axis=axis, keepdims=True))",
        "y * dy",
        "tests/ops/test_softmax.py",
    ),
    plant(
        "attention scores lose the maximum of a key's column",
        "ops/attention.py",
        "scores.max(axis=-1, keepdims=True)",
        "scores.max(axis=-2, keepdims=True)",
        f"{OPS}::test_multi_head_attention",
    ),
    plant(
        "attention does not divide by the root of the width",
        "ops/attention.py",
        "return (q * q.shape[-1] ** -0.5) @",
        "return q @",
        f"{LAYERS}::test_attention",
    ),
    plant(
        "attention backward does not divide by the root of the width",
        "ops/attention.py",
        "    ds *= q.shape[-1] ** -0.5\n",
        "",
        "tests/ops/test_attention.py",
    ),
    plant(
        "attention backward without delta",
        "ops/attention.py",
        "    ds -= delta\n",
        "",
        "tests/ops/test_attention.py",
    ),
    plant(
        "the sum of exponentials is forgotten in backward",
        "ops/attention.py",
        "    scores -= log_total[..., None]\n",
        "",
        "tests/ops/test_attention.py",
    ),
    plant(
        "keys and values change places",
        "ops/attention.py",
        "q, k, v = parts.transpose(2, 0, 3, 1, 4)",
        "q, v, k = parts.transpose(2, 0, 3, 1, 4)",
        f"{LAYERS}::test_attention",
    ),
    plant(
        "queries and keys change places",
        "ops/attention.py",
        "q, k, v = parts.transpose(2, 0, 3, 1, 4)",
        "k, q, v = parts.transpose(2, 0, 3, 1, 4)",
        GRADIENTS,
    ),
    plant(
        "heads are interleaved in the output",
        "ops/attention.py",
        "y = y.transpose(0, 2, 1, 3)",
        "y = y.transpose(0, 2, 3, 1)",
        "tests/ops/test_attention.py",
    ),
    # Other gradients.
    Plant(
        "layer norm backward pulls gamma out of the sums",
        "ops/layer_norm.py",
        (("dx = dy * weight", "dx = dy.copy()"), ("dx *= rstd", "dx *= rstd * weight")),
        f"{LAYERS}::test_layer_norm",
    ),
    plant(
        "layer norm backward without the mean",
        "ops/layer_norm.py",
        "    dx -= mean_g\n",
        "",
        GRADIENTS,
    ),
    plant(
        "layer norm adds epsilon outside the root",
        "ops/layer_norm.py",
        "1 / xp.sqrt(variance + eps)",
        "1 / (xp.sqrt(variance) + eps)",
        "tests/ops/test_layer_norm.py",
    ),
    plant(
        "gelu backward without the density",
        "ops/gelu.py",
        "return dy * (cdf + x * pdf)",
        "return dy * cdf",
        "tests/ops/test_activations.py",
    ),
    plant(
        "gelu is its tanh form",
        "nn/activation.py",
        '"gelu", ops.gelu, ops.gelu_backward',
        '"gelu", ops.gelu_tanh, ops.gelu_tanh_backward',
        f"{LAYERS}::test_mlp",
    ),
    plant(
        "gelu backward leaks float64",
        "ops/gelu.py",
        "* (1 / math.sqrt(2 * math.pi))",
        "* xp.asarray(1 / math.sqrt(2 * math.pi))",
        f"{OPS}::test_activation",
    ),
    plant(
        "a bias has the mean of the rows for gradient",
        "ops/linear.py",
        "rows.sum(axis=0)",
        "rows.mean(axis=0)",
        "tests/ops/test_linear.py",
    ),
    plant(
        "mean pooling backward does not divide",
        "ops/pooling.py",
        "(dy * (1 / num_tokens))",
        "(dy * 1)",
        "tests/ops/test_pooling.py",
    ),
    plant(
        "positions get no gradient",
        "models/vit.py",
        "self.pos_embed.add_grad(dpos_embed)",
        "del dpos_embed",
        GRADIENTS,
    ),
    plant(
        "attention of the last block gets the gradient of another token",
        "nn/block.py",
        "(dx[:, 0], *stopped",
        "(dx[:, -1], *stopped",
        GRADIENTS,
    ),
    plant(
        "the class token gets no gradient",
        "models/vit.py",
        "self.cls_token.add_grad(dcls_token)",
        "del dcls_token",
        GRADIENTS,
    ),
    plant(
        "backward leaves out a residual",
        "nn/residual.py",
        "return dy + norm.backward(",
        "return norm.backward(",
        f"{LAYERS}::test_block_with_dropout",  # whose branches are no single operations
    ),
    plant(
        "backward of a branch leaves out its residual",
        "ops/mlp.py",
        "    dx += dy\n",
        "",
        f"{LAYERS}::test_block",
    ),
    plant(
        "a gradient replaces what was there",
        "nn/parameter.py",
        "self.grad += grad",
        "self.grad[...] = grad",
        f"{LAYERS}::test_linear",
    ),
    Plant(
        "a layer keeps its input on itself",
        "nn/linear.py",
        (
            ("ctx.push(self, x)", "ctx.push(self); self.x = x"),
            ("(x,) = ctx.pop(self)", "ctx.pop(self); x = self.x"),
        ),
        f"{LAYERS}::test_linear",
    ),
    # The model.
    plant(
        "patches are flattened channel last",
        "ops/patches.py",
        "patches.transpose(0, 2, 4, 1, 3, 5)",
        "patches.transpose(0, 2, 4, 3, 5, 1)",
        "tests/ops/test_patches.py",
    ),
    plant(
        "patches are read by columns",
        "ops/patches.py",
        "patches.transpose(0, 2, 4, 1, 3, 5)",
        "patches.transpose(0, 4, 2, 1, 3, 5)",
        f"{MODEL}::test_inference",
    ),
    Plant(
        "no final layer norm",
        "models/vit.py",
        (
            (
                "self.pool.forward(self.norm.forward(x, ctx), ctx)",
                "self.pool.forward(x, ctx)",
            ),
            (
                "self.norm.backward(self.pool.backward(dx, ctx), ctx)",
                "self.pool.backward(dx, ctx)",
            ),
        ),
        GRADIENTS,
    ),
    # Dropout.
    plant(
        "dropout is active in evaluation",
        "nn/dropout.py",
        "return ctx.train and self.rate > 0",
        "return self.rate > 0",
        f"{MODEL}::test_inference",
    ),
    plant(
        "dropout backward draws another mask",
        "nn/dropout.py",
        "self._backward(dy, self.rate, key, xp=self.xp)",
        "self._backward(dy, self.rate, (*key[:2], key[2] + 1), xp=self.xp)",
        f"{LAYERS}::test_block_with_dropout",
    ),
    plant(
        "dropout does not rescale what it keeps",
        "ops/dropout.py",
        "return x * _mask(x.shape, rate, key, xp) * (1 / (1 - rate))",
        "return x * _mask(x.shape, rate, key, xp)",
        "tests/ops/test_dropout.py",
    ),
    plant(
        "checkpointing replays other draws",
        "nn/wrappers.py",
        "ctx.replay(drawn)",
        "ctx.replay(drawn + 1)",
        f"{LAYERS}::test_block_with_dropout",
    ),
    # Losses.
    plant(
        "cross-entropy's gradient is that of the sum",
        "ops/losses.py",
        "    dlogits /= batch\n",
        "",
        f"{LOSSES}::test_softmax_cross_entropy",
    ),
    plant(
        "label smoothing has the wrong sign",
        "ops/losses.py",
        "targets * (1 - label_smoothing) + label_smoothing / classes",
        "targets * (1 + label_smoothing) - label_smoothing / classes",
        f"{LOSSES}::test_softmax_cross_entropy",
    ),
    # Optimizers.
    plant(
        "Adam's step count stands still",
        "optim/optimizer.py",
        "self.steps += 1",
        "self.steps = 1",
        TRAJECTORY,
    ),
    plant(
        "AdamW's decay passes through the moments",
        "ops/updates.py",
        "w *= 1 - lr * weight_decay",
        "g = g + weight_decay * w",
        TRAJECTORY,
    ),
    plant(
        "biases have weight decay",
        "nn/linear.py",
        "Parameter((dim_out,), bias_init, decay=False)",
        "Parameter((dim_out,), bias_init)",
        TRAJECTORY,
    ),
    plant(
        "positions have weight decay",
        "models/vit.py",
        "scheme.pos_embed, decay=False)",
        "scheme.pos_embed)",
        TRAJECTORY,
    ),
    plant(
        "the warm-up starts from zero",
        "optim/schedules.py",
        "self.lr * (step + 1) / self.warmup_steps",
        "self.lr * step / self.warmup_steps",
        TRAJECTORY,
    ),
    plant(
        "clipping enlarges small gradients",
        "ops/norms.py",
        "xp.minimum(1.0, max_norm / (norm + 1e-6))",
        "max_norm / (norm + 1e-6)",
        f"{LOSSES}::test_clipping",
    ),
    # Kernels, whose references are sound.
    plant(
        "the numbers after the last whole cache line are left out",
        "kernels/cpu/_rows.py",
        "last = total if part + 1 == parts else total",
        "last = total",
        f"{KERNELS}::test_values[rows-33-gelu]",
    ),
    plant(
        "every piece of a mask is the first",
        "kernels/cpu/dropout.py",
        "1 + i // BLOCK",
        "1",
        f"{KERNELS}::test_long_arrays_in_several_pieces[2051-dropout]",
    ),
    plant(
        "the kernel of gelu_tanh backward has the cubic's factor without its 3",
        "kernels/cpu/_math.py",
        "(LINEAR + F(3) * CUBE * square)",
        "(LINEAR + CUBE * square)",
        f"{KERNELS}::test_values[rows-33-gelu_tanh_backward]",
    ),
    plant(
        "the kernel of layer norm backward without the mean",
        "kernels/cpu/_rows.py",
        " - plain - x_hat * along",
        " - x_hat * along",
        f"{KERNELS}::test_values[rows-33-layer_norm_backward]",
    ),
    plant(
        "the kernel of AdamW shrinks no weight",
        "kernels/cpu/updates.py",
        "F(1 - lr * weight_decay)",
        "ONE",
        f"{KERNELS}::test_values[rows-33-adamw_update_inplace]",
    ),
)

# What broken Python raises, as opposed to a wrong number.
BROKEN = "AttributeError|ImportError|IndexError|NameError|SyntaxError|TypeError|UnboundLocalError"


def run_tests(folder: Path, *tests: str, use_kernels: bool) -> subprocess.CompletedProcess[str]:
    """Run tests in a copy of the repository, on NumPy."""
    dropped = ("PYTEST", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    settings = {
        "VITKIT_TEST_XP": "numpy",
        # A kernel would hide what is planted in its reference.
        "VITKIT_KERNELS": "" if use_kernels else "off",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env={**ours, **settings},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def report(result: subprocess.CompletedProcess[str]) -> str:
    return f"exit {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-2000:]}"


@pytest.fixture(scope="session")
def sound_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package and its tests that passes every test of the table."""
    pytest.importorskip("torch", reason="PyTorch, which the planted bugs are seen by, is missing")
    folder = tmp_path_factory.mktemp("sound")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    for use_kernels in (False, True):
        tests = {planted.test for planted in PLANTS if planted.in_kernel == use_kernels}
        result = run_tests(folder, *sorted(tests), use_kernels=use_kernels)
        assert result.returncode == 0, report(result)
        assert re.search(r"^\d+ passed", result.stdout, re.MULTILINE), report(result)
        assert "skipped" not in result.stdout, report(result)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTS, ids=lambda planted: planted.name)
def test_the_suite_fails(planted: Plant, sound_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    shutil.copytree(sound_copy, folder)  # with its compiled files, but for the one changed
    file = folder / "vitkit" / planted.file
    text = file.read_text("utf-8")
    for old, new in planted.changes:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {planted.file}"
        text = text.replace(old, new)
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
    file.write_text(text, "utf-8")

    result = run_tests(folder, planted.test, use_kernels=planted.in_kernel)

    assert result.returncode == 1, f"The tests do not see that {planted.name}: {report(result)}"
    summary = result.stdout.rstrip().splitlines()[-1]
    assert re.match(r"1 failed\b", summary), report(result)
    assert "error" not in summary, report(result)
    assert not re.search(rf"^E +({BROKEN})\b", result.stdout, re.MULTILINE), report(result)
