"""The pages on plugins do what they say, and the hooks are documented as they are."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest
import shown
from pages import DOCS, PACKAGE, PLAYED, Block, blocks_of, page_name, play, run_python

from vitkit import testing
from vitkit.models.sizes import REQUIRED
from vitkit.plugins import hookspecs
from vitkit.plugins.accept import DETAILS
from vitkit.plugins.discovery import GROUP
from vitkit.plugins.registries import HOOKS

HOOKS_PAGE = DOCS / "reference" / "hooks.rst"
CONFORMANCE = DOCS / "guides" / "plugins" / "conformance.rst"
LOADING = DOCS / "guides" / "plugins" / "loading.rst"
OBJECTS = {"activations": 2, "models": 0}
"""How many objects ``register`` takes after the name, where it is not one."""
BLOCKS = [(page, block) for page in PLAYED for block in blocks_of(page)]


@pytest.mark.parametrize("page", PLAYED, ids=page_name)
def test_a_page_does_what_it_shows(page: Path, tmp_path: Path) -> None:
    play(page, tmp_path)


@pytest.mark.parametrize("page", PLAYED, ids=page_name)
def test_no_code_of_a_page_is_left_out(page: Path) -> None:
    found = blocks_of(page)
    text = page.read_text("utf-8")
    blocks = r"code-block::|\.\. (?:code|sourcecode)::|^(?! *\.\. ).*::$"  # however they begin
    written = re.findall(blocks, text, re.MULTILINE)
    assert len(written) == len(found)
    assert {block.language for block in found} <= {"python", "console", "toml"}
    for block in found:
        if block.language == "console":
            lines = block.text.replace("\\\n", "").splitlines()
            assert sum(line.startswith("$ ") for line in lines) == len(shown.commands(block.text))
            assert lines[0].startswith("$ "), "output without a command"
        if block.language == "toml":
            assert tomllib.loads(block.text)["project"]["entry-points"][GROUP]


def test_what_is_not_run_is_little() -> None:
    commands = [c for _, b in BLOCKS if b.language == "console" for c, _ in shown.commands(b.text)]
    for start, why in shown.NOT_RUN.items():
        assert why
        assert any(command.startswith(start) for command in commands), "leave it out of the list"
    not_run = [command for command in commands if command.startswith(tuple(shown.NOT_RUN))]
    assert len(not_run) <= 4
    assert not [command for command in not_run if "vitkit " in command]


WRONG = {
    "another output": ("$ vitkit --version\nvitkit 9.9.9", "where the page has"),
    "an unknown option": ("$ vitkit --verse", "ended with 2"),
    "an unknown program": ("$ curl example.org", "KeyError: 'curl'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_page_that_is_wrong_is_noticed(wrong: str, tmp_path: Path) -> None:
    text, expected = WRONG[wrong]
    with pytest.raises(AssertionError, match=re.escape(expected)):
        run_python(f"import shown\nshown.run({text + chr(10)!r})", tmp_path)


def test_a_command_that_should_fail_and_does_not_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 0, but should have failed"):
        run_python("import shown\nshown.run('$ vitkit --version\\n', fails=True)", tmp_path)


@pytest.mark.parametrize(
    ("expected", "matching"),
    [
        ("a line\nanother", True),
        ("a line another", True),
        ("a ...\nanother", True),
        ("...\na line\n...\nanother\n...", True),
        ("a ...ne\nan...", True),
        ("a line", False),
        ("...\na line", False),
        ("a l.ne\nanother", False),
        ("a line\n...\nother", False),
    ],
)
def test_three_dots_are_anything_and_nothing(expected: str, matching: bool) -> None:
    assert shown.matches(expected, "a line\nanother\n") is matching


def problems(page: str) -> list[str]:
    """Return what of the hooks a page does not say, or says otherwise than it is."""
    directive = rf"^\.\. autofunction:: {re.escape(hookspecs.__name__)}\.(\w+)\((.*)\)$"
    _, *parts = re.split(directive, page, flags=re.MULTILINE)
    sections = {hook: (takes, text) for hook, takes, text in zip(*[iter(parts)] * 3, strict=True)}
    found = [f"{hook} is no hook" for hook in sections if hook not in HOOKS]
    for hook in HOOKS:
        if hook in sections:
            found += [f"{hook}: {problem}" for problem in problems_of(hook, *sections[hook])]
        else:
            found.append(f"{hook} is not on the page")
    return found


def problems_of(hook: str, takes: str, section: str) -> list[str]:
    """Return what is wrong with the section of a hook."""
    kind = hook.removeprefix("register_")
    found = []
    if takes.split(", ") != list(inspect.signature(getattr(hookspecs, hook)).parameters):
        found.append(f"it does not take ({takes})")
    signature = re.search(r"^\.\. function:: register(\(.*\))$", section, re.MULTILINE)
    if signature is None:
        return [*found, "the signature of register is not there"]
    documented = ast.parse(f"def register{signature[1]}: pass").body[0]
    assert isinstance(documented, ast.FunctionDef)
    arguments = documented.args
    defaults = [None if d is None else ast.literal_eval(d) for d in arguments.kw_defaults]
    keywords = dict(zip((a.arg for a in arguments.kwonlyargs), defaults, strict=True))
    expected = REQUIRED if kind == "models" else DETAILS[kind]
    if tuple(keywords) != tuple(expected):
        found.append(f"register takes {', '.join(expected)}, not {', '.join(keywords)}")
    if len(arguments.args) != 1 + OBJECTS.get(kind, 1) or arguments.args[0].arg != "name":
        found.append(f"register takes a name and {OBJECTS.get(kind, 1)} objects")
    found += contradictions(hook, keywords) if kind != "models" else []
    terms = re.findall(r"^   (\w[\w, ]*)\n      \S", section, re.MULTILINE)
    told = {word for term in terms for word in term.split(", ")}
    named = [a.arg for a in (*arguments.args[1:], *arguments.kwonlyargs)]
    found += [f"{name} is not explained" for name in named if name not in told]
    example = re.search(r"^\.\. code-block:: python\n   :caption: \w+\.py\n", section, re.MULTILINE)
    if example is None or f"   def {hook}(register):" not in section[example.end() :]:
        found.append("it has no example")
    return found


def contradictions(hook: str, keywords: dict[str, object]) -> list[str]:
    """Return where the docstring of a hook calls ``register`` otherwise than the page says."""
    written = re.search(r"``register(\(.*?\))``", inspect.getdoc(getattr(hookspecs, hook)) or "")
    assert written, f"the docstring of {hook} shows no call"
    call = ast.parse(f"register{written[1]}", mode="eval").body
    assert isinstance(call, ast.Call)
    said = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    return [
        f"{name}={value!r} in the docstring is not what the page has"
        for name, value in said.items()
        if name not in keywords or keywords[name] != value
    ]


def test_every_hook_is_documented_as_it_is() -> None:
    assert problems(HOOKS_PAGE.read_text("utf-8")) == []


PLANTED = {
    "a hook left out": (
        r"(?s)\.\. autofunction:: \S+register_losses.*?(?=\.\. auto\S+ \S+register_datasets)",
        "",
        ["register_losses is not on the page"],
    ),
    "a hook that is none": (
        r"hookspecs\.register_losses",
        "hookspecs.register_lossy",
        ["register_lossy is no hook", "register_losses is not on the page"],
    ),
    "another argument of a hook": (
        r"register_layers\(register\)",
        "register_layers(registry)",
        ["register_layers: it does not take (registry)"],
    ),
    "a keyword left out": (
        r"example=None, reference=None, torch=None\)",
        "example=None, torch=None)",
        [
            "register_optimizers: register takes example, reference, torch, not example, torch",
            "register_optimizers: reference=None in the docstring is not what the page has",
        ],
    ),
    "a keyword too many": (
        r"register\(name, command\)",
        "register(name, command, *, help=None)",
        [
            "register_commands: register takes , not help",
            "register_commands: help is not explained",
        ],
    ),
    "another default": (
        'backend="numpy"',
        'backend="cupy"',
        ["register_kernels: backend='numpy' in the docstring is not what the page has"],
    ),
    "one function of an activation": (
        "name, function, backward, ",
        "name, function, ",
        ["register_activations: register takes a name and 2 objects"],
    ),
    "sizes that are not asked for": (
        r"\*, dim, depth, num_heads, ",
        "*, dim, depth, ",
        ["register_models: register takes dim, depth, num_heads, not dim, depth"],
    ),
    "no signature": (
        r"\.\. function:: register\(name, transform.*",
        "",
        ["register_transforms: the signature of register is not there"],
    ),
    "a keyword without a word": (
        "   labels\n",
        "   label\n",
        ["register_losses: labels is not explained"],
    ),
    "no example": (
        ":caption: watch.py",
        ":caption: watch",
        ["register_callbacks: it has no example"],
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_wrong_with_the_page_of_hooks_is_noticed(planted: str) -> None:
    pattern, replacement, expected = PLANTED[planted]
    page, changed = re.subn(pattern, replacement, HOOKS_PAGE.read_text("utf-8"), count=1)
    assert changed == 1
    assert problems(page) == expected


def test_every_example_of_a_hook_is_right(tmp_path: Path) -> None:
    """Each brings something of its kind and nothing else, and fails no check of the kit."""
    examples: list[Block] = [block for block in blocks_of(HOOKS_PAGE) if block.file]
    for example in examples:
        (tmp_path / example.file).write_text(example.text)
    code = f"""if True:
        import json
        from vitkit.plugins import load, registries
        from vitkit.testing.check import outcome_of
        from vitkit.testing.plugin_checks import plugin_checks

        found = []
        for file in {[example.file for example in examples]!r}:
            plugin = load(file)
            checks = [c for _, own in plugin_checks(plugin, registries()) for c in own]
            outcomes = [outcome_of(check) for check in checks]
            failed = [f"{{o.name}}: {{o.message}}" for o in outcomes if o.passed is False]
            passed = sum(o.passed is True for o in outcomes)
            found.append([list(plugin.provides), passed, failed])
        print(json.dumps(found))
        """
    found = json.loads(run_python(code, tmp_path).splitlines()[-1])
    assert [kinds for kinds, _, _ in found] == [[hook.removeprefix("register_")] for hook in HOOKS]
    assert all(passed for _, passed, _ in found)
    assert [failed for _, _, failed in found if failed] == []


def test_every_function_of_the_kit_has_its_line() -> None:
    kit = {name for name in vars(testing) if name.startswith("check_")}
    text = CONFORMANCE.read_text("utf-8")
    lines = re.findall(r"^:func:`~vitkit\.testing\.(\w+)`\n   \S", text, re.MULTILINE)
    assert len(kit) == len(HOOKS) + 1  # and check_op
    assert sorted(lines) == sorted(kit)


def test_every_variable_of_plugins_is_explained() -> None:
    read: set[str] = set()
    for file in (PACKAGE / "plugins").glob("*.py"):
        read |= set(re.findall(r"\bVITKIT_[A-Z_]*PLUGINS\b", file.read_text("utf-8")))
    assert read == set(re.findall(r"^``(VITKIT_\w+)``", LOADING.read_text("utf-8"), re.MULTILINE))
