"""``name(key=value, ...)``: how a configuration names a component and its arguments.

The text is read with :mod:`ast`: a name, keyword arguments, literals. Nothing is evaluated or
imported; what the name stands for is looked up in a registry later.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitkit.errors import ConfigError
from vitkit.registry import is_name

LONGEST = 1000
"""Characters a spec may have; deeply nested text would exhaust the parser."""


@dataclass(frozen=True)
class Spec:
    """A component by its registered name, with keyword arguments.

    Attributes
    ----------
    name : str
        What it is registered as.
    kwargs : mapping of str to number, str, bool, None, or a list or tuple of these
        Its arguments.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the text that :func:`parse_spec` reads back as this spec."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.kwargs.items())
        return f"{self.name}({arguments})" if arguments else self.name


def parse_spec(text: str) -> Spec:
    """Read ``"adamw(lr=1e-3, weight_decay=0.05)"``, or a bare ``"adamw"``.

    Parameters
    ----------
    text : str
        A name, then optionally keyword arguments whose values are literals.

    Returns
    -------
    Spec
        The name and the arguments.

    Raises
    ------
    ConfigError
        If the text is anything else; the message says what was found and where.
    """
    text = text.strip()
    call = _parse(text)
    arguments: list[ast.keyword] = []
    name = call
    if isinstance(call, ast.Call):
        name, arguments = call.func, call.keywords
        if call.args:
            raise _error(text, f"the argument {_source(text, call.args[0])} has no name")
    if not isinstance(name, ast.Name):
        raise _error(text, f"{_source(text, name)} is not the name of a component")
    kwargs: dict[str, Any] = {}
    for argument in arguments:
        if argument.arg is None:
            raise _error(text, "'**' is not allowed")
        if argument.arg in kwargs:
            raise _error(text, f"the argument {argument.arg!r} is given twice")
        kwargs[argument.arg] = _literal(text, argument.arg, argument.value)
    return _checked(name.id, kwargs)


def spec_from_table(table: Mapping[str, Any]) -> Spec:
    """Read a table with a ``name``; every other key is an argument.

    Raises
    ------
    ConfigError
        If the name is missing or not a name, or a value is not a plain one.
    """
    if not isinstance(table.get("name"), str):
        raise ConfigError(f"got {shown(table)}, expected a table {{name = 'adamw', ...}}.")
    return _checked(table["name"], {key: table[key] for key in table if key != "name"})


def as_spec(value: object) -> Spec:
    """Return a spec from its text, its table, or itself.

    Raises
    ------
    ConfigError
        If ``value`` is none of these, or cannot be read.
    """
    if isinstance(value, Spec):
        return _checked(value.name, dict(value.kwargs))
    if isinstance(value, str):
        return parse_spec(value)
    if isinstance(value, Mapping):
        return spec_from_table(value)
    raise ConfigError(
        f"got {shown(value)}, expected a name such as 'adamw(beta2=0.99)' or a table with a name."
    )


def shown(value: object, longest: int = 80) -> str:
    """Return how messages show a value that came: on one line, as TOML has it, and not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def storable(value: object) -> bool:
    """Whether a number or a part of a spec comes back exactly when written as text."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63  # what TOML promises to hold
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(storable(item) for item in value)
    return value is None or isinstance(value, str)


_LITERAL = "a finite number, a string, true or false, None, or a list of these"


def _checked(name: str, kwargs: dict[str, Any]) -> Spec:
    """Return the spec, if its text can be read back."""
    for word in (name, *kwargs):
        if not is_name(word):
            raise ConfigError(f"got {shown(word)}, expected a name of letters, digits and '_'.")
    for key, value in kwargs.items():
        if not storable(value):
            raise ConfigError(f"got {key}={shown(value)} of {name}, expected {_LITERAL}.")
    spec = Spec(name, kwargs)
    if len(str(spec)) > LONGEST:
        raise ConfigError(f"got {shown(spec)}, expected at most {LONGEST} characters.")
    return spec


def _parse(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ConfigError(f"got {shown(text)}, expected at most {LONGEST} characters.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about code that is refused in any case
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) else ""
        raise _error(text, f"it cannot be read{where}") from None


def _literal(text: str, key: str, node: ast.expr) -> Any:
    """Return the value of a literal; a name, call, attribute or operation is refused."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise _error(text, f"{key}={_source(text, node)} is not {_LITERAL}") from None


def _source(text: str, node: ast.expr) -> str:
    return shown(ast.get_source_segment(text, node))


def _error(text: str, what: str) -> ConfigError:
    return ConfigError(
        f"got {shown(text)}: {what}; expected name(key=value, ...) with literals as values."
    )
