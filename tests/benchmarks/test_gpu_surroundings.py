"""What the programs for GPUs do where there is one, shown by stand-ins; and where there is none."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitkit.backend import cuda_status

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMI = """#!/bin/sh
case "$*" in
  *--loop-ms*) while :; do echo "1980, 612.5, 61"; echo "[N/A], 0, 0"; sleep 0.02; done;;
  *) echo "NVIDIA H200, 580.1, 143771 MiB, 700.00 W, 1980 MHz, 3201 MHz";;
esac
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an ``nvidia-smi`` first among the programs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return program


@pytest.mark.skipif(sys.platform == "win32", reason="no script of a shell is a program there")
def test_what_a_gpu_says_of_itself(gpu_modules: Any, smi: Path) -> None:
    facts = gpu_modules.gpu_machine.facts()
    assert facts["name"] == "NVIDIA H200"
    assert facts["clocks.max.mem"] == "3201 MHz"
    smi.write_text("#!/bin/sh\nexit 9\n")
    failed = gpu_modules.gpu_machine.facts()
    assert failed["name"] == "unknown"
    assert failed["why"].endswith("returned non-zero exit status 9.")
    smi.write_text("#!/bin/sh\n")
    assert gpu_modules.gpu_machine.facts()["why"] == "nvidia-smi: list index out of range"


@pytest.mark.skipif(sys.platform == "win32", reason="no script of a shell is a program there")
@pytest.mark.usefixtures("smi")
def test_how_a_gpu_is_while_it_computes(gpu_modules: Any) -> None:
    began, watch = time.perf_counter(), gpu_modules.gpu_machine.Watch()
    try:
        deadline = time.monotonic() + 30
        while not (found := watch.between(began, math.inf)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found == {"MHz": 1980.0, "W": 612.5, "C": 61.0}  # what is no number is left out
        assert watch.between(began - 2, began - 1) == {}
    finally:
        watch.close()
    assert watch.why == ""


def test_where_nobody_knows_the_gpu(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = gpu_modules.gpu_machine.Watch()
    watch.close()
    assert watch.why.startswith("nvidia-smi: No such file")
    assert watch.between(0.0, math.inf) == {}
    peak = gpu_modules.gpu_machine.peak
    assert peak("NVIDIA H200", 1.0)[0] == 989.5e12
    assert peak("NVIDIA H100 PCIe", 1.0)[0] == 756e12  # the longest name that fits
    assert peak("NVIDIA X1", 5e14) == (
        5e14,
        "500 TFLOP/s, a large product measured here: unknown GPU",
    )
    assert peak("NVIDIA X1", None)[0] is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="nobody can wait for a pipe there")
@pytest.mark.skipif(cuda_status().usable, reason="the programs would use the GPU here")
@pytest.mark.parametrize(
    ("program", "more", "code", "shown"),
    [
        ("gpu_train.py", ["--only", "bfloat16_graph,eager"], 1, "Nobody was timed."),
        ("gpu_kernels.py", ["--only", "norm_low"], 1, "Not measured, since nobody can: norm_low"),
        ("gpu_profile.py", [], 0, "Not measured: skipped: "),
    ],
)
def test_without_a_gpu(program: str, more: list[str], code: int, shown: str) -> None:
    end = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), "tiny", *more],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert end.returncode == code, end.stderr + end.stdout
    assert shown in end.stdout
    assert cuda_status().detail in end.stdout + end.stderr


class Graphs:
    """Stands in for ``torch.cuda``: what a graph holds runs when it is recorded and replayed."""

    Stream = staticmethod(lambda: SimpleNamespace(wait_stream=lambda other: None))
    current_stream = Stream

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.replays = error, 0

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=self._replay)

    def _replay(self) -> None:
        self.replays += 1

    @contextmanager
    def stream(self, stream: Any) -> Any:
        yield

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Any:
        yield
        if self.error:
            raise self.error


def test_pytorch_does_an_operation_several_times_a_graph(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from contenders import gpu_torch_ops

    runs: list[int] = []
    gpu = SimpleNamespace(repeat=lambda function, count: [function() for _ in range(count)] and 6.0)

    def looped(error: Exception | None = None) -> tuple[Any, str, Graphs]:
        monkeypatch.setattr(torch, "cuda", cuda := Graphs(error))
        repeat, note = gpu_torch_ops.looped(lambda: lambda: runs.append(1), gpu)
        return repeat, note, cuda

    repeat, note, cuda = looped()
    assert len(runs) == 3 + gpu_torch_ops.LOOP  # three to warm up
    assert note == ""
    # 25 are asked for: three replays of ten take six seconds, so 25 of them five.
    assert repeat(25) == pytest.approx(5.0)
    assert cuda.replays == 3
    repeat, note, cuda = looped(RuntimeError("operation not permitted"))
    assert note == "without a graph: RuntimeError: operation not permitted"
    runs.clear()
    assert repeat(7) == 6.0
    assert len(runs) == 7
    assert cuda.replays == 0
    with pytest.raises(RuntimeError, match="out of memory"):
        looped(RuntimeError("CUDA out of memory"))


def test_vitkit_does_an_operation_several_times_a_graph(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contenders import gpu_vitkit_ops

    runs: list[int] = []
    gpu = SimpleNamespace(repeat=lambda function, count: [function() for _ in range(count)] and 6.0)
    answers: list[Any] = [RuntimeError("capturing"), MemoryError("out of memory")]

    def record(function: Any, xp: Any) -> Any:
        raise answers.pop(0)

    monkeypatch.setattr(gpu_vitkit_ops, "record", record)
    repeat, note = gpu_vitkit_ops.looped(lambda: runs.append(1), None, gpu, 10)
    assert note == "without a graph: RuntimeError: capturing"
    assert repeat(3) == 6.0
    assert len(runs) == 2 + 3
    with pytest.raises(MemoryError):
        gpu_vitkit_ops.looped(lambda: runs.append(1), None, gpu, 10)


def test_who_finds_no_gpu_says_so(gpu_modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from contenders import gpu_vitkit

    order = gpu_modules.task.Order("train", "tiny", device="cuda")
    cupy = SimpleNamespace(
        __name__="cupy",
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(getDeviceProperties=lambda number: {"name": b"NVIDIA H200"})
        ),
    )
    monkeypatch.setattr(gpu_vitkit, "array_module", lambda name: cupy)
    assert gpu_vitkit.array_module_of(order, "bfloat16") is cupy
    assert gpu_vitkit.name_of(cupy) == "NVIDIA H200"

    def none(name: str) -> Any:
        raise gpu_vitkit.BackendError("no driver")

    monkeypatch.setattr(gpu_vitkit, "array_module", none)
    with pytest.raises(gpu_modules.serve.Skip, match="no driver"):
        gpu_vitkit.array_module_of(order, "bfloat16")


def test_where_pytorch_computes(gpu_modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from contenders import gpu_torch

    order = gpu_modules.task.Order("train", "tiny", device="cuda")
    for has_gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        if has_gpu:
            assert gpu_torch.place(order) == "cuda"
        else:
            with pytest.raises(gpu_modules.serve.Skip, match="sees no GPU"):
                gpu_torch.place(order)


@pytest.mark.skipif(sys.platform == "win32", reason="no script is a program there")
def test_the_same_text_is_compiled_once(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import compiler

    calls, fake = tmp_path / "calls", tmp_path / "fake"
    lines = ["#!/bin/sh", '[ "$1" = --version ] && echo 13.2 && exit', f'echo "$*" >> {calls}']
    lines += ['grep -q error "$4" && exit 3', 'cp "$4" "$3"']
    fake.write_text("\n".join(lines))
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))

    def compiled(text: str) -> tuple[int, str]:
        code, made = tmp_path / "code.cpp", tmp_path / "made.so"
        made.unlink(missing_ok=True)
        code.write_text(text)
        words = [os.environ["CXX"], "-O1", "-o", str(made), str(code)]
        end = subprocess.run(words, check=False)
        return end.returncode, made.read_text() if made.exists() else ""

    with compiler.once():
        assert os.environ["CXX"] != str(fake)
        assert [compiled(text) for text in ("a", "b", "a", "b")] == [
            (0, "a"), (0, "b"), (0, "a"), (0, "b"),
        ]  # fmt: skip
        assert compiled("error") == (3, "")
        assert compiled("error") == (3, "")
        version = [os.environ["CXX"], "--version"]  # which is no text to compile
        assert subprocess.check_output(version, text=True) == "13.2\n"
        assert Path(version[0]).name == "fake"
    assert os.environ["CXX"] == str(fake)
    assert len(calls.read_text().splitlines()) == 2 + 2
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with compiler.once():
        assert os.environ["CXX"] == str(tmp_path / "none")


def test_one_operation_of_pytorch_on_a_gpu(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from contenders import gpu_torch_ops

    freed: list[int] = []
    cuda = Graphs()
    cuda.synchronize, cuda.empty_cache = lambda: None, lambda: freed.append(1)
    cuda.mem_get_info = lambda: (7, 10)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(gpu_torch_ops, "device_of", lambda order: "cpu:0")  # a device with graphs
    order = gpu_modules.task.Order("narrow bfloat16", "tiny", device="cuda")
    work = gpu_torch_ops.prepare("", order)
    assert work.notes == {"remark": ""}
    assert len(work.numbers(work.run())) == 2  # of the one array that comes out
    assert work.repeat(20) > 0
    assert cuda.replays == 1 + 2  # once before the clock runs
    assert freed
    assert gpu_modules.device.of_torch("cuda").free() == 7


def test_products_that_only_cublaslt_has(gpu_modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from contenders import gpu_vitkit_ops

    from vitkit.kernels.cuda import _products
    from vitkit.kernels.cuda._cublaslt import CublasError

    given = SimpleNamespace(xp=SimpleNamespace(__name__="nobody's"))
    with pytest.raises(gpu_modules.serve.Skip, match="no cuBLASLt here"):
        gpu_vitkit_ops.through_gelu(given, lambda products: ())
    monkeypatch.setitem(_products.GELU, "nobody's", SimpleNamespace())

    def fail(products: Any) -> Any:
        raise CublasError("cuBLASLt has no algorithm", 15)

    with pytest.raises(gpu_modules.serve.Skip, match="has no algorithm"):
        gpu_vitkit_ops.through_gelu(given, fail)
    assert gpu_vitkit_ops.through_gelu(given, lambda products: (products,))() == (
        _products.GELU["nobody's"],
    )


def test_who_cannot_record_or_has_no_kernels(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contenders import gpu_vitkit, gpu_vitkit_ops

    from vitkit.testing import cuda_on_cpu, strict_device

    order = gpu_modules.task.Order("train", "tiny", device="dry")
    monkeypatch.setattr(cuda_on_cpu, "why_not", lambda: "there is no C++ compiler")
    with pytest.raises(gpu_modules.serve.Skip, match=r"no C\+\+ compiler"):
        gpu_vitkit.array_module_of(order, "bfloat16")
    monkeypatch.setattr(gpu_vitkit, "array_module_of", lambda order, mode: strict_device.xp)
    monkeypatch.setattr(gpu_vitkit, "can_record", lambda xp: False)
    with pytest.raises(gpu_modules.serve.Skip, match="work on strict_device cannot be recorded"):
        gpu_vitkit.made("bfloat16_graph", order)
    monkeypatch.setattr(gpu_vitkit_ops, "array_module_of", lambda order, mode: None)
    monkeypatch.setattr(gpu_vitkit_ops.kernels, "load", lambda xp: None)
    monkeypatch.setattr(gpu_vitkit_ops.kernels, "why_none", lambda xp: "they are switched off")
    with pytest.raises(gpu_modules.serve.Skip, match="they are switched off"):
        gpu_vitkit_ops.prepare("", order)


def test_a_mode_names_precision_residual_and_graph(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contenders import gpu_vitkit

    from vitkit.testing import strict_device

    made: list[tuple[str, bool]] = []

    def model(c: Any, precision: str, xp: Any, *, residual_in_fp32: bool, seed: Any) -> Any:
        made.append((precision, residual_in_fp32))
        raise gpu_modules.serve.Skip("enough is known")

    monkeypatch.setattr(gpu_vitkit, "array_module_of", lambda order, mode: strict_device.xp)
    monkeypatch.setattr(gpu_vitkit, "checked_model", model)
    entries, order = gpu_modules.entries, gpu_modules.task.Order("train", "tiny", device="dry")
    ours = [each for each in entries.GPU_ENTRIES.values() if each.module == "gpu_vitkit"]
    found = {}
    for entry in (*ours, entries.GPU_PROFILE, entries.GPU_PROFILE_NARROW):
        with pytest.raises(gpu_modules.serve.Skip, match="enough is known"):
            gpu_vitkit.made(entry.mode, order)
        found[entry.mode] = made[-1]
    assert {mode for mode, (_, wide) in found.items() if not wide} == {
        "bfloat16_narrow", "bfloat16_narrow_graph",
    }  # fmt: skip
    for mode, (precision, _) in found.items():
        assert precision == ("float32" if mode == "reference" else mode.partition("_")[0])


def test_everyone_of_a_part_is_known_and_time_is_for_all(gpu_modules: Any) -> None:
    gpu_all, known = gpu_modules.gpu_all, gpu_modules.entries.GPU_ENTRIES
    assert sum(weight for weight, _ in gpu_all.PARTS.values()) <= 520
    for chosen in (gpu_all.PARTS, gpu_all.DRY, gpu_all.DRY_COMPLETE):
        raced = [
            words for _, words in chosen.values() if words[0] in ("gpu_train.py", "gpu_infer.py")
        ]
        asked = [words[words.index("--only") + 1] for words in raced if "--only" in words]
        assert all(set(names.split(",")) <= set(known) for names in asked)
        assert any("bfloat16_narrow_graph" in names for names in asked)


def test_a_part_that_left_nothing_is_said(
    gpu_modules: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parts = {"train_B": {"reason": "no time was left for it"}, "kernels": {"file": "kernels.json"}}
    parts["kernels"]["reason"] = "ended after 95 s"
    found = {"parts": parts, "gpu": {"name": "X1"}, "date": "2026-11-28", "seconds": 500.0}
    gpu_modules.gpu_all.show(found, tmp_path)
    shown = capsys.readouterr().out
    assert "Nobody was timed." in shown
    assert "train_B: no time was left for it.\nkernels: ended after 95 s." in shown


def test_parts_that_nobody_knows() -> None:
    program = [sys.executable, str(BENCHMARKS / "gpu_all.py"), "--out", "unused"]
    end = subprocess.run(
        [*program, "--dry", "--only", "kernels,profile_B"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert end.returncode == 2
    assert "--only: unknown: profile_B; known: train_tiny, infer_tiny, profile_tiny" in end.stderr
