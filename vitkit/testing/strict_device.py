"""An ``xp`` that behaves like CuPy where it matters, on NumPy: a stand-in for a GPU.

It refuses what CuPy refuses (host arrays among device arrays, implicit conversion to NumPy, names
and keywords that CuPy does not have), keeps the results of reductions as 0-d arrays as CuPy does,
and reports each read for which the host would wait::

    from vitkit.testing.strict_device import count_syncs, xp

    with count_syncs() as syncs:
        train_step(model, xp.asarray(images), xp.asarray(labels))
    assert syncs == []

It is stricter than CuPy where CuPy helps in silence: ``np.exp(device_array)``, a host array as an
index, a list of device arrays given to ``asarray``. Importing it registers the backend
``"strict_device"``. A NumPy subclass could not do this, since NumPy's functions would accept it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from importlib import resources
from types import EllipsisType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import Backend, register_backend
from vitkit.testing import recording
from vitkit.testing.syncs import count_syncs as count_syncs
from vitkit.testing.syncs import wait as _sync

# The public names of cupy 14.2.0; for a function also the names of its parameters (those that may
# be given by keyword, for a ufunc), and null where CuPy does not say.
CUPY: dict[str, list[str] | None] = json.loads(
    (resources.files("vitkit.testing") / "cupy_names.json").read_text("utf-8")
)
# What NumPy's methods take and CuPy's do not; CuPy's methods do not say what they take.
UNKNOWN_TO_METHODS = frozenset("correction initial mean stable where".split())

# The size of their result, or a decision on the way, is known only when the device is done.
WAITING = frozenset(
    """argwhere bincount choose compress extract flatnonzero histogram nanmax nanmin nonzero put
    unique""".split()
)

# They would hand host arrays to a callback.
NOT_IMITATED = frozenset(
    "apply_along_axis apply_over_axes fromfunction piecewise vectorize".split()
)

# By cuBLAS.
PRODUCTS = frozenset("corrcoef cov dot einsum inner matmul outer tensordot vdot".split())

TO_ARRAY = frozenset("allclose array_equal array_equiv".split())  # Python bools in NumPy


class Flags(NamedTuple):
    """What CuPy says about an array's memory."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


class Memory(NamedTuple):
    """Where an array lies, as CuPy's ``array.data`` says it."""

    ptr: int


class DeviceArray:
    """An array that only ``xp`` can compute with; made by ``xp.asarray`` and other functions."""

    # As CuPy's arrays say "cupy": vitkit.backend knows an array's backend by it.
    __module__ = "strict_device"
    __slots__ = ("__weakref__", "_a")
    __array_ufunc__ = None  # so host_array + device_array reaches our reflected operator
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: np.ndarray) -> None:
        self._a = array

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct a NumPy array explicitly."
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(
            f"numpy.{function.__name__} was given a device array; call xp.{function.__name__}."
        )

    # Legal in CuPy, but each waits for the device: counted.

    def get(self) -> np.ndarray:
        """Return a copy on the host."""
        _sync("copy to host")
        return self._a.copy()

    def item(self, *args: int) -> Any:
        """Return one element as a Python number."""
        _sync("item")
        return self._a.item(*args)

    def tolist(self) -> Any:
        """Return the elements as nested lists."""
        _sync("tolist")
        return self._a.tolist()

    def __float__(self) -> float:
        _sync("float")
        return float(self._a)

    def __int__(self) -> int:
        _sync("int")
        return int(self._a)

    def __bool__(self) -> bool:
        _sync("bool")
        return bool(self._a)

    def __repr__(self) -> str:
        _sync("repr")
        return f"DeviceArray({self._a!r})"

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[DeviceArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> DeviceArray:
        if _has_mask(index):
            _sync("boolean mask")
        _refuse_lists(index)
        place = _as_view(_host(index))
        found = np.asarray(self._a[place])
        recording.note_result(lambda a: a[place], (self._a,), {}, found)
        return DeviceArray(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        if _has_mask(index) and np.ndim(_host(value)) > 0:
            _sync("boolean mask")
        _refuse_lists(index)
        if isinstance(value, (list, tuple)):
            raise ValueError("CuPy fills with a number only: bring a list over, with xp.asarray.")
        place, source, target = _host(index), _host(value), self._a
        target[place] = source
        recording.note(lambda: target.__setitem__(place, source))

    @property
    def flags(self) -> Flags:
        """What CuPy says about the memory."""
        own = self._a.flags
        return Flags(own.c_contiguous, own.f_contiguous, own.owndata)

    @property
    def data(self) -> Memory:
        """Where the memory is."""
        return Memory(self._a.ctypes.data)

    @property
    def T(self) -> DeviceArray:
        """The array with its axes reversed, a view."""
        return DeviceArray(self._a.T)

    @property
    def mT(self) -> DeviceArray:
        """The array with its last two axes swapped, a view."""
        return DeviceArray(self._a.mT)


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, DeviceArray) and part._a.dtype == bool for part in parts)


def _refuse_lists(index: Any) -> None:
    """Refuse an index that CuPy brings to the device first, where work is recorded as a graph."""
    if any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,))):
        recording.refuse("bringing an index to the device")


def _as_view(index: Any) -> Any:
    """Return an index that selects the same and gives a 0-d view where NumPy gives a scalar."""
    parts = index if isinstance(index, tuple) else (index,)
    return parts if any(isinstance(p, EllipsisType) for p in parts) else (*parts, ...)


def _host(value: Any) -> Any:
    """Return what an argument stands for; refuse a host array."""
    if isinstance(value, DeviceArray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"Unsupported type {type(value)}: a host array of shape {value.shape} among device "
            "arrays. Bring it over once, with xp.asarray."
        )
    if type(value) in (tuple, list):
        return type(value)(_host(item) for item in value)
    return value


def _device(result: Any, arguments: tuple[Any, ...] = ()) -> Any:
    """Return a result as device array; the very argument where NumPy gave back the argument."""
    if isinstance(result, (np.ndarray, np.generic)):
        for argument in arguments:
            if isinstance(argument, DeviceArray) and argument._a is result:
                return argument
        return DeviceArray(np.asarray(result))  # reductions give 0-d arrays, not scalars
    if type(result) in (tuple, list):
        return type(result)(_device(item) for item in result)
    return result


def _function(
    name: str, function: Callable[..., Any], knows: Callable[[str], bool]
) -> Callable[..., Any]:
    """Return a NumPy function or method as CuPy has it; ``knows`` answers for keywords."""
    is_ufunc = isinstance(function, np.ufunc)

    def call(*args: Any, **kwargs: Any) -> Any:
        for keyword in kwargs:
            if not knows(keyword):
                raise TypeError(f"cupy.{name} has no argument {keyword!r}.")
        if is_ufunc and any(isinstance(arg, (list, tuple)) for arg in args):
            raise TypeError(f"cupy.{name} takes arrays and numbers, not lists.")
        if name in WAITING or _looks(name, args, kwargs):
            _sync(name)
        if name == "take":
            _refuse_lists((*args[1:], *kwargs.values()))
        if name in PRODUCTS:
            recording.refuse(f"cuBLAS, as cupy.{name} calls it,")
        given = [_host(arg) for arg in args]
        named = {key: _host(arg) for key, arg in kwargs.items()}
        result = function(*given, **named)
        if isinstance(result, np.generic) or name in TO_ARRAY:
            result = np.asarray(result)
        recording.note_result(function, given, named, result)
        return _device(result, (*args, *kwargs.values()))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"``cupy.{name}``, computed by NumPy."
    return call


def _looks(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a function waits for the device when it is called like this."""
    if name == "where":
        return len(args) == 1
    return name == "average" and (len(args) > 2 or kwargs.get("weights") is not None)


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: DeviceArray, *others: Any) -> Any:
        if any(isinstance(other, (list, tuple)) for other in others):
            raise TypeError("Unsupported type: a list or tuple beside a device array.")
        if "matmul" in name:
            recording.refuse("cuBLAS, as cupy.matmul calls it,")
        given = [self._a, *(_host(other) for other in others)]
        result = getattr(self._a, name)(*given[1:])
        if result is NotImplemented:
            return result
        result = np.asarray(result)
        if name.startswith("__i") and name != "__invert__":
            recording.note(lambda: getattr(given[0], name)(*given[1:]))
        else:
            recording.note_result(lambda a, *b: getattr(a, name)(*b), given, {}, result)
        return _device(result, (self,))

    return operate


_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
# CuPy has no __imatmul__: a @= b makes a new array.
_OPERATORS = [
    *(
        f"__{prefix}{name}__"
        for name in _BINARY
        for prefix in ("", "r", "i")
        if prefix + name != "imatmul"
    ),
    *(f"__{name}__" for name in "neg pos abs invert eq ne lt le gt ge".split()),
]
_METHODS = """all any argmax argmin argpartition argsort astype clip compress conj copy cumprod
cumsum diagonal dot fill flatten max mean min nonzero prod ravel repeat reshape round searchsorted
sort squeeze std sum swapaxes take trace transpose var view""".split()
_PROPERTIES = "dtype itemsize nbytes ndim shape size strides".split()


def _property(name: str) -> property:
    return property(lambda self: getattr(self._a, name))


for _name in _OPERATORS:
    setattr(DeviceArray, _name, _operator(_name))
for _name in _METHODS:
    _method = _function(_name, getattr(np.ndarray, _name), lambda k: k not in UNKNOWN_TO_METHODS)
    setattr(DeviceArray, _name, _method)
for _name in _PROPERTIES:
    setattr(DeviceArray, _name, _property(_name))


def array(values: Any, dtype: Any = None, copy: bool = True) -> DeviceArray:
    """Bring values to the device, the explicit way; a device array is copied unless told not to."""
    if isinstance(values, DeviceArray):
        same = dtype is None or np.dtype(dtype) == values._a.dtype
        if same and not copy:
            return values
        source, copied = values._a, np.array(values._a, dtype)
        recording.note(lambda: np.copyto(copied, source, casting="unsafe"))
        return DeviceArray(copied)
    _refuse_device_arrays(values)
    recording.refuse("bringing an array to the device")
    made = np.array(values, dtype)
    if made.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {made.dtype}")
    return DeviceArray(made)


def asarray(values: Any, dtype: Any = None) -> DeviceArray:
    """Bring values to the device, the explicit way; a device array of that dtype stays itself."""
    return array(values, dtype, copy=False)


def _refuse_device_arrays(values: Any) -> None:
    if isinstance(values, DeviceArray):
        raise TypeError("A list of device arrays: use xp.stack or xp.concatenate.")
    if isinstance(values, (list, tuple)):
        for value in values:
            _refuse_device_arrays(value)


def asnumpy(values: Any) -> np.ndarray:
    """Copy to the host, the explicit way; a host array stays itself."""
    return values.get() if isinstance(values, DeviceArray) else np.asarray(values)


class StrictModule(ModuleType):
    """The array module: NumPy's functions under the names that CuPy has."""

    def __getattr__(self, name: str) -> Any:
        if name == "random":
            raise AttributeError(
                "vitkit does not draw on the device: draw on the host with "
                "vitkit.backend.philox, which any backend repeats, and bring it with xp.asarray."
            )
        if name not in CUPY:
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        value = getattr(np, name, None)
        has_no_counterpart = value is None and name != "newaxis"
        if has_no_counterpart or isinstance(value, ModuleType) or name in NOT_IMITATED:
            raise AttributeError(f"strict_device does not imitate cupy.{name}")
        if callable(value) and not isinstance(value, type):
            known = CUPY[name]
            value = _function(name, value, lambda k: known is None or k in known)
        setattr(self, name, value)  # found without __getattr__ from now on
        return value


def _erf(x: DeviceArray) -> DeviceArray:
    # Imported at first use: SciPy takes longer to import than the rest of vitkit.
    special: Any = importlib.import_module("scipy.special")
    source = _only_device(x)
    result = np.asarray(special.erf(source))
    recording.note_result(special.erf, (source,), {}, result)
    return DeviceArray(result)


def _only_device(x: Any) -> np.ndarray:
    if not isinstance(x, DeviceArray):
        raise TypeError(f"Unsupported type {type(x)}: cupyx.scipy.special takes device arrays.")
    return x._a


xp: Any = StrictModule("strict_device", __doc__)
xp.ndarray = DeviceArray
xp.array = array
xp.asarray = xp.asanyarray = asarray
xp.asnumpy = asnumpy

_special: Any = ModuleType("strict_device.special")
_special.erf = _erf

register_backend(
    Backend(
        name="strict_device",
        on_host=False,
        to_numpy=asnumpy,
        synchronize=lambda: _sync("synchronize"),
        special=_special,
        record=recording.record,
    )
)
