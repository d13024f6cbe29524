"""F12: files that declare or unpack to far more than they hold are refused before memory is taken.

Each is read in a process of its own, which measures the growth of its memory and its time.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from injecting import Injected

if importlib.util.find_spec("resource") is None:
    pytest.skip("no use of memory can be asked for on this system", allow_module_level=True)

from bombs import BOMBS, MIB

CHILD = Path(__file__).with_name("bombs.py")
MOST_MIB = 128
MOST_SECONDS = 2.0


def measured(name: str, path: Path) -> dict[str, object]:
    command = [sys.executable, str(CHILD), name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(
    name: str, tmp_path: Path, injected: Injected
) -> None:
    make, _, refusal = BOMBS[name]
    content, path = make(), tmp_path / "bomb"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
        assert len(content) < 12 * MIB
    found = measured(name, path)
    outcome = str(found["outcome"])
    assert float(str(found["mib"])) <= MOST_MIB, found
    assert float(str(found["seconds"])) <= MOST_SECONDS, found
    assert refusal in outcome
    assert bool(refusal) == bool(outcome)
    assert outcome.partition(":")[0] in ("", "DataError", "ConfigError", "CheckpointError")
    injected("bomb", 1)


def test_the_measurement_sees_memory(tmp_path: Path, injected: Injected) -> None:
    assert float(str(measured("hungry", tmp_path / "none")["mib"])) > 250
    assert len(BOMBS) >= 16
    injected("bombs in all", len(BOMBS), at_least=16)
