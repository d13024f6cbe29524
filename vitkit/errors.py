"""The errors vitkit raises on purpose: what came, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence


class VitkitError(Exception):
    """Base of every error that vitkit raises about its input or its surroundings."""


class BackendError(VitkitError, RuntimeError):
    """The array backend that was asked for cannot work here; the message names cause and cure."""


class DataError(VitkitError, ValueError):
    """A data file, image or label is not what it should be; the message names file and place."""


class CheckpointError(VitkitError, RuntimeError):
    """A checkpoint cannot be written, or cannot be trusted when read."""


class ConfigError(VitkitError, ValueError):
    """A setting is wrong; every problem found is listed, one a line.

    Parameters
    ----------
    problems : sequence of str
        One line for each problem: where it is, what came, what was expected.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
