"""Configurations for row F16: valid ones, and wrong ones with what has to be said of them.

Both are made from the fields of :class:`~vitkit.config.RunConfig`, so that a new setting is tried
without being named here.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Literal, NamedTuple, get_args

import hypothesis.strategies as st
import tomli_w

from vitkit.config import RunConfig
from vitkit.config.problems import SECTIONS
from vitkit.config.spec import shown


class Setting(NamedTuple):
    """A setting: where it is, what kind of value it takes, and the field that says so."""

    path: str
    kind: str
    text: str  # of the field's types and bounds
    choices: tuple[str, ...] = ()

    @property
    def optional(self) -> bool:
        return "None" in self.text.partition(" with ")[0].replace("NoneType", "")

    @property
    def above_zero(self) -> bool:
        return "gt=0" in self.text

    @property
    def below_one(self) -> bool:
        return "lt=1" in self.text


def _settings() -> list[Setting]:
    found = []
    for section, table in [("", RunConfig), *SECTIONS.items()]:
        for name, field in table.model_fields.items():
            if not section and name in SECTIONS:
                continue
            text = f"{field.annotation} with {field.metadata}".replace("typing.Optional", "None ")
            path = f"{section}.{name}" if section else name
            kind = next(kind for kind, mark in _MARKS.items() if mark in text)
            literal = getattr(field.annotation, "__origin__", None) is Literal
            found.append(Setting(path, kind, text, get_args(field.annotation) if literal else ()))
    return found


_MARKS = {
    "choice": "Literal",
    "specs": "tuple[vitkit.config.spec.Spec",
    "spec": "vitkit.config.spec.Spec",
    "size": "int | tuple[int, int]",
    "time": "_seconds",
    "name": "pattern",
    "bool": "bool",
    "float": "float",
    "int": "int",
    "str": "str",
}
SETTINGS = _settings()
KNOWN = {setting.path for setting in SETTINGS}

# --- valid -----------------------------------------------------------------------------------

WORDS = st.text(max_size=10).filter(lambda word: word != "none")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
SPECS = st.builds(
    lambda name, kwargs: {"name": name, **kwargs},
    st.sampled_from(["adamw", "crop", "own_1"]),
    st.dictionaries(st.sampled_from(["betas", "p", "x_1"]), SCALARS | st.lists(SCALARS)),
)


def right(setting: Setting) -> st.SearchStrategy[Any]:
    """Return values that a setting takes, as Python has them."""
    whole = st.integers(int(setting.above_zero), 2**63 - 1)
    open_end = setting.above_zero
    floats = (
        st.floats(0, 1, exclude_min=open_end, exclude_max=setting.below_one)
        if setting.below_one or "le=1" in setting.text
        else st.floats(0, 1e30, exclude_min=open_end)
    )
    values: st.SearchStrategy[Any] = {
        "choice": st.sampled_from(setting.choices or ("",)),
        "specs": st.lists(SPECS, max_size=2),
        "spec": SPECS,
        "size": st.integers(1, 2**63 - 1)
        | st.lists(st.integers(1, 2**63 - 1), min_size=2, max_size=2),
        "time": floats | st.sampled_from(["90s", "2h", "1h30m"]),
        "name": NAMES.filter(lambda name: name != "none"),
        "bool": st.booleans(),
        "float": floats,
        "int": whole,
        "str": WORDS,
    }[setting.kind]
    return st.none() | values if setting.optional else values


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Return a whole configuration, of some of all settings."""
    table: dict[str, Any] = {}
    for setting in draw(st.lists(st.sampled_from(SETTINGS), max_size=12, unique=True)):
        section, _, name = setting.path.rpartition(".")
        (table.setdefault(section, {}) if section else table)[name] = draw(right(setting))
    return table


# --- wrong -----------------------------------------------------------------------------------


class Wrong(NamedTuple):
    """A setting that is wrong: its keys, its value as TOML, and what has to be said of it."""

    keys: tuple[str, ...]
    value: str
    meant: str = ""

    @property
    def where(self) -> str:
        """How the line about it begins."""
        shorts = (key if re.fullmatch(r"[\w-]+", key) else shown(key) for key in self.keys)
        return ".".join(shorts)

    @property
    def toml(self) -> str:
        """The line of a file that sets it."""
        return ".".join(tomli_w.dumps({key: 0})[:-5] for key in self.keys) + f" = {self.value}"

    @property
    def override(self) -> str:
        """What ``--set`` is given; only for keys that it takes."""
        return f"{'.'.join(self.keys)}={self.value}"

    @property
    def for_set(self) -> bool:
        return all(re.fullmatch(r"[\w-]+", key) for key in self.keys)


HUGE = st.integers(2**63, 2**80).map(str) | st.integers(-(2**80), -(2**63) - 1).map(str)
NO_NUMBER = ["true", "'7'", "'x'", "''", "nan", "inf", "-inf", "[]", "[1]", "{a = 1}", "1e999"]
NO_INT = [*NO_NUMBER, "1.0", "0.5", "1e3", "-1", "-7", "'0x'", "1e0", "[[1]]", "{}", "07:32:00"]
NO_SPEC = """1 true [] nan ['adamw'] {name=1} {name=['adamw']} {name='a-b'} {x={a=1}}
{x=nan} {x=[{}]} 'adamw(' 'adamw)' 'adamw(1)' 'os.system(1)' 'os.system' '__import__("os")'
'f(**{})' '(a=1)' 'lambda:1' 'adamw(a=1,a=2)' '' '()' 'adamw(x=f())' 'adamw(x=1e999)' 'adamw(x=y)'
'adamw(x=1+1)' 'adamw(x=2**99)' 'adamw(x=__import__)' 'adamw(x={})' 'adamw(x={1})' 'a;b' 'é'
'adamw(x=[[[f]]])' 'adamw(x=b"")' 'adamw(x=1j)' 'adamw(x=...)' 'if' 'adamw(if=1)' '1' '-' '"adamw"'
'adamw()()' 'adamw.step()' 'adamw[0]' 'adamw(*[1])' 'adamw\\nsgd'""".split()
DEEP = ["'" + "(" * 900 + "'", "'adamw(x=" + "[" * 500 + "'", "'" + "a" * 1001 + "'"]
NO_SIZE = [
    *NO_NUMBER[:-1],
    "0",
    "-1",
    "1.5",
    "[1, 2, 3]",
    "[0, 1]",
    "[1, 'a']",
    "[1.0, 2]",
    "[[1], 2]",
]


def wrong_value(setting: Setting) -> st.SearchStrategy[str]:
    """Return TOML of values that a setting does not take, wherever they are written."""
    negative = st.floats(max_value=-1e-300, allow_infinity=False).map(repr)
    bad: dict[str, st.SearchStrategy[str]] = {
        "bool": st.sampled_from(["1", "0", "'yes'", "'true'", "'True'", "2.0", "[true]", "nan"]),
        "choice": st.sampled_from([*NO_NUMBER, "1", "['x']", "'FLOAT32 '", "'\\u001b[31m'"]),
        "float": st.sampled_from(NO_NUMBER) | HUGE | negative,
        "int": st.sampled_from(NO_INT) | HUGE | st.integers(-(2**63), -1).map(str),
        "name": st.sampled_from(["1", "true", "['a']", "''", "'-x'", "'a b'", "'a/b'", "'../x'"])
        | st.sampled_from(["'é'", "'x\\ny'", "'.x'", "'_x'", "\"a\\u0000\"", "'a\\b'", "1.5"]),
        "size": st.sampled_from(NO_SIZE) | HUGE | st.integers(-(2**63), 0).map(str),
        "spec": st.sampled_from(NO_SPEC + DEEP),
        "specs": st.sampled_from(["1", "true", "'flip'", "{a = 1}", "[1]", "[[]]", "nan", "[{}]"])
        | st.sampled_from([f"['flip', {spec}]" for spec in NO_SPEC + DEEP if spec[0] in "'{"]),
        "str": st.sampled_from(["1", "true", "1.5", "[]", "['a']", "{a = 1}", "nan", "-inf"])
        | HUGE,
        "time": st.sampled_from(["true", "'x'", "''", "nan", "[1]", "0", "'1h 3m'", "'s'", "'-1s'"])
        | st.sampled_from(["'0s'", "'1d'", "'1e3s'", "'9999999999s'", "'90 s'", "inf", "'\u0661s'"])
        | negative,
    }  # fmt: skip
    values = bad[setting.kind]
    if not setting.optional and setting.kind not in ("specs", "spec"):
        values |= st.just("'none'")
    if setting.above_zero and setting.kind in ("int", "float"):
        values |= st.just("0")
    if setting.below_one:
        values |= st.sampled_from(["1", "1.0", "1.5", "1e30"])
    return values


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    """Return a word of four letters or more with one slip of the keyboard."""
    at = draw(st.integers(0, len(word) - 2))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz0_"))
    return {
        "left out": word[:at] + word[at + 1 :],
        "twice": word[:at] + word[at] + word[at:],
        "swapped": word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        "another": word[:at] + letter + word[at + 1 :],
        "one more": word[:at] + letter + word[at:],
        "in capitals": word.upper(),
    }[draw(st.sampled_from(["left out", "twice", "swapped", "another", "one more", "in capitals"]))]


ODD_KEYS = st.sampled_from(
    [
        "a b",
        "größe",
        "\x1b[31m",
        "a\nb",
        "",
        "__class__",
        "a.b",
        "'",
        "é" * 40,
        "x" * 300,
        "model.dim",
    ]
) | st.text(min_size=1, max_size=8)


@st.composite
def wrongs(draw: st.DrawFn) -> Wrong:
    """Return one wrong setting: a value, a section, a name near a known one, or any name."""
    kind = draw(st.sampled_from(["value"] * 5 + ["near"] * 3 + ["section", "odd", "choice"]))
    if kind == "section":
        value = draw(st.sampled_from(["3", "'x'", "[]", "[1]", "true", "nan", "[{a = 1}]"]))
        return Wrong((draw(st.sampled_from(sorted(SECTIONS))),), value)
    if kind == "odd":
        section = draw(st.sampled_from([(), *((name,) for name in sorted(SECTIONS))]))
        key = draw(
            ODD_KEYS.filter(lambda key: ".".join((*section, key)) not in {*KNOWN, *SECTIONS})
        )
        return Wrong((*section, key), draw(st.sampled_from(["1", "'x'", "{a = {b = 1}}", "[]"])))
    if kind == "choice":
        setting = draw(st.sampled_from([each for each in SETTINGS if each.choices]))
        long = [choice for choice in setting.choices if len(choice) > 3]
        choice = draw(st.sampled_from(long or list(setting.choices)))
        near = draw(misspelt(choice)) if long else f"{choice}x"
        if near in setting.choices:
            near = f"{choice}x"
        return Wrong(tuple(setting.path.split(".")), f"'{near}'", choice)
    setting = draw(st.sampled_from(SETTINGS))
    *section, name = setting.path.split(".")
    if kind == "near" and len(name) > 3:
        near = draw(misspelt(name))
        if ".".join((*section, near)) not in {*KNOWN, *SECTIONS}:
            return Wrong((*section, near), draw(st.sampled_from(["1", "'x'", "0.5"])), setting.path)
    return Wrong((*section, name), draw(wrong_value(setting)))


class Invalid(NamedTuple):
    """Layers that make an invalid configuration, and what is wrong with it."""

    files: list[str]
    overrides: list[str]
    flags: dict[str, Any]
    wrong: list[Wrong]


@st.composite
def invalid(draw: st.DrawFn) -> Invalid:
    """Return a configuration with one wrong setting or up to five, in any of its layers."""
    chosen = draw(st.lists(wrongs(), min_size=1, max_size=5, unique_by=lambda wrong: wrong.keys))
    whole = {wrong.keys[0] for wrong in chosen if len(wrong.keys) == 1}
    chosen = [wrong for wrong in chosen if len(wrong.keys) == 1 or wrong.keys[0] not in whole]
    files: list[list[str]] = [[], []]
    overrides, flags = [], {}
    for wrong in chosen:
        place = draw(st.sampled_from(["first", "second", "set", "flag"]))
        if place == "set" and wrong.for_set:
            overrides.append(wrong.override)
        elif place == "flag" and wrong.for_set:
            flags[".".join(wrong.keys)] = tomllib.loads(f"value = {wrong.value}")["value"]
        else:
            files[place == "second"].append(wrong.toml)
    return Invalid(["\n".join(lines) for lines in files if lines], overrides, flags, chosen)


# --- no TOML ---------------------------------------------------------------------------------

BROKEN_LINES = """[train]|[train]
[train|epochs = 1
train]
= 1
epochs
epochs =
epochs = 1 2
epochs = 01
epochs = 1__0
epochs = 'x
epochs = "x
epochs = '''x
epochs = "\\q"
epochs = [1
epochs = {a = 1
epochs = {a = 1,, b = 2}
epochs = truee
epochs = 1.
epochs = .5
epochs = 1979-13-01
epochs = 25:61:00
epochs = 1|epochs = 2
a.b = 1|a = 2
a = 1|a.b = 2
[a]|b = 1|[a.b]
"a|b" = 1
epochs: 1
{"epochs": 1}
- epochs
epochs = None
epochs = 0x
epochs = + 1
a = "\\uD800"
a = \x01
a = "\x00"
epochs = 1\r
# \x07""".split("\n")
"""Pieces of a file that no TOML reader takes; ``|`` is a new line."""
BROKEN_BYTES = [b"a = '\xff'", b"\xff\xfea\x00", b"\x80", b"a = 1 # \xc3\x28", b"\x89PNG\r\n\x1a\n"]
BROKEN_DEEP = ["a = " + "[" * 3000, "a = " + "{a = " * 3000, "." * 3000, "a" + ".a" * 5000 + " ="]


def broken_files() -> st.SearchStrategy[bytes]:
    """Return contents of files that are not TOML, with right lines around what is wrong."""
    whole = st.lists(st.sampled_from(["[data]", "x-1 = 2", "# note", ""]), max_size=2, unique=True)
    pieces = st.sampled_from(BROKEN_LINES).map(lambda line: line.replace("|", "\n"))
    texts = st.builds(lambda head, piece: "\n".join([*head, piece]), whole, pieces)
    return (
        texts.map(str.encode) | st.sampled_from(BROKEN_DEEP).map(str.encode)
        | st.sampled_from(BROKEN_BYTES)
    )  # fmt: skip


BROKEN_SETS = """|=|=1|epochs|train.epochs|a b=1|.=1|.a=1|a.=1|train..epochs=1|[train]=1|'a'=1
|train.epochs=|train.epochs='x|train.epochs=[1|train.epochs={a=|train.epochs="\\q"
|train.lr={a=1,,b=2}|train.lr=[1]]|train.augment=['a|seed=[}|train/epochs=1
|train:epochs=1|a.b.c d=1|$HOME=1|train.epochs =""".replace("\n", "").split("|")
"""Texts of ``--set`` that set nothing, or whose value begins like TOML and is none."""
