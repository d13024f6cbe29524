"""Checks that build on each other: what cannot be asked yet is skipped, not failed."""

from __future__ import annotations

from collections.abc import Sequence

from vitkit.testing.check import Check, Outcome, Skip, outcome_of


def staged(foundation: Sequence[Check], others: Sequence[Check]) -> list[Check]:
    """Return all checks, each skipped where one that it builds on does not pass.

    So a fault is reported where it is, and not by every check that stumbles over it.

    Parameters
    ----------
    foundation : sequence of Check
        Each builds on those before it.
    others : sequence of Check
        They build on the whole foundation.

    Returns
    -------
    list of Check
        The foundation, then the others; each still runs alone.
    """
    outcomes: dict[str, Outcome] = {}

    def on(below: Sequence[Check], check: Check) -> Check:
        def run() -> None:
            for each in below:
                if each.name not in outcomes:
                    outcomes[each.name] = outcome_of(each)
                if outcomes[each.name].passed is None:
                    raise Skip(outcomes[each.name].message)
                if not outcomes[each.name].passed:
                    raise Skip(f"waits for the check {each.name!r}, which fails")
            check.run()

        return Check(check.name, run)

    laid = [on(foundation[:index], check) for index, check in enumerate(foundation)]
    return laid + [on(foundation, check) for check in others]
