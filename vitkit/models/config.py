"""Everything that decides a ViT's shape: a variant's sizes and every override, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from vitkit.errors import ConfigError, suggestion
from vitkit.models.sizes import Size, parse_variant
from vitkit.nn.activation import ACTIVATIONS
from vitkit.nn.init import SCHEMES
from vitkit.nn.layers import LAYERS, PARTS

POOLS = ("cls", "mean")
KINDS = {"mlp": "an mlp", "norm": "a norm", "attention": "an attention"}
"""How messages call a layer by the part that it can take."""
LARGEST = 10**7
"""The largest width or side: one above it is a slip, and what goes with it is long to look for."""
DEEPEST = 10_000
"""The most blocks; the deepest published model has a hundredth of it."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that decides a ViT's shape.

    Attributes
    ----------
    variant : str
        A size and a patch, such as ``"B/16"``; the attributes below override what it implies.
    image_size, patch_size : tuple of 2 int
        Height and width, in pixels; the patch must divide the image.
    in_channels, num_classes : int
        Image channels and outputs.
    dim, depth, num_heads, mlp_dim : int
        The width D, the number of blocks, heads (which must divide D) and the MLP's width.
    activation : str
        ``"gelu"``, ``"gelu_tanh"``, ``"relu"``, ``"silu"``, ``"quick_gelu"``, ``"tanh"`` or a
        plugin's, see :data:`vitkit.nn.ACTIVATIONS`.
    mlp, norm, attention : str
        The layers of the blocks, by name: ``"mlp"``, ``"layer_norm"``, ``"attention"`` or those
        of plugins, see :data:`vitkit.nn.LAYERS`; the norm before the head is of the same kind.
    pool : str
        ``"cls"``, the class token's output, or ``"mean"``, the mean of all patches; with the
        latter there is no class token.
    layer_norm_eps : float
        What the norms add to variances.
    dropout, drop_path : float
        The rate of dropout, and that of stochastic depth in the last block, rising linearly.
    representation_size : int or None
        The width of the paper's tanh layer before the head at pre-training, or None for none.
    init : str
        ``"jax"``, ``"timm"`` or ``"scratch"``, see :mod:`vitkit.nn.init`.
    gradient_checkpointing : bool
        Whether blocks are recomputed in backward, to save memory.
    residual_in_fp32 : bool
        Whether what flows from block to block stays float32. If not, it is rounded to bfloat16
        where a model's precision is that and a GPU's kernels compute it: faster, and less exact,
        see :mod:`vitkit.ops.residual`. In another precision nothing is rounded.
    """

    variant: str
    image_size: Size
    patch_size: Size
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    in_channels: int = 3
    num_classes: int = 1000
    activation: str = "gelu"
    mlp: str = "mlp"
    norm: str = "layer_norm"
    attention: str = "attention"
    pool: str = "cls"
    layer_norm_eps: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
    representation_size: int | None = None
    init: str = "jax"
    gradient_checkpointing: bool = False
    residual_in_fp32: bool = True

    def __post_init__(self) -> None:
        """Raise a ConfigError that lists every problem there is."""
        problems = list(_problems(self))
        if problems:
            raise ConfigError(problems)

    @classmethod
    def of(cls, variant: str = "B/16", **options: Any) -> ViTConfig:
        """Return the configuration of a variant with overrides; None means "as the variant".

        Where ``dim`` is given and ``mlp_dim`` is not, the variant's ratio of the two is kept.

        Raises
        ------
        ConfigError
            If the variant or a keyword is unknown, or a value cannot be; every problem is listed.
        """
        known = {field.name for field in fields(cls)} - {"variant"}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ConfigError(
                [f"{name}: not an option of ViT{suggestion(name, known)}" for name in unknown]
            )
        patch, implied = parse_variant(variant)
        given = {name: value for name, value in options.items() if value is not None}
        widths: list[Any] = [given.get("dim"), implied["mlp_dim"], implied["dim"]]
        if all(_is_int(width) and 0 < width <= LARGEST for width in widths):
            dim, wide, own = widths
            implied["mlp_dim"] = dim * wide // own
        values = {"image_size": 224, "patch_size": patch, **implied, **given}
        for name in ("image_size", "patch_size"):
            values[name] = _size(values[name])
        return cls(variant=variant, **values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViTConfig:
        """Return what ``to_dict`` wrote, here or in an older version.

        All sizes are in it, so the variant is only what it is called, and may be that of a plugin
        that is not installed.

        Raises
        ------
        ConfigError
            If a name is unknown or missing, or a value cannot be.
        """
        known = {field.name: field for field in fields(cls)}
        problems = [
            f"{name}: not an option of ViT{suggestion(name, known)}"
            for name in values
            if name not in known
        ]
        problems += [
            f"{name}: is missing"
            for name, field in known.items()
            if field.default is MISSING and name not in values
        ]
        if problems:
            raise ConfigError(problems)
        sizes = {name: _size(values[name]) for name in ("image_size", "patch_size")}
        return cls(**{**values, **sizes})

    @property
    def grid(self) -> Size:
        """How many patches there are down and across."""
        (height, width), (down, across) = self.image_size, self.patch_size
        return height // down, width // across

    @property
    def num_tokens(self) -> int:
        """The length N of the sequence, the class token included."""
        return self.grid[0] * self.grid[1] + (self.pool == "cls")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def _problems(config: ViTConfig) -> Iterable[str]:
    """Yield one line for each thing that cannot be."""
    sound = True
    for name in ("in_channels", "num_classes", "dim", "depth", "num_heads", "mlp_dim"):
        value, most = getattr(config, name), DEEPEST if name == "depth" else LARGEST
        if not _is_int(value) or not 1 <= value <= most:
            sound = False
            yield f"{name}: got {value!r}; {_whole(value, most)}"
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        if not (
            isinstance(value, tuple)
            and len(value) == 2
            and all(_is_int(side) and 0 < side <= LARGEST for side in value)
        ):
            sound = False
            sides = value if isinstance(value, tuple) else ()
            high = any(_is_int(side) and side > LARGEST for side in sides)
            pixels = f"at most {LARGEST}" if high else "a number of pixels, or (height, width)"
            yield f"{name}: got {value!r}; expected {pixels}"
    size = config.representation_size
    if size is not None and (not _is_int(size) or not 1 <= size <= LARGEST):
        yield f"representation_size: got {size!r}; {_whole(size, LARGEST)}, or None"
    for name in ("dropout", "drop_path"):
        if not _is_number(getattr(config, name)) or not 0 <= getattr(config, name) < 1:
            yield f"{name}: got {getattr(config, name)!r}; expected a number in [0, 1)"
    if not _is_number(config.layer_norm_eps) or not config.layer_norm_eps > 0:
        yield f"layer_norm_eps: got {config.layer_norm_eps!r}; expected a number above 0"
    for name, known in (("activation", ACTIVATIONS), ("pool", POOLS), ("init", SCHEMES)):
        value = getattr(config, name)
        if not isinstance(value, str) or value not in known:
            yield f"{name}: got {value!r}; {_one_of(value, known)}"
    for part in PARTS:
        yield from _misplaced(part, getattr(config, part))
    if sound:
        yield from _misfits(config)


def _misplaced(part: str, value: Any) -> Iterable[str]:
    """Yield a line if no layer has this name, or the one that has cannot take this part."""
    known = isinstance(value, str) and value in LAYERS
    entries = LAYERS.entries()
    fitting = [entry.name for entry in entries if entry.details.get("part") == part]
    if not known:
        yield f"{part}: got {value!r}; {_one_of(value, fitting)}"
    elif value not in fitting:
        kind = KINDS.get(str(LAYERS.entry(value).details.get("part")), "no part of a block")
        yield f"{part}: {value!r} is {kind}, not {KINDS[part]}; {_one_of('', fitting)}"


def _whole(value: Any, most: int) -> str:
    """Return how a message about a size ends."""
    high = _is_int(value) and value > most
    return f"expected {'at most ' + str(most) if high else 'a whole number of 1 or more'}"


def _one_of(value: Any, known: Iterable[str]) -> str:
    """Return how a message about an unknown name ends: what is known, and the nearest of it."""
    names = list(known)
    return f"expected one of {', '.join(names)}{suggestion(value, names)}"


def _misfits(config: ViTConfig) -> Iterable[str]:
    """Yield one line for each pair of sizes that do not go together, with the nearest that do."""
    dim, heads = config.dim, config.num_heads
    if dim % heads:
        divisors = sorted(
            (n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: (abs(n - heads), n)
        )
        below = dim // heads * heads
        widths = [width for width in (below, below + heads) if width]
        yield (
            f"num_heads: {heads} heads do not divide dim {dim}; nearest valid: "
            f"num_heads {_either(sorted(divisors[:2]))}, or dim {_either(widths)}"
        )
    axes = zip(("height", "width"), config.image_size, config.patch_size, strict=True)
    for axis, pixels, patch in axes:
        if pixels % patch:
            below = pixels // patch * patch
            sizes = [size for size in (below, below + patch) if size]
            divisors = sorted(
                (n for n in range(1, pixels + 1) if pixels % n == 0),
                key=lambda n: (abs(n - patch), n),
            )
            yield (
                f"patch_size: {patch} does not divide the image {axis} {pixels}; nearest "
                f"valid: patch_size {_either(sorted(divisors[:2]))}, or image {axis} "
                f"{_either(sizes)}"
            )


def _size(value: Any) -> Any:
    """Return (height, width); what is neither a number nor a pair is left for the check."""
    if _is_int(value):
        return value, value
    return tuple(value) if isinstance(value, list) else value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))
