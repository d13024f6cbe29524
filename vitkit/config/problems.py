"""From what pydantic found to one line that says where, what came, and what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from vitkit.config.run import RunConfig
from vitkit.config.spec import shown
from vitkit.errors import nearest
from vitkit.registry import did_you_mean

SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
"""The tables of a configuration."""

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_unicode": "a string of valid characters",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', a letter or digit first",
    "model_type": "a table",
    "finite_number": "a finite number",
}
_OTHER_NAMES = {
    "classes": "model.num_classes",
    "dataset": "data.name",
    "device": "backend",
    "layers": "model.depth",
    "learning_rate": "train.lr",
    "precision": "train.precision",
    "width": "model.dim",
    "wd": "train.weight_decay",
}
"""What other programs call a setting, where the spelling is too far for a guess."""


def problem(details: ErrorDetails, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the line for one of pydantic's findings.

    Parameters
    ----------
    details : pydantic_core.ErrorDetails
        One item of ``ValidationError.errors()``.
    layers : sequence of (str, mapping)
        Where settings came from, by name, the last one winning.

    Returns
    -------
    str
        ``train.epochs: got true from run.toml, expected a whole number.``
    """
    path, kind, value = details["loc"], details["type"], details["input"]
    where = ".".join(key if re.fullmatch(r"[\w-]+", key) else shown(key) for key in map(str, path))
    source = next(
        (f" from {name}" for name, table in reversed(layers) if _at(table, path) is value), ""
    )
    if kind == "extra_forbidden":
        return f"{where}: unknown setting{source}{_suggestion(path, value)}"
    if kind == "value_error":  # of our own validators, in our own words
        return f"{where}: {details['ctx']['error']}"
    if kind == "literal_error":
        expected = str(details["ctx"]["expected"])
        end = did_you_mean(value, re.findall(r"'(.*?)'", expected))
    else:
        bound = details["msg"].removeprefix("Input should be ")
        bound = bound.replace("greater than or equal to", "at least")
        expected, end = _EXPECTED.get(kind, f"a number {bound}"), "."
    return f"{where}: got {shown(value)}{source}, expected {expected}{end}"


def _suggestion(path: Sequence[int | str], value: object) -> str:
    """Return the known setting an unknown one was meant to be: of its section, or of any."""
    *section, key = map(str, path)
    if isinstance(value, Mapping):
        return did_you_mean(key, SECTIONS)
    if section and (close := nearest(key, SECTIONS[section[0]].model_fields)):
        return f"; did you mean {section[0]}.{close}?"
    homes = {name: name for name in RunConfig.model_fields if name not in SECTIONS} | {
        leaf: f"{name}.{leaf}"
        for name, table in SECTIONS.items()
        for leaf in table.model_fields
        if leaf != "name"
    }
    home = _OTHER_NAMES.get(key) or homes.get(nearest(key, homes) or "")
    return f"; did you mean {home}?" if home else "."


def _at(table: Any, path: Sequence[int | str]) -> Any:
    """Return what a table has at a path, None where it has nothing."""
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table
