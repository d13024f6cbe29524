"""Plugins for tests: files, and distributions that look installed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitkit import registry
from vitkit.plugins import discovery

Install = Callable[..., Path]

HEALTHY = """
from vitkit import hookimpl
from vitkit.optim import AdamW

class {name}(AdamW):
    "An optimizer."

@hookimpl
def register_optimizers(register):
    register("{name}", {name})
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the process begin anew with plugins, and forget those of the test after it."""
    for variable in ("VITKIT_PLUGINS", "VITKIT_DISABLE_PLUGINS", "VITKIT_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(discovery, "_plugins", [])
    monkeypatch.setattr(discovery, "_said", [])
    monkeypatch.setattr(discovery, "_shipped", [])
    monkeypatch.setattr(registry, "_looked", [])
    yield
    for plugins in discovery._plugins:
        plugins.unload_all()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Iterator[Install]:
    """Return a function that makes a distribution with one plugin look installed.

    ``install(name, source, distribution=..., version=..., module=...)``; without source it is a
    healthy plugin with an optimizer of that name.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def make(
        name: str,
        source: str | None = None,
        *,
        distribution: str | None = None,
        version: str = "1.0",
        module: str | None = None,
    ) -> Path:
        distribution, module = distribution or f"dist-{name}", module or f"{name}_module"
        text = HEALTHY.format(name=name) if source is None else source
        if text:
            (site / f"{module}.py").write_text(textwrap.dedent(text))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[vitkit]\n{name} = {module}\n")
        return site

    yield make
    for module in [name for name, m in sys.modules.items() if _is_in(site, m)]:
        del sys.modules[module]


def _is_in(folder: Path, module: object) -> bool:
    return str(getattr(module, "__file__", None)).startswith(str(folder))
