"""From files, the environment, ``--set`` and flags to one validated configuration.

Later layers win: recipe of the data set, ``--config`` files in order, environment, ``--set``,
flags. Everything that is wrong is reported at once.
"""

from __future__ import annotations

import datetime
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import tomli_w
from pydantic import ValidationError

from vitkit.config.problems import SECTIONS, problem
from vitkit.config.run import KEPT_IN_TRAIN, NONE, RunConfig, settle
from vitkit.config.spec import as_spec, shown
from vitkit.data.checks import named
from vitkit.errors import ConfigError
from vitkit.registry import did_you_mean

ENVIRONMENT = {"VITKIT_BACKEND": "backend", "VITKIT_DTYPE": "dtype", "VITKIT_SEED": "seed"}
"""The variables that stand for settings; empty ones are ignored."""

LARGEST_FILE = 1 << 20  # bytes
Table = dict[str, Any]
Check: TypeAlias = Callable[[RunConfig, frozenset[str]], list[str]]


def load(
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    check: Check | None = None,
) -> RunConfig:
    """Return the configuration that the layers make together.

    Parameters
    ----------
    files : iterable of pathlib.Path
        TOML files; a later one wins.
    overrides : iterable of str
        ``"train.epochs=5"``: a dotted setting and a TOML value. Words that are not TOML stand
        for themselves.
    flags : mapping of str to object, optional
        Values by dotted setting; None means that the flag was not given.
    environ : mapping of str to str, optional
        The environment; by default the process's.
    check : callable, optional
        ``check(rest, dropped) -> problems``, called where settings are wrong, finds what is wrong
        with a configuration of the others. ``dropped`` has the dotted settings left out of it.

    Returns
    -------
    RunConfig
        Validated, with the defaults of the data set's recipe filled in.

    Raises
    ------
    ConfigError
        Listing every problem, one a line.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    layers: list[tuple[str, Table]] = [(named(file), _file(file, problems)) for file in files]
    for variable, path in ENVIRONMENT.items():
        if environ.get(variable):
            layers.append((variable, _override(f"{path}={environ[variable]}", problems)))
    layers += [("--set", _override(text, problems)) for text in overrides]
    for path, value in (flags or {}).items():
        if value is not None:
            layers.append(("a flag", _nested(path, value)))

    unread = bool(problems)  # and may have been about anything
    layers.insert(0, ("the recipe", _base([table for _, table in layers])))
    table: Table = {}
    for _, layer in layers:
        try:
            table = _over(table, settle(_completed(layer, table)))
        except ConfigError as error:  # the same setting twice: look at the rest of the layer
            problems += error.problems
            rest = {key: value for key, value in layer.items() if key not in KEPT_IN_TRAIN}
            table = _over(table, rest)
    dropped: set[str] = set()
    try:
        config = RunConfig.model_validate(table)
    except ValidationError as error:
        problems += [problem(details, layers) for details in error.errors()]
        wrong = [tuple(map(str, details["loc"][:2])) for details in error.errors()]
        dropped = {".".join(path) for path in wrong}
        config = RunConfig.model_validate(_without(table, wrong))
    if problems and check and not unread:
        problems += check(config, frozenset(dropped))
    if problems:
        raise ConfigError(problems)
    return config


def dumps(config: RunConfig) -> str:
    """Return the configuration as TOML that :func:`load` reads back as an equal one."""
    return tomli_w.dumps(_without_none(config.model_dump()))


def recipes() -> tuple[str, ...]:
    """Return the names of the data sets that have a recipe, sorted."""
    folder = resources.files("vitkit.config") / "recipes"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".toml")))


def recipe(name: str) -> Table:
    """Return the settings that ship for the data set ``name``.

    Raises
    ------
    ConfigError
        If there is no recipe of that name.
    """
    if name not in recipes():
        raise ConfigError(
            f"no recipe is named {shown(name)}{did_you_mean(name, recipes())} "
            f"Known: {', '.join(recipes())}."
        )
    file = resources.files("vitkit.config") / "recipes" / f"{name}.toml"
    return tomllib.loads(file.read_text("utf-8"))


def _file(file: Path, problems: list[str]) -> Table:
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            problems.append(f"{named(file)}: more than {LARGEST_FILE} bytes: no configuration.")
            return {}
        return tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        problems.append(f"{named(file)}: byte {error.start} is not UTF-8; save the file as UTF-8.")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{named(file)}: {_reason(error)}")
    return {}


def _reason(error: Exception) -> str:
    """Say on one line why a file is not a configuration."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or type(error).__name__})."
    if isinstance(error, RecursionError):
        return "is nested too deeply."
    text = " ".join(str(error).split())
    where = re.search(r" \(at line (\d+), column (\d+)\)", text)
    if where is None:
        return f"is not TOML: {text}."
    return f"line {where[1]}, column {where[2]}: {text.replace(where[0], '')}."


def _override(text: str, problems: list[str]) -> Table:
    """Read ``a.b=value``; a value that is no TOML but a bare word or a spec is a string."""
    path, equals, raw = text.partition("=")
    path, raw = path.strip(), raw.strip()
    if not equals or not all(re.fullmatch(r"[\w-]+", key) for key in path.split(".")):
        problems.append(f"--set: got {shown(text)}, expected section.setting=value.")
        return {}
    if not raw:
        problems.append(
            f"{path}: got nothing after '=', expected a value; write {NONE!r} for none."
        )
        return {}
    value: Any = raw
    try:
        table = tomllib.loads(f"value = {raw}")
        if table.keys() != {"value"}:
            raise ValueError("more than one value")
        value = table["value"]
    except (ValueError, RecursionError) as error:
        if raw[0] in "\"'[{" or not raw.isprintable():
            problems.append(f"{path}: got {shown(raw)}, expected a TOML value: {_reason(error)}")
            return {}
    if isinstance(value, (datetime.date, datetime.time)):  # no setting is one, a name may look so
        value = raw
    return _nested(path, value)


def _nested(path: str, value: Any) -> Table:
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def _over(lower: Table, upper: Mapping[str, Any]) -> Table:
    """Return ``lower`` with the settings of ``upper`` put over it, section by section.

    A section that is not a table stays, so that it is reported and not hidden.
    """
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key, {})
        if key not in SECTIONS or (isinstance(below, Mapping) and not isinstance(value, Mapping)):
            merged[key] = value
        elif isinstance(below, Mapping):
            merged[key] = {**below, **value}
    return merged


def _without(table: Table, paths: Iterable[tuple[str, ...]]) -> Table:
    """Return a table without the settings, or whole sections, at these paths."""
    rest = {
        key: dict(value) if key in SECTIONS else value
        for key, value in table.items()
        if (key,) not in paths
    }
    for section, key in (path for path in paths if len(path) == 2):
        rest[section].pop(key, None)
    return rest


def _base(layers: Sequence[Table]) -> Table:
    """Return the recipe of the data set that the layers ask for, as far as it suits them.

    Sizes go with the variant they were chosen for, rates with the optimizer.
    """
    asked: Table = {}
    for layer in layers:
        asked = _over(asked, layer)
    data, model = asked.get("data", {}), asked.get("model", {})
    name = data.get("name", RunConfig().data.name) if isinstance(data, Mapping) else None
    base = recipe(name) if name in recipes() else {}
    variant = base.get("model", {}).get("variant")
    if isinstance(model, Mapping) and model.get("variant", variant) != variant:
        base.pop("model", None)
    default = as_spec(base.get("optimizer", RunConfig().optimizer))
    try:
        optimizer = as_spec(asked.get("optimizer", default))
    except ConfigError:  # it has no name, or is wrong, which is reported later
        optimizer = default
    if optimizer.name != default.name:
        base.pop("optimizer", None)
        for key in KEPT_IN_TRAIN["optimizer"]:
            base.get("train", {}).pop(key, None)
    return base


def _completed(layer: Table, lower: Table) -> Table:
    """Give ``optimizer.beta2=0.99`` the name and the other arguments of the layers below."""
    completed = dict(layer)
    for key in KEPT_IN_TRAIN:
        table = layer.get(key)
        if isinstance(table, Mapping) and "name" not in table:
            try:
                spec = as_spec(lower.get(key, RunConfig.model_fields[key].default))
            except ConfigError:  # the layer below is wrong, and reported
                continue
            completed[key] = {"name": spec.name, **spec.kwargs, **table}
    return completed


def _without_none(table: Table) -> Table:
    """Write None, which TOML does not have, as a word."""
    return {
        key: _without_none(value) if isinstance(value, dict) else NONE if value is None else value
        for key, value in table.items()
    }
