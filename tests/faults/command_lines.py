"""The cases of row F23: how ``vitkit`` is started, and how it ends."""

from __future__ import annotations

ENDS: list[tuple[str, int, str]] = [
    ("", 2, ""),
    ("data", 2, ""),
    ("--version", 0, ""),
    ("trian", 2, "No such command 'trian'"),
    ("data bogus", 2, "No such command"),
    ("--bogus", 2, "No such option: --bogus"),
    ("train --bogus", 2, "No such option"),
    ("train surplus", 2, "unexpected extra argument"),
    ("train --epochs", 2, "requires an argument"),
    ("train --epochs x", 2, "Invalid value for '--epochs'"),
    ("train --epochs 0", 2, "vitkit: train.epochs: got 0 from a flag"),
    ("train --lr nan", 2, "vitkit: train.lr: got nan from a flag"),
    ("train --batch-size 99999999999999999999", 2, "at most 64 bits"),
    ("train --max-time soon", 2, "vitkit: train.max_time: got 'soon'"),
    ("train --name ../up", 2, "vitkit: name: got '../up'"),
    ("train --set train.epoch=1", 2, "did you mean train.epochs?"),
    ("train --config missing.toml", 2, "missing.toml: cannot be read"),
    ("train --config .", 2, "cannot be read"),
    ("train --dataset cifar10 --data-dir missing", 1, "missing"),
    ("train --resume missing", 1, "vitkit: missing is no run folder"),
    ("train --resume auto --out missing", 1, "nothing to resume"),
    ("train --plugin missing.py", 1, "missing.py"),
    ("evaluate", 2, "Missing argument"),
    ("evaluate missing", 1, "missing"),
    ("evaluate RUN --split bogus", 2, "vitkit: --split: got 'bogus'"),
    ("evaluate RUN --which bogus", 2, "bogus"),
    ("predict RUN", 2, "Missing argument"),
    ("predict RUN missing.png", 1, "missing.png"),
    ("predict RUN RUN", 1, ""),
    ("predict missing missing.png", 1, "missing"),
    ("bench --model bogus", 2, "bogus"),
    ("bench --rounds 0", 2, "--rounds"),
    ("bench --precision bogus", 2, "vitkit: --precision: got 'bogus'"),
    ("data verify bogus", 1, "bogus"),
    ("data prepare minst", 1, "did you mean 'mnist'?"),
    ("data verify mnist --data-dir missing", 1, "missing"),
    ("plugins check bogus", 1, "bogus"),
    ("plugins --json check x", 2, "after the command"),
]
"""Words, the exit code, and what stderr says."""
CLOSED: list[tuple[str, str, int]] = [
    ("info", ">&-", 0),
    ("info", "<&- >&- 2>&-", 0),
    ("--help", ">&-", 0),
    ("evaluate RUN", "2>&-", 0),
    ("evaluate RUN", "<&- >&- 2>&-", 0),
    ("train --set a=1", "2>&-", 2),
    ("predict RUN missing.png", "<&- 2>&-", 1),
    ("info", ">/dev/full", 1),
    ("--help", ">/dev/full", 1),
    ("train --print-config", ">/dev/full", 1),
    ("evaluate RUN", "2>/dev/full", 0),
    ("train --set a=1", "2>/dev/full", 2),
]
"""Words, what a shell does about the streams, the exit code."""
READERS_LEAVE = ["kernels", "evaluate RUN", "data list", "train --print-config", "plugins --json"]
"""Words; each writes more than a line."""
TERMINALS: list[dict[str, str]] = [
    {"TERM": "dumb"},
    {"TERM": ""},
    {"NO_COLOR": "1"},
    {"NO_COLOR": ""},
    {"FORCE_COLOR": "1"},
    {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm-256color"},
    {"COLUMNS": "20"},
    {"COLUMNS": "0", "LINES": "x"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C"},
    {"LC_ALL": "no_SUCH.locale", "PYTHONWARNINGS": "ignore"},
    {"PYTHONUNBUFFERED": "1"},
]
"""Variables that say something of a terminal, or of the text on it."""
NARROW: list[dict[str, str]] = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
"""Variables that make streams unable to write some characters, or look so."""
HOMES: list[dict[str, str]] = [
    {"HOME": "(unset)"},
    {"HOME": ""},
    {"HOME": "relative"},
    {"HOME": "/dev/null"},  # nobody, not even root, can write there
    {"HOME": "/proc"},
    *({"XDG_CACHE_HOME": value} for value in ("", "relative", "/dev/null")),
    *({variable: "relative"} for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME")),
    {"XDG_CACHE_HOME": "{place}/cache of mine"},
]
"""Variables that say where a user's files are."""
