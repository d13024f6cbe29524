"""Matrix products of bfloat16, by what the processor has for them.

Chosen when the module is loaded, and not at each call: each is inlined where it is used. Operands
are laid out for whole tiles in any case; ``ROW_UNIT`` and ``DEPTH_UNIT`` say of how many rows, and
of how many products that are summed, what is multiplied must be a multiple.
"""

from vitkit.kernels.cpu._amx import SIDE
from vitkit.kernels.cpu._processor import bfloat16_unit

if bfloat16_unit() == "avx512bf16":
    from vitkit.kernels.cpu._dots import (
        DEPTH_UNIT,
        ROW_UNIT,
        add_columns,
        configure_tiles,
        multiply_rows,
        multiply_tiles,
    )
else:  # where there is neither, these are never called
    from vitkit.kernels.cpu._amx import (
        DEPTH_UNIT,
        ROW_UNIT,
        add_columns,
        configure_tiles,
        multiply_rows,
        multiply_tiles,
    )

__all__ = [
    "DEPTH_UNIT",
    "ROW_UNIT",
    "SIDE",
    "add_columns",
    "configure_tiles",
    "multiply_rows",
    "multiply_tiles",
]
