"""Installed plugins are found one by one, and those that fail harm nobody."""

from __future__ import annotations

import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit
from vitkit import plugins
from vitkit.plugins import PluginError, PluginWarning, active, discovery, load
from vitkit.plugins.guard import guarded

MISH = """
import vitkit

def mish(x, *, xp):
    return x * xp.tanh(xp.log1p(xp.exp(x)))

def mish_backward(dy, x, *, xp):
    t, s = xp.tanh(xp.log1p(xp.exp(x))), 1 / (1 + xp.exp(-x))
    return dy * (t + x * s * (1 - t * t))

@vitkit.hookimpl
def register_activations(register):
    register("{name}", mish, mish_backward)
"""
SIZES: dict[str, Any] = {
    "image_size": 8,
    "num_classes": 3,
    "dim": 8,
    "depth": 1,
    "num_heads": 2,
}


@pytest.fixture
def said(fresh: None) -> list[str]:
    """Return the lines that are said about plugins."""
    lines: list[str] = []
    discovery.say_with(lines.append)
    return lines


def test_an_installed_plugin_is_there(install: Any, said: list[str]) -> None:
    install("tiger", distribution="the-zoo", version="2.5")
    record = active().loaded["tiger"]
    assert (record.origin, record.version, record.source) == ("the-zoo", "2.5", "entry point")
    assert record.provides == {"optimizers": ["tiger"]}
    assert "tiger" in plugins.registries().optimizers
    assert said == []
    for name in ("tiger", "the-zoo", "the_zoo", "tiger_module"):
        assert active().find(name) is record


def test_a_model_asks_the_installed_plugins(install: Any, said: list[str]) -> None:
    install("soft", MISH.format(name="mish"))
    model = vitkit.ViT("Ti/4", activation="mish", **SIZES)
    assert model.config.activation == "mish"


def test_what_fails_is_left_out_and_named_on_one_line(install: Any, said: list[str]) -> None:
    install("broken", "raise ValueError('no\\nluck')", distribution="dist-b", version="0.3")
    install("tiger")
    assert list(active().loaded) == ["vitkit", "tiger"]
    assert said == ["Plugin 'broken (dist-b 0.3)' cannot be used: ValueError: no luck"]
    with pytest.raises(PluginError, match="no luck"):
        active().find("dist-b")


def test_by_default_a_failure_is_a_warning(install: Any) -> None:
    install("broken", "raise SystemExit(1)")
    with pytest.warns(PluginWarning, match="tried to end the program"):
        active()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        active()  # said once


def test_strict_makes_it_fatal(
    install: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("broken", "raise ValueError('no luck')")
    install("tiger")
    monkeypatch.setenv("VITKIT_STRICT_PLUGINS", "1")
    for _ in range(2):  # again, not half of it
        with pytest.raises(PluginError, match="no luck"):
            active()
    assert said == []


def test_disabled_and_selected(install: Any, said: list[str], monkeypatch: Any) -> None:
    install("tiger", distribution="zoo-a")
    install("lynx")
    monkeypatch.setenv("VITKIT_DISABLE_PLUGINS", "1")
    assert list(active().loaded) == ["vitkit"]
    discovery._plugins.clear()
    monkeypatch.delenv("VITKIT_DISABLE_PLUGINS")
    monkeypatch.setenv("VITKIT_PLUGINS", "")
    assert list(active().loaded) == ["vitkit"]
    discovery._plugins.clear()
    monkeypatch.setenv("VITKIT_PLUGINS", " zoo_a ,tigre")
    assert list(active().loaded) == ["vitkit", "tiger"]
    assert said == [
        "VITKIT_PLUGINS names 'tigre', which no installed distribution provides; did you mean "
        "'tiger'?"
    ]


def test_two_distributions_with_a_plugin_of_one_name(install: Any, said: list[str]) -> None:
    install("tiger", distribution="zoo-a")
    install("tiger", distribution="zoo-b", module="other_tiger")
    assert active().loaded["tiger"].origin == "zoo-a"
    assert said == [
        "Plugin 'tiger (zoo-b 1.0)' cannot be used: its name is that of plugin 'tiger (zoo-a "
        "1.0)'; uninstall one of the two"
    ]


def test_what_a_plugin_prints_goes_to_stderr(
    install: Any, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    install("soft", MISH.format(name="mish") + "\nprint('hello')\n")
    active()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "hello\n")


def test_a_slow_plugin_is_named(
    install: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitkit.plugins.manager.SLOW", 0.05)
    install("soft", "import time; time.sleep(0.1)\n" + MISH.format(name="mish"))
    active()
    assert len(said) == 1
    assert said[0].startswith("Plugin 'soft (dist-soft 1.0)' took 0.")


def test_a_plugin_that_makes_its_own_model_when_imported(install: Any, said: list[str]) -> None:
    build = f"\nimport vitkit.plugins\nvitkit.ViT('Ti/4', activation='gelu', **{SIZES!r})\n"
    miss = (
        "\ntry:\n    vitkit.ViT('Ti/4', activation='unheard')\nexcept vitkit.ConfigError:\n"
        "    pass\n"
    )
    install("soft", MISH.format(name="mish") + build + miss)
    assert "mish" in plugins.registries().activations
    assert said == []


def test_a_file_is_a_plugin_and_can_be_edited(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "my idea.py"
    path.write_text(MISH.format(name="mish"))
    record = load(path)
    assert (record.name, record.source, record.origin) == ("my idea", "file", str(path))
    assert record.version.startswith("sha256 ")
    vitkit.ViT("Ti/4", activation="mish", **SIZES)
    path.write_text(MISH.format(name="mish2"))
    again = load(path)
    assert again.version != record.version
    names = plugins.registries().activations.names()
    assert "mish2" in names
    assert "mish" not in names
    path.write_text("this is no Python")
    with pytest.raises(PluginError, match=r"line 1 of my idea\.py: invalid syntax"):
        load(path)
    assert "mish2" in plugins.registries().activations
    assert again.module in sys.modules


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.py", None, "is not there"),
        ("text.txt", "import this", "is no Python file: its name must end in .py"),
        ("folder.py", ..., "is a folder, no Python file"),
        ("needs.py", "import surely_not_installed", "needs 'surely_not_installed', which is not"),
    ],
)
def test_a_file_that_is_no_plugin(
    name: str, content: Any, expected: str, tmp_path: Path, said: list[str]
) -> None:
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    before = set(sys.modules)
    with pytest.raises(PluginError) as caught:
        load(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert not {m for m in set(sys.modules) - before if m.startswith("vitkit_plugin_")}


def test_a_stale_distribution(install: Any, said: list[str]) -> None:
    install("gone", "", module="gone_module")
    active()
    assert said == [
        "Plugin 'gone (dist-gone 1.0)' cannot be used: its module 'gone_module' is not there; "
        "install it anew, or uninstall it"
    ]


def test_only_a_key_press_interrupts() -> None:
    with pytest.raises(RuntimeError, match="raised KeyboardInterrupt"), guarded():
        raise KeyboardInterrupt
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), guarded():
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_many_threads_load_once(install: Any, said: list[str]) -> None:
    install("tiger")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(active())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(each) for each in found}) == 1


def test_trace_shows_every_hook(
    install: Any, said: list[str], monkeypatch: Any, capsys: Any
) -> None:
    install("tiger")
    monkeypatch.setenv("VITKIT_TRACE_PLUGINS", "1")
    active()
    assert "vitkit: register_optimizers of tiger (dist-tiger 1.0)" in capsys.readouterr().err


def test_the_activation_is_right(install: Any, said: list[str]) -> None:
    install("soft", MISH.format(name="mish"))
    pair = plugins.registries().activations["mish"]
    x = np.linspace(-3, 3, 7)
    from vitkit.testing import directional_derivative_error

    error = directional_derivative_error(
        lambda x: pair[0](x, xp=np).sum(), [x], [pair[1](np.ones(7), x, xp=np)]
    )
    assert error < 1e-6


KERNEL = """
import vitkit

def fast(x, *, xp):
    return x + 7

@vitkit.hookimpl
def register_kernels(register):
    register("relu", fast)
"""


@pytest.mark.usefixtures("kernels_on")
def test_a_model_runs_on_the_kernels_of_installed_plugins(install: Any, said: list[str]) -> None:
    install("fast", KERNEL)
    layer = vitkit.nn.Activation(vitkit.nn.ACTIVATIONS["relu"], xp=np)
    np.testing.assert_array_equal(layer(np.zeros(3, np.float32)), np.full(3, 7, np.float32))


def test_threads_that_ask_while_plugins_load_wait_for_the_names(
    install: Any, said: list[str]
) -> None:
    install("soft", "import time; time.sleep(0.3)\n" + MISH.format(name="mish"))
    made: list[Any] = []

    def make() -> None:
        made.append(vitkit.ViT("Ti/4", activation="mish", **SIZES))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4


def test_files_of_one_name_in_two_folders(tmp_path: Path, said: list[str]) -> None:
    for folder, name in (("one", "mish"), ("two", "mish2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "idea.py").write_text(MISH.format(name=name))
    first = load(tmp_path / "one" / "idea.py")
    with pytest.raises(PluginError, match=r"its name is that of plugin 'idea .*; rename the file"):
        load(tmp_path / "two" / "idea.py")
    second = load(tmp_path / "two" / "idea.py", "other")
    assert first.module != second.module
    assert {"mish", "mish2"} <= set(plugins.registries().activations.names())


def test_a_file_cannot_take_the_name_of_vitkit(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "vitkit.py").write_text(MISH.format(name="mish"))
    with pytest.raises(PluginError, match="its name is that of plugin 'vitkit'; rename the file"):
        load(tmp_path / "vitkit.py")
    with pytest.raises(PluginError, match="comes with vitkit and cannot be unloaded"):
        plugins.unload("vitkit")
    assert "adamw" in plugins.registries().optimizers


def test_an_installed_plugin_is_not_loaded_twice(install: Any, said: list[str]) -> None:
    install("tiger")
    module = sys.modules[active().loaded["tiger"].module]
    with pytest.raises(PluginError, match=r"it is loaded already, as 'tiger \(dist-tiger 1\.0\)'"):
        load(module)


def test_plugins_do_not_load_each_other(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "inner.py").write_text(MISH.format(name="mish"))
    for name in ("outer.py", "itself.py"):
        target = tmp_path / ("inner.py" if name == "outer.py" else name)
        (tmp_path / name).write_text(f"import vitkit\nvitkit.plugins.load({str(target)!r})\n")
        with pytest.raises(
            PluginError, match="tries to load it while being loaded itself"
        ) as caught:
            load(tmp_path / name)
        assert len(str(caught.value)) < 1000
    assert "inner" not in active().loaded


def test_a_home_folder_is_understood(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "idea.py").write_text(MISH.format(name="mish"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load("~/idea.py").provides == {"activations": ["mish"]}


@pytest.mark.parametrize("value", ["true", "YES", "on", "1"])
def test_switches_understand_what_people_write(
    value: str, install: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tiger")
    monkeypatch.setenv("VITKIT_DISABLE_PLUGINS", value)
    assert "tiger" not in active().loaded
    discovery._plugins.clear()
    monkeypatch.setenv("VITKIT_DISABLE_PLUGINS", "maybe")
    with pytest.raises(PluginError, match="VITKIT_DISABLE_PLUGINS: got 'maybe', expected 1 or 0"):
        active()


def test_an_edit_in_the_same_second_counts(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "idea.py"
    for name in ("mish_a", "mish_b", "mish_c"):  # of one size, so that bytecode would be reused
        path.write_text(MISH.format(name=name))
        assert load(path).provides == {"activations": [name]}
    assert not (tmp_path / "__pycache__").exists()
