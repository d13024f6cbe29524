"""For tests of vitkit and of its plugins: gradient checks and a stand-in for a GPU.

``vitkit.testing.strict_device`` is not imported here, since importing it registers a backend.
"""

from vitkit.testing.gradients import assert_close as assert_close
from vitkit.testing.gradients import directional_derivative_error as directional_derivative_error
