"""Optimizers, learning-rate schedules, gradient clipping and averages of weights."""

from vitkit.optim.adam import Adam as Adam
from vitkit.optim.adamw import AdamW as AdamW
from vitkit.optim.clip import clip_global_norm as clip_global_norm
from vitkit.optim.ema import EMA as EMA
from vitkit.optim.lamb import LAMB as LAMB
from vitkit.optim.lion import Lion as Lion
from vitkit.optim.optimizer import Optimizer as Optimizer
from vitkit.optim.schedules import Constant as Constant
from vitkit.optim.schedules import Cosine as Cosine
from vitkit.optim.schedules import Linear as Linear
from vitkit.optim.schedules import Rsqrt as Rsqrt
from vitkit.optim.schedules import Schedule as Schedule
from vitkit.optim.schedules import Step as Step
from vitkit.optim.sgd import SGD as SGD
