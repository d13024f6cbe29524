"""What a checkpoint can hold, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitkit.checkpoint.files as files
from vitkit.checkpoint.contents import unplain, unwritable

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Odd:
    pass


@given(PLAIN)
def test_what_is_plain_comes_back_equal(value: Any) -> None:
    assert unplain(value) == ""
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({1, 2}, "an object of type set"),
        ({"seen": {1}}, "an object of type set at 'seen'"),
        ({"a": {"b": [0, np.float32(1)]}}, "an object of type numpy.float32 at 'a.b[1]'"),
        ({"a": np.zeros(2)}, "an object of type numpy.ndarray at 'a'"),
        ({"a": (1, b"x")}, "an object of type bytes at 'a[1]'"),
        ({"a": {1: 2}}, "the key 1 of type int at 'a'"),
        ({None: 2}, "the key None of type NoneType"),
        (1 + 2j, "an object of type complex"),
        ({"odd": Odd()}, f"an object of type {__name__}.Odd at 'odd'"),
    ],
)
def test_what_json_would_not_give_back_is_named(value: Any, problem: str) -> None:
    assert unplain(value) == problem


def test_a_value_that_holds_itself_is_named() -> None:
    endless: dict[str, Any] = {}
    endless["more"] = [endless]
    assert unplain(endless).startswith("something nested too deeply at 'more[0].more[0]")


@pytest.mark.parametrize(
    "array",
    [
        *(np.ones(3, kind) for kind in ("bool", "u1", "i8", "f2", "f4", "f8", ">f4")),
        *(np.float32(2.5), 3, 0.5, True, [1, 2], np.zeros((0, 3), "f4"), np.zeros((2, 3)).T),
    ],
)
def test_what_is_writable_comes_back_equal(array: Any, tmp_path: Path) -> None:
    assert unwritable({"a": array}) == ""
    files.save(tmp_path / "c", {"optim": {"a": array}}, {})
    np.testing.assert_array_equal(files.load(tmp_path / "c").arrays["optim"]["a"], array)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        (None, "an object of type NoneType"),
        ([np.zeros(2)], "an object of type list"),
        ({1: np.zeros(2)}, "the key 1 of type int"),
        ({"a": np.zeros(2), "m": np.array([None])}, "an array of dtype object at 'm'"),
        ({"m": {}}, "an array of dtype object at 'm'"),
        ({"m": "text"}, "an array of dtype <U4 at 'm'"),
        ({"m": np.zeros(2, "c8")}, "an array of dtype complex64 at 'm'"),
        ({"m": [[1], [1, 2]]}, "an object of type list at 'm'"),
    ],
)
def test_what_safetensors_would_not_give_back_is_named(arrays: Any, problem: str) -> None:
    assert unwritable(arrays) == problem


def test_numbers_wider_than_any_format_are_named() -> None:
    wide = np.zeros(2, np.longdouble)
    if wide.dtype.itemsize <= 8:
        pytest.skip("long double is double here")
    assert unwritable({"m": wide}) == f"an array of dtype {wide.dtype} at 'm'"
