"""For tests of vitkit and of its plugins: the conformance kit, gradient checks, a stand-in GPU.

Each kind of thing that a plugin registers has a function that takes it and raises with everything
that is wrong with it. The same checks, a test for each, are run by ``pytest --vitkit-plugin NAME``
and by ``vitkit plugins check NAME``.
"""

from vitkit.testing.activations import check_activation as check_activation
from vitkit.testing.callbacks import check_callback as check_callback
from vitkit.testing.check import Check as Check
from vitkit.testing.check import ConformanceError as ConformanceError
from vitkit.testing.check import Skip as Skip
from vitkit.testing.commands import check_command as check_command
from vitkit.testing.datasets import check_dataset as check_dataset
from vitkit.testing.gradients import assert_close as assert_close
from vitkit.testing.gradients import directional_derivative_error as directional_derivative_error
from vitkit.testing.gradients import gradient_error as gradient_error
from vitkit.testing.kernels import check_kernel as check_kernel
from vitkit.testing.layers import check_layer as check_layer
from vitkit.testing.losses import check_loss as check_loss
from vitkit.testing.models import check_model as check_model
from vitkit.testing.ops import check_op as check_op
from vitkit.testing.optimizers import check_optimizer as check_optimizer
from vitkit.testing.schedules import check_schedule as check_schedule
from vitkit.testing.transforms import check_transform as check_transform
