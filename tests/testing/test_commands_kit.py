"""Every command that ships passes, and each planted fault fails the checks it should."""

from __future__ import annotations

from typing import Any

import pytest
from faults_commands import FAULTS, FAULTY, quiet, right, right_app

from vitkit.cli.main import app
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.testing.commands import check_command, command_checks

SHIPPED: dict[str, Any] = {
    **{str(each.name): each.callback for each in app.registered_commands},
    **{str(each.name): each.typer_instance for each in app.registered_groups},
}


def outcomes(name: str, command: Any) -> dict[str, Outcome]:
    found = [outcome_of(check) for check in command_checks(name, command)]
    return {outcome.name: outcome for outcome in found}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_the_checks_it_concerns(fault: str) -> None:
    name, command, names, _ = FAULTY[fault]
    check, message = FAULTS[fault]
    found = outcomes(name, command)
    assert {each for each, one in found.items() if one.passed is False} == names
    with pytest.raises(ConformanceError, match=message):
        check()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_command_that_ships_passes_every_check(name: str) -> None:
    assert all(one.passed for one in outcomes(name, SHIPPED[name]).values())


def test_the_commands_that_ship_are_tried() -> None:
    assert {"train", "evaluate", "predict", "data", "info", "bench"} <= set(SHIPPED)


@pytest.mark.parametrize("command", [right, right_app, quiet], ids=["function", "group", "file"])
def test_a_right_one_passes_every_check(command: Any) -> None:
    assert all(one.passed for one in outcomes("hello_there", command).values())
    check_command("hello_there", command)


def test_what_is_from_no_file_is_skipped_with_the_reason() -> None:
    def hello() -> None:
        """Say hello."""

    hello.__module__ = "typed_by_hand"
    found = outcomes("hello", hello)["quiet import"]
    assert found.passed is None
    assert found.message == "typed_by_hand is from no file, so it cannot be imported"
