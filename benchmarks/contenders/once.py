"""Let a contender compute once and end: ``python -m contenders.once MODULE MODE ORDER``.

The order is that of :class:`contenders.task.Order`, as JSON.
"""

import importlib
import json
import sys

from contenders.task import Order

module, mode, order = sys.argv[1:]
importlib.import_module(f"contenders.{module}").prepare(mode, Order(**json.loads(order))).run()
