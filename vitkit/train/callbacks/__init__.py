"""What watches a run: recording, validating, averaging, saving, stopping."""

from vitkit.train.callbacks.base import Callback as Callback
from vitkit.train.callbacks.base import LeaveOpen as LeaveOpen
from vitkit.train.callbacks.checkpointing import Checkpointing as Checkpointing
from vitkit.train.callbacks.evaluation import Average as Average
from vitkit.train.callbacks.evaluation import EarlyStopping as EarlyStopping
from vitkit.train.callbacks.evaluation import Validation as Validation
from vitkit.train.callbacks.logging import JsonLines as JsonLines
from vitkit.train.callbacks.logging import Recorder as Recorder
from vitkit.train.callbacks.logging import as_line as as_line
from vitkit.train.callbacks.profiling import Profiling as Profiling
from vitkit.train.callbacks.stopping import StopOnSignal as StopOnSignal
from vitkit.train.callbacks.stopping import TimeLimit as TimeLimit
