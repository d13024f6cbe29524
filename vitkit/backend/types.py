"""The two types that stand for any backend's arrays and any backend's array module."""

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An n-dimensional array of the module in use: ``numpy.ndarray``, ``cupy.ndarray``, ..."""

ArrayModule: TypeAlias = Any
"""What ``cupy.get_array_module`` returns: ``numpy``, ``cupy``, or one that behaves like them."""
