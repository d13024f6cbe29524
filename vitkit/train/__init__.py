"""Training: one step, the loop, and what watches it."""

from vitkit.train.bad_steps import BadSteps as BadSteps
from vitkit.train.evaluate import evaluate as evaluate
from vitkit.train.evaluate import predict as predict
from vitkit.train.graph import GraphedForward as GraphedForward
from vitkit.train.graph import GraphedStep as GraphedStep
from vitkit.train.loss_scale import LossScale as LossScale
from vitkit.train.metrics import Metrics as Metrics
from vitkit.train.nonfinite import NotFinite as NotFinite
from vitkit.train.preprocess import Preprocess as Preprocess
from vitkit.train.restore import Restored as Restored
from vitkit.train.restore import restore as restore
from vitkit.train.state import TrainState as TrainState
from vitkit.train.step import StepLog as StepLog
from vitkit.train.step import train_step as train_step
from vitkit.train.trainer import Trainer as Trainer
