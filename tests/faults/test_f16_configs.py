"""F16: a wrong configuration is a ConfigError with a line for each problem; a right one comes back.

Whatever is wrong, with a file, ``--set`` or a setting: the line says where, what a slip of the
keyboard was meant to be, and nothing in it can move the cursor or begin a line of its own.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from configurations import (
    BROKEN_SETS,
    KNOWN,
    SETTINGS,
    Invalid,
    broken_files,
    invalid,
    tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from injecting import Injected, faults
from unknown_names import Unknown, unknown_names

from vitkit.cli import main
from vitkit.config import RunConfig, dumps, load
from vitkit.config.preflight import preflight
from vitkit.errors import ConfigError
from vitkit.plugins import registries

LONGEST = 700  # characters of a line: a list of known names, a long path, a value cut at 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configurations")


def written(folder: Path, texts: Sequence[str | bytes]) -> list[Path]:
    """Return files with these contents."""
    files = [folder / f"{index}.toml" for index in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return files


def problems(
    files: Sequence[Path], overrides: Sequence[str], flags: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the lines about a wrong configuration, each of which can be printed as it is."""
    with pytest.raises(ConfigError) as caught:
        load(files, overrides, flags, environ={})
    return printable(caught.value.problems)


def printable(found: list[str]) -> list[str]:
    """Return lines that can be printed as they are."""
    assert found
    for line in found:
        assert line.isprintable(), line
        assert 0 < len(line) <= LONGEST, line
    return found


def suggested(line: str) -> str:
    """Return the name that a line suggests, if it does."""
    match = re.search(r"; did you mean '?([\w.]+)'?\?", line)
    return match[1] if match else ""


def near(one: str, other: str) -> bool:
    """Whether one slip of the keyboard turns one word into the other."""
    one, other = one.lower(), other.lower()
    short, long = sorted((one, other), key=len)
    if len(short) == len(long):
        differ = [i for i, (a, b) in enumerate(zip(short, long, strict=True)) if a != b]
        swapped = len(differ) == 2 and sorted(short[i] for i in differ) == sorted(
            long[i] for i in differ
        )
        return len(differ) <= 1 or swapped
    return len(long) - len(short) == 1 and any(
        long[:i] + long[i + 1 :] == short for i in range(len(long))
    )


def test_wrong_settings_have_a_line_each(folder: Path, injected: Injected) -> None:
    count: Counter[str] = Counter()

    @settings(max_examples=faults(3500, 100_000))
    @given(invalid())
    def check(case: Invalid) -> None:
        found = problems(written(folder, case.files), case.overrides, case.flags)
        assert Counter(line.partition(": ")[0] for line in found) == Counter(
            wrong.where for wrong in case.wrong
        ), found
        for wrong in case.wrong:
            count["settings"] += 1
            if not wrong.meant:
                continue
            count["near misses"] += 1
            line = next(line for line in found if line.startswith(f"{wrong.where}: "))
            name, slip = suggested(line), wrong.value.strip("'")
            if "unknown setting" in line:
                assert name in KNOWN, line
                name, slip = name.rpartition(".")[2], wrong.keys[-1]
            assert name in wrong.meant.split(".") or near(name, slip), line
        count["configurations"] += 1

    check()
    injected("wrong configurations", count["configurations"], at_least=faults(3500))
    injected("near misses in them", count["near misses"], at_least=faults(500))


def test_files_that_are_no_toml(folder: Path, injected: Injected) -> None:
    count = Counter[str]()

    @settings(max_examples=faults(500, 10_000))
    @given(broken_files())
    def check(content: bytes) -> None:
        files = written(folder, [content, "[train]\nepochs = true"])
        found = problems(files, [])
        assert [line.partition(": ")[0] for line in found] == [str(files[0]), "train.epochs"], found
        assert re.search(
            r": (line \d+, column \d+: |is not TOML|byte \d+ is not|is nested)", found[0]
        )
        count[str(hash(content))] += 1

    check()
    injected("files that are no TOML", sum(count.values()), at_least=faults(300))


def test_texts_of_set_that_set_nothing(injected: Injected) -> None:
    count = Counter[str]()

    @settings(max_examples=faults(400, 5000))
    @given(st.lists(st.sampled_from(BROKEN_SETS), min_size=1, max_size=4, unique=True))
    def check(texts: list[str]) -> None:
        found = problems([], texts)
        assert len(found) == len(texts), found
        for text, line in zip(texts, found, strict=True):
            path = text.partition("=")[0].strip()
            assert line.startswith(("--set: got ", f"{path}: got ")), line
        count["texts"] += 1

    check()
    injected("lists of broken texts of --set", count["texts"], at_least=faults(300))


def test_names_near_those_that_there_are(injected: Injected) -> None:
    count = Counter[str]()
    names = registries()

    @settings(max_examples=faults(600, 10_000))
    @given(unknown_names())
    def check(unknown: list[Unknown]) -> None:
        config = load([], [each.override for each in unknown], environ={})
        found = printable(preflight(config, None, None, names))
        assert Counter(line.partition(": ")[0] for line in found) == Counter(
            each.where for each in unknown
        ), found
        for each in unknown:
            line = next(line for line in found if line.startswith(f"{each.where}: "))
            name = suggested(line)
            assert name == each.meant or near(name, each.slip), line
        count["configurations"] += 1

    check()
    injected("configurations with names that nothing has", count["configurations"], at_least=400)


@pytest.mark.parametrize(
    "name", ["a\nb.toml", "\x1b[31m.toml", "a b.toml", "\udcff.toml", "-x.toml"]
)
def test_a_file_with_an_odd_name_is_named_on_one_line(tmp_path: Path, name: str) -> None:
    (line,) = problems([tmp_path / name], [])
    assert line.endswith(": cannot be read (No such file or directory).")
    if name.isprintable():
        assert line.startswith(str(tmp_path / name))


def test_the_command_line_says_all_of_it_and_ends_with_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    injected: Injected,
) -> None:
    """Wrong settings, names and files together, through the whole command line."""
    cases = 0
    monkeypatch.chdir(folder)

    @settings(max_examples=faults(60, 600))
    @given(st.none() | invalid(), unknown_names())
    def check(case: Invalid | None, unknown: list[Unknown]) -> None:
        nonlocal cases
        overrides = [*(case.overrides if case else ()), *(each.override for each in unknown)]
        files = written(folder, case.files if case else ())
        options = [word for file in files for word in ("--config", str(file))]
        options += [word for text in overrides for word in ("--set", text)]
        monkeypatch.setattr(sys, "argv", ["vitkit", "train", *options])
        with pytest.raises(SystemExit) as left:
            main.main()
        shown, said = capsys.readouterr()
        assert (left.value.code, shown) == (2, ""), said
        lines = printable(said.splitlines())
        assert all(line.startswith("vitkit: ") for line in lines), said
        heads = [line.removeprefix("vitkit: ").partition(": ")[0] for line in lines]
        if case is None:
            assert sorted(heads) == sorted(each.where for each in unknown), said
        else:
            taken = {".".join(each.keys) for each in case.wrong if each.for_set}
            overridden = {each.override.partition("=")[0] for each in unknown}
            given_ = taken - set(case.flags) - overridden
            assert {each.where for each in case.wrong if ".".join(each.keys) in given_} <= set(
                heads
            )
        cases += 1

    check()
    injected("wrong command lines", cases, at_least=faults(60))
    assert not (folder / "runs").exists()


# --- right ones ------------------------------------------------------------------------------


def test_a_configuration_comes_back_from_toml(folder: Path, injected: Injected) -> None:
    count = Counter[str]()

    @settings(max_examples=faults(2000, 50_000))
    @given(tables())
    def check(table: dict[str, Any]) -> None:
        config = RunConfig.model_validate(table)
        file = folder / "config.toml"
        file.write_bytes(dumps(config).encode())
        again = load([file], environ={})
        assert again == config
        assert repr(again) == repr(config)  # which tells 1 from True and a list from a tuple
        assert dumps(again) == dumps(config)
        count["round trips"] += 1
        count.update(
            f"{section}.{name}" if isinstance(value, dict) else section
            for section, value in table.items()
            for name in (value if isinstance(value, dict) else [""])
        )

    check()
    injected("configurations to TOML and back", count["round trips"], at_least=faults(2000))
    tried = {setting.path for setting in SETTINGS} & set(count)
    assert len(tried) > 0.9 * len(SETTINGS)
