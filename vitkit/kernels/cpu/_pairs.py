"""Matrix products of bfloat16, by what the processor has for them.

Chosen when the module is loaded, and not at each call: each is inlined where it is used.
"""

from vitkit.kernels.cpu._amx import SIDE
from vitkit.kernels.cpu._processor import bfloat16_unit

if bfloat16_unit() == "avx512bf16":
    from vitkit.kernels.cpu._dots import (
        add_columns,
        configure_tiles,
        multiply_rows,
        multiply_tiles,
    )
else:
    from vitkit.kernels.cpu._amx import add_columns, configure_tiles, multiply_rows, multiply_tiles

__all__ = ["SIDE", "add_columns", "configure_tiles", "multiply_rows", "multiply_tiles"]
