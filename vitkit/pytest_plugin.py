"""``pytest --vitkit-plugin NAME``: the conformance kit as tests, one for each check.

Loaded by pytest wherever vitkit is installed, so nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--vitkit-plugin``."""
    parser.getgroup("vitkit").addoption(
        "--vitkit-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="run vitkit's conformance kit on a plugin, by its name, its distribution's, its "
        "module's, or its Python file; may be repeated",
    )


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the checks of the plugins that were named."""
    for name in session.config.getoption("--vitkit-plugin"):
        collector = PluginChecks.from_parent(session, name=f"vitkit-plugin {name}", asked=name)
        found = list(collector.collect())
        report = pytest.CollectReport(collector.nodeid, "passed", None, [*found])
        session.ihook.pytest_collectreport(report=report)  # so that pytest counts them
        items.extend(found)


class PluginChecks(pytest.Collector):
    """All checks of one plugin."""

    def __init__(self, *, asked: str, **options: Any) -> None:
        super().__init__(**options)
        self.asked = asked

    def collect(self) -> Iterator[CheckItem]:
        """Yield a test for each check of each thing that the plugin registers."""
        from vitkit.registry import PluginError
        from vitkit.testing.plugin_checks import plugin_checks

        try:
            record, registries = _find(self.asked)
        except PluginError as error:
            raise pytest.UsageError(f"--vitkit-plugin {self.asked}: {error}") from error
        for what, checks in plugin_checks(record, registries):
            for check in checks:
                yield CheckItem.from_parent(self, name=f"{what}: {check.name}", check=check)


class CheckItem(pytest.Item):
    """One check as a test."""

    def __init__(self, *, check: Any, **options: Any) -> None:
        super().__init__(**options)
        self.check = check

    def runtest(self) -> None:
        """Run the check; one that cannot be made here is skipped with its reason."""
        from vitkit.testing.check import outcome_of

        outcome = outcome_of(self.check)
        if outcome.passed is None:
            pytest.skip(outcome.message)
        if not outcome.passed:
            pytest.fail(outcome.message, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return what a report says of the place: the name alone."""
        return self.path, None, self.name


def _find(name: str) -> tuple[Any, Any]:
    """Return a plugin and the registries, loading the file or module that was named."""
    import importlib.util

    from vitkit.plugins import active, load
    from vitkit.registry import PluginError

    plugins = active()
    if name.endswith(".py"):
        return load(name), plugins.registries
    try:
        return plugins.find(name), plugins.registries
    except PluginError:
        known = [failure for failure in plugins.failed if failure.answers_to(name)]
        if known or not name.isidentifier() or importlib.util.find_spec(name) is None:
            raise
    return load(importlib.import_module(name)), plugins.registries
