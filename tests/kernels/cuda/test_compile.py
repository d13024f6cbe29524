"""All CUDA kernels compile for several GPUs, by NVRTC or nvcc, without a GPU and without spills.

What a GPU would do with them is not shown here; tests beside this one run them on the CPU.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

import pytest

from vitkit import kernels
from vitkit.kernels.cuda import _kernel
from vitkit.kernels.cuda._kernel import FAMILIES, INCLUDE, OPTIONS

ARCHITECTURES = (75, 80, 90)  # compute capabilities times ten: Turing, Ampere, Hopper
ENTRY = re.compile(
    r"Compiling entry function '_Z(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'"
    r"(?P<report>.*?)(?=Compiling entry function|\Z)",
    re.DOTALL,
)
ON_CPU = re.compile(r"^#ifdef VITKIT_ON_CPU\n.*?^#(?:else|endif)", re.MULTILINE | re.DOTALL)
OF_HOST = re.compile(
    r"^(?!struct )(?:(?:constexpr|inline|static) )*[\w<>:&*]+ \w+\(.*", re.MULTILINE
)
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
WHY_NOT = kernels.import_cuda()
FLUSHED = "-ftz=true"  # CuPy adds this to ours, and to what it gives NVRTC the next
UNMARKED = "--device-as-default-execution-space"
FILES = sorted({family.file for family in FAMILIES})


def sources() -> list[str]:
    """Return the names of all files of CUDA."""
    folder = resources.files(_kernel.__package__)
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".cuh"))


def text_of(name: str) -> str:
    """Return what a file of CUDA says, without what it includes."""
    return (resources.files(_kernel.__package__) / name).read_text("utf-8")


def used(files: Iterable[str]) -> set[str]:
    """Return files and what they include."""
    found: set[str] = set()
    left = list(files)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += INCLUDE.findall(text_of(name))
    return found


def by_nvcc(text: str, names: Sequence[str], architectures: Sequence[int], folder: Path) -> str:
    """Compile functions of a source for some GPUs at once; return what ptxas reported.

    Raises
    ------
    RuntimeError
        If the compiler refused, or warned of something.
    """
    table = ", ".join(f"(const void*)&{name}" for name in names)  # what makes templates functions
    code = folder / "kernels.cu"
    code.write_text(f"{text}\nconst void* table[] = {{{table}}};\n", "utf-8")
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in architectures]
    command = ["nvcc", *OPTIONS, FLUSHED, "-fatbin", *targets, "-Xptxas=-v"]
    command += ["-Werror=all-warnings", "-o", str(folder / "kernels.fatbin"), str(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[:4000])
    return done.stderr


def by_nvrtc(text: str, names: Sequence[str], architectures: Sequence[int], folder: Path) -> str:
    """Compile functions of a source for some GPUs, as CuPy does; return what ptxas reported.

    Raises
    ------
    RuntimeError
        If the compiler refused.
    """
    nvrtc = importlib.import_module("cupy.cuda").nvrtc
    reports = []
    for architecture in architectures:
        program = nvrtc.createProgram(text, "kernels.cu", (), ())
        for name in names:
            nvrtc.addNameExpression(program, name)
        options = (*OPTIONS, FLUSHED, UNMARKED, f"-arch=sm_{architecture}", "--ptxas-options=-v")
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)[:4000]) from error
        reports.append(nvrtc.getProgramLog(program))
    return "\n".join(reports)


Compiler = Callable[[str, Sequence[str], Sequence[int], Path], str]


@pytest.fixture(scope="module")
def compiled() -> Compiler:
    """Return what compiles: NVRTC, since CuPy does by it, or nvcc; skip where neither is there."""
    try:
        importlib.import_module("cupy.cuda").nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        if shutil.which("nvcc"):
            return by_nvcc
        pytest.skip(f"there is no nvcc on the path, and no NVRTC: {str(error).splitlines()[0]}")
    return by_nvrtc


def problems(said: str, names: Sequence[str], architectures: Sequence[int]) -> list[str]:
    """Return what is wrong by ptxas's report: kernels missing, or with numbers in local memory."""
    found, wrong = Counter[tuple[str, int]](), []
    for entry in ENTRY.finditer(said):
        architecture = int(entry["architecture"])
        length = re.match(r"\d+", entry["name"])
        assert length is not None
        name = entry["name"][length.end() :][: int(length[0])]
        found[name, architecture] += 1
        reports = MEMORY.findall(entry["report"])  # its own, and those of functions it calls
        if not reports or any(int(size) for sizes in reports for size in sizes):
            memory = "; ".join(map(" / ".join, reports)) or "not reported"
            wrong.append(f"{name} for sm_{architecture}: bytes of stack and spills: {memory}")
    wanted = Counter(
        (name.partition("<")[0], architecture) for name in names for architecture in architectures
    )
    return wrong + [f"{key}: {wanted[key]} of them" for key in wanted if found[key] != wanted[key]]


def served(file: str) -> dict[tuple[int, ...], list[str]]:
    """Return the names of a file's kernels by the architectures that they run on."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for family in FAMILIES:
        if family.file == file:
            able = tuple(each for each in ARCHITECTURES if each >= family.least)
            groups.setdefault(able, []).extend(kernel.name for kernel in family.kernels())
    return groups


def test_every_kernel_is_known() -> None:
    assert WHY_NOT == ""
    assert used(FILES) == set(sources())
    for family in FAMILIES:
        assert len(family.kernels()) == len(set(family.kernels())) > 0
        assert family.least <= max(ARCHITECTURES)


def test_cupy_adds_these_options() -> None:
    try:
        compiler = importlib.import_module("cupy.cuda.compiler")
    except ImportError as error:
        pytest.skip(f"CuPy is not installed: {error}")
    added = re.findall(r"options \+= \('(-[^']+)',\)", inspect.getsource(compiler))
    assert {FLUSHED, UNMARKED} <= set(added)


def functions_of_host(text: str) -> list[str]:
    """Return how functions begin that would run on the host, which NVRTC refuses and nvcc takes."""
    return OF_HOST.findall(ON_CPU.sub("", text))


@pytest.mark.parametrize("file", sources())
def test_functions_are_of_the_device(file: str) -> None:
    assert functions_of_host(text_of(file)) == []


def test_functions_of_the_host_are_found() -> None:
    unmarked = "constexpr int f(int x) { return x; }"
    assert functions_of_host(f"// {unmarked}\n{unmarked}\n__device__ int g() {{}}") == [unmarked]


@pytest.mark.parametrize("file", FILES)
def test_kernels_compile_and_keep_to_registers(
    file: str, compiled: Compiler, tmp_path: Path
) -> None:
    for architectures, names in served(file).items():
        report = compiled(_kernel.source(file), names, architectures, tmp_path)
        assert problems(report, names, architectures) == []


GOOD = """
template <class T> __global__ void twice(T* x) { x[threadIdx.x] *= 2; }
"""
STACK = """
template <class T> __global__ void twice(T* x) {
  T some[64] = {};
  for (int i = 0; i < 64; i++) some[(int)x[i] & 63] += x[i + 64];
  for (int i = 0; i < 64; i++) x[i] = some[i];
}
"""
SPILLS = """
template <class T> __global__ void __launch_bounds__(1024) twice(T* x) {
  T some[96];
  for (int i = 0; i < 96; i++) some[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 96; i++) x[i * 1024 + 1023 - threadIdx.x] = some[i];
}
"""
TOO_NEW = """
template <class T> __global__ void twice(T* x) { asm("max.NaN.f32 %0, %0, %0;" : "+f"(*x)); }
"""


def test_what_is_asked_of_kernels_can_be_had(compiled: Compiler, tmp_path: Path) -> None:
    names = ["twice<float>", "twice<double>"]
    report = compiled(GOOD, names, ARCHITECTURES, tmp_path)
    assert problems(report, names, ARCHITECTURES) == []
    missing = problems(report, [*names, "twice<int>", "thrice"], (*ARCHITECTURES, 100))
    assert len(missing) == 2 * 4


@pytest.mark.parametrize("text", [STACK, SPILLS])
def test_numbers_in_local_memory_are_found(text: str, compiled: Compiler, tmp_path: Path) -> None:
    report = compiled(text, ["twice<float>"], ARCHITECTURES, tmp_path)
    assert len(problems(report, ["twice<float>"], ARCHITECTURES)) == len(ARCHITECTURES)


@pytest.mark.parametrize(
    ("text", "name", "architecture"),
    [
        (GOOD.replace("*=", "*=="), "twice<float>", 90),
        (GOOD, "thrice<float>", 90),
        (GOOD, "twice<bf16>", 90),
        (TOO_NEW, "twice<float>", 75),
    ],
)
def test_what_does_not_compile_is_found(
    text: str, name: str, architecture: int, compiled: Compiler, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):
        compiled(text, [name], [architecture], tmp_path)
