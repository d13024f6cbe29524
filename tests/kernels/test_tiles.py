"""The kernels for the tile unit (AMX) are run on every processor: its instructions by software."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitkit import kernels

if reason := kernels.why_none(np):
    pytest.skip(f"no CPU kernels here: {reason}", allow_module_level=True)

from software_tiles import PLANTED, build, why_not

if reason := why_not():
    pytest.skip(f"tiles cannot be run by software: {reason}", allow_module_level=True)

HERE = Path(__file__).parent
REACHED = {0: "corner", 1: "left", 2: "upper", 3: "whole", 6: "upper added", 7: "whole added"}
NOTICED = {
    "threads without tiles": "tilezero, but this thread has not configured its tiles",
    "fewer rows in a tile": "tdpbf16ps of (8, 64) with (8, 64) to (8, 64) rows and bytes",
    "rows beyond the last": "bytes that lie in no array of the kernel",
}
SUITE = """
import json, sys
sys.path.insert(0, {here!r})
import software_tiles
unit = software_tiles.install({library!r})
import pytest
# vitkit is imported before pytest can rewrite what its plugin asserts.
spared = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
failed = pytest.main(["-q", *spared, "-k", "not every_column", *{files!r}])
found = dict(counts=unit.counts(), users=sorted(unit.users), used=sorted(unit.used))
print(json.dumps(found))
sys.exit(failed)
"""
# Plain Python, which starts fast; "good" is the configuration of the kernels.
REFUSED = """
import ctypes, sys, threading
lib = ctypes.CDLL(sys.argv[1])
good = bytearray([1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8)
memory = (ctypes.c_uint8 * 2048)()
first = ctypes.addressof(memory)
lib.tiles_allow.argtypes = [ctypes.c_size_t] * 2
lib.tiles_tileloadd64.argtypes = lib.tiles_tilestored64.argtypes = [
    ctypes.c_uint8, ctypes.c_size_t, ctypes.c_int64
]
lib.tiles_begin()
lib.tiles_allow(first, 1024)
def configure(**changed):
    palette = good[:]
    for place, value in changed.items():
        palette[int(place[1:])] = value
    lib.tiles_ldtilecfg(bytes(palette))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("tiles")))


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        # Never where kernels are kept: their code would call functions that no one else has.
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def from_words(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def product(library: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return what one instruction adds to c: a (16, 32) times b, as 16 x 16 pairs, in bfloat16."""
    lib = ctypes.CDLL(library)
    result = c.copy()
    lib.tiles_begin()
    lib.tiles_ldtilecfg(bytes([1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8))
    lib.tiles_allow.argtypes = [ctypes.c_size_t] * 2
    for tile, array in enumerate((result, a, b)):
        lib.tiles_allow(array.ctypes.data, array.nbytes)
        lib.tiles_tileloadd64(tile, ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(64))
    lib.tiles_tdpbf16ps(0, 1, 2)
    lib.tiles_tilestored64(0, ctypes.c_void_p(result.ctypes.data), ctypes.c_int64(64))
    return result


def test_the_instruction_sums_as_it_is_documented(library: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (
        (rng.standard_normal((16, 32)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        for _ in range(2)
    )
    c = rng.standard_normal((16, 16)).astype(np.float32)
    left, right = from_words(a).astype(float), from_words(b).astype(float)
    even, odd = np.zeros((2, 16, 16), np.float32)
    for k in range(16):  # float64 holds each sum before it is rounded once
        even = (even + np.outer(left[:, 2 * k], right[k, ::2])).astype(np.float32)
        odd = (odd + np.outer(left[:, 2 * k + 1], right[k, 1::2])).astype(np.float32)
    np.testing.assert_array_equal(product(library, a, b, c), c + (even + odd))


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        ([0x4B80, 0x3F80], [0x3F80, 0x3F80], 0.0, 2.0**24),  # 2^24 + 1 is a tie, to even
        ([0x4B80, 0x3FC0], [0x3F80, 0x3F80], 0.0, 2.0**24 + 2),  # 2^24 + 1.5
        ([0x0001, 0], [0x7E80, 0], 0.0, 0.0),  # 2^-133 times 2^126, and is zero before
        ([0x0D80, 0], [0x3080, 0], 0.0, 0.0),  # 2^-100 times 2^-30, and is zero after
        ([0, 0], [0, 0], 1e-40, 0.0),
        ([0x7F80, 0], [0, 0], 1.0, np.nan),  # infinity times 0
        ([0x7F80, 0], [0x3F80, 0], 1.0, np.inf),
    ],
)
def test_it_rounds_to_the_nearest_and_knows_no_denormal_numbers(
    a: list[int], b: list[int], c: float, expected: float, library: str
) -> None:
    left, right = np.zeros((2, 16, 32), np.uint16)
    left[3, 4:6], right[2, 10:12] = a, b
    sums = np.zeros((16, 16), np.float32)
    sums[3, 5] = c
    found = product(library, left, right, sums)
    np.testing.assert_array_equal(found[3, 5], np.float32(expected))
    assert np.float32(1e-40) * np.float32(1) != 0  # who called it still knows them


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("lib.tiles_tilezero(0)", "not configured"),
        ("configure(); lib.tiles_begin(); lib.tiles_tilezero(0)", "not configured"),
        (
            "configure(); t = threading.Thread(target=lib.tiles_tilezero, args=(0,)); t.start();"
            "t.join()",
            "not configured",
        ),
        ("configure(_0=2)", "palette 2"),
        ("configure(_1=1)", "starts at row 1"),
        ("configure(_2=1)", "reserved byte 2"),
        ("configure(_40=1)", "reserved byte 40"),
        ("configure(_63=1)", "reserved byte 63"),
        ("configure(_48=17)", "tile 0 to 17 rows of 64 bytes"),
        ("configure(_18=65)", "tile 1 to 16 rows of 65 bytes"),
        ("configure(_16=0)", "tile 0 to 16 rows of 0 bytes"),
        ("configure(); lib.tiles_tilezero(8)", "tile 8"),
        ("configure(_50=0, _20=0); lib.tiles_tilezero(2)", "tile 2, which has no rows"),
        ("configure(); lib.tiles_tdpbf16ps(0, 1, 1)", "must differ"),
        ("configure(_48=8); lib.tiles_tdpbf16ps(0, 1, 2)", "(16, 64) with (16, 64) to (8, 64)"),
        ("configure(_18=60); lib.tiles_tdpbf16ps(0, 1, 2)", "(16, 60) with (16, 64) to (16, 64)"),
        ("configure(_20=60); lib.tiles_tdpbf16ps(0, 1, 2)", "(16, 64) with (16, 60) to (16, 64)"),
        ("configure(_18=62); lib.tiles_tdpbf16ps(0, 1, 2)", "(16, 62) with"),
        ("configure(); lib.tiles_tileloadd64(0, first + 1, 64)", "tileloadd of 1024 bytes that"),
        ("configure(); lib.tiles_tileloadd64(0, first, 65)", "tileloadd of 1039 bytes that"),
        ("configure(); lib.tiles_tilestored64(0, first, -64)", "tilestored of 1024 bytes that"),
    ],
)
def test_what_is_wrong_on_the_hardware_ends_the_process(
    code: str, message: str, library: str, tmp_path: Path
) -> None:
    done = run("-I", "-S", "-c", REFUSED + code, library, folder=tmp_path)
    assert done.returncode < 0, done.stderr
    assert message in done.stderr


def test_what_is_right_there_does_not(library: str, tmp_path: Path) -> None:
    code = """
configure()
lib.tiles_tileloadd64(0, first, 64)
lib.tiles_tileloadd64(1, first + 960, -64)
lib.tiles_tilezero(2)
lib.tiles_tdpbf16ps(0, 1, 2)
lib.tiles_tilestored64(0, first, 64)
"""
    done = run("-I", "-S", "-c", REFUSED + code, library, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_kind_of_block_is_multiplied_right(library: str, tmp_path: Path) -> None:
    done = run(str(HERE / "tile_products.py"), library, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *blocks, threads = map(int, done.stdout.split())
    assert all(blocks), blocks
    assert threads == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_what_is_planted_is_noticed(fault: str, library: str, tmp_path: Path) -> None:
    done = run(str(HERE / "tile_products.py"), library, fault, folder=tmp_path)
    assert done.returncode != 0
    assert NOTICED.get(fault, "Arrays are not equal") in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)  # every kernel is compiled, a minute or two on a machine that is not busy
def test_kernels_for_tiles_pass_the_tests_of_bfloat16(library: str, tmp_path: Path) -> None:
    files = [str(HERE / name) for name in ("test_bfloat16.py", "test_gradients.py")]
    code = SUITE.format(here=str(HERE), library=library, files=files)
    # Options for this process, such as workers, are none of the other's.
    settings = {"VITKIT_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", "PYTEST_ADDOPTS": ""}
    done = run("-c", code, folder=tmp_path, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    *blocks, threads = found["counts"]
    assert threads >= 2
    assert not [name for kind, name in REACHED.items() if not blocks[kind]]
    assert found["used"] == found["users"]  # no kernel that configures tiles is left out
    assert len(found["users"]) >= 9
