"""``name(key=value)``: literals only, and text that comes back exactly."""

from __future__ import annotations

import ast
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from vitkit.config.spec import LONGEST, Spec, as_spec, parse_spec, shown
from vitkit.errors import ConfigError
from vitkit.registry import is_name

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.tuples(SCALARS, SCALARS)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,7}", fullmatch=True).filter(is_name)


@pytest.mark.parametrize(
    ("text", "name", "kwargs"),
    [
        ("adamw", "adamw", {}),
        ("adamw()", "adamw", {}),
        (" adamw ( lr = 1e-3, ) ", "adamw", {"lr": 1e-3}),
        ("adamw(lr=1e-3, weight_decay=0.05)", "adamw", {"lr": 1e-3, "weight_decay": 0.05}),
        ("step(milestones=[3, -5], factor=0.1)", "step", {"milestones": [3, -5], "factor": 0.1}),
        ("x(a=True, b=None, c='d', e=(1, 2))", "x", {"a": True, "b": None, "c": "d", "e": (1, 2)}),
    ],
)
def test_a_spec_is_read(text: str, name: str, kwargs: dict[str, Any]) -> None:
    assert parse_spec(text) == Spec(name, kwargs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamw(1e-3)", "the argument '1e-3' has no name"),
        ("adamw(**{'lr': 1})", "'**' is not allowed"),
        ("adamw(lr=1, lr=2)", "'lr' is given twice"),
        ("adamw(lr=rate)", "lr='rate' is not a finite number"),
        ("adamw(lr=float('1'))", "lr=\"float('1')\" is not a finite number"),
        ("adamw(lr=a.b)", "lr='a.b' is not a finite number"),
        ("adamw(lr=2**9)", "lr='2**9' is not a finite number"),
        ("adamw(lr=[x for x in y])", "is not a finite number"),
        ("adamw(lr=1e999)", "got lr=inf of adamw, expected a finite number"),
        ("adamw(lr=1j)", "got lr=1j of adamw, expected a finite number"),
        ("adamw(lr={'a': 1})", "got lr={'a': 1} of adamw, expected a finite number"),
        ("adamw(n=9223372036854775808)", "got n=9223372036854775808 of adamw"),
        ("optim.adamw(lr=1)", "'optim.adamw' is not the name of a component"),
        ("__import__('os').system('ls')", "the argument \"'ls'\" has no name"),
        ("__import__('os').system(c=1)", "is not the name of a component"),
        ("a()()", "'a()' is not the name of a component"),
        ("(lambda: 0)()", "'lambda: 0' is not the name of a component"),
        ("größe(a=1)", "got 'größe', expected a name of letters, digits and '_'"),
        ("3", "'3' is not the name of a component"),
        ("", "it cannot be read"),
        ("adamw(lr=", "it cannot be read at character 6"),
        ("adamw; sgd", "it cannot be read at character 6"),
        ("adamw(lr=01)", "it cannot be read at character 10"),
        ("x = 3", "it cannot be read"),
        ("a\0b", "it cannot be read"),
        ("a(b='\ud800')", "it cannot be read"),
        ("a(b=" + "-" * 900 + "1)", "b='-------"),
        ("a(b=" + "(" * 400 + ")" * 400 + ")", "it cannot be read"),
        ("a" * (LONGEST + 1), "expected at most 1000 characters"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(text)
    (problem,) = caught.value.problems
    assert message in problem
    assert problem.startswith("got ")
    assert "\n" not in problem


def test_nothing_is_run(tmp_path: Any) -> None:
    target = tmp_path / "made"
    for text in (f"open({str(target)!r}, mode='w')", f"a(b=open({str(target)!r}, mode='w'))"):
        with pytest.raises(ConfigError):
            parse_spec(text)
    assert not target.exists()


def test_a_table_is_read() -> None:
    assert as_spec({"name": "lion", "lr": 1, "betas": [0.9, 0.99]}) == Spec(
        "lion", {"lr": 1, "betas": [0.9, 0.99]}
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lr": 1}, "got {'lr': 1}, expected a table {name = 'adamw', ...}."),
        ({"name": 3}, "got {'name': 3}, expected a table"),
        ({"name": "a b"}, "got 'a b', expected a name of letters"),
        ({"name": "lambda"}, "got 'lambda', expected a name of letters"),
        ({"name": "a", "b c": 1}, "got 'b c', expected a name of letters"),
        ({"name": "a", "b": {"c": 1}}, "got b={'c': 1} of a, expected a finite number"),
        ({"name": "a", "b": float("nan")}, "got b=nan of a, expected a finite number"),
        ({"name": "a", "b": [16**5000]}, "got b=a value of type list of a, expected"),
        ({"name": "a", "b": "x" * 2000}, "expected at most 1000 characters"),
        (3, "got 3, expected a name such as 'adamw(beta2=0.99)' or a table with a name."),
        (None, "got None, expected a name"),
        (Spec("a", {"b": float("inf")}), "got b=inf of a"),
    ],
)
def test_a_wrong_table_is_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_spec(value)
    assert message in caught.value.problems[0]


@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=4))
def test_the_text_of_a_spec_gives_it_back(name: str, kwargs: dict[str, Any]) -> None:
    spec = Spec(name, kwargs)
    again = parse_spec(str(spec))
    assert (again.name, repr(again.kwargs)) == (name, repr(kwargs))  # repr tells 1 from True
    assert as_spec(spec) == spec


@given(st.text(alphabet="adamw(lr=1e-3,)[]{}'\"*.:;\\ \n#λ0x_", max_size=40) | st.text())
@example("a(b=1) # comment")
@example("a(\nb=1)")
@example("a(b='\\d')")
def test_any_text_is_a_spec_or_a_problem_of_one_line(text: str) -> None:
    found, spec = ["one"], None
    try:
        spec = parse_spec(text)
    except ConfigError as error:
        found = error.problems
    assert len(found) == 1
    assert "\n" not in found[0]
    if spec is not None:
        assert parse_spec(str(spec)) == spec
        assert isinstance(ast.parse(str(spec), mode="eval").body, (ast.Name, ast.Call))


def test_values_are_shown_as_toml_has_them_and_not_too_long() -> None:
    assert shown(True) == "true"
    assert shown("x") == "'x'"
    assert shown("a\nb") == "'a\\nb'"
    assert shown("x" * 100) == "'" + "x" * 76 + "..."
    assert shown(16**5000) == "a value of type int"
