"""The sizes of a ViT: the paper's table of variants, and every override, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

from vitkit.errors import ConfigError, suggestion
from vitkit.nn.activation import ACTIVATIONS
from vitkit.nn.init import SCHEMES

Size = tuple[int, int]

# arXiv 2010.11929, Table 1; Ti and S from DeiT (arXiv 2012.12877): dim, depth, heads, MLP.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}
VARIANTS = ("Ti/16", "S/16", "B/16", "B/32", "L/16", "L/32", "H/14")
POOLS = ("cls", "mean")


class Options(TypedDict, total=False):
    """The keywords of :class:`ViTConfig` that a user may give; the variant gives the others."""

    image_size: int | Size
    patch_size: int | Size
    in_channels: int
    num_classes: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    pool: str
    layer_norm_eps: float
    dropout: float
    drop_path: float
    representation_size: int | None
    init: str
    gradient_checkpointing: bool


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
        ``"gelu"``, ``"gelu_tanh"``, ``"relu"``, ``"silu"``, ``"quick_gelu"`` or ``"tanh"``.
    pool : str
        ``"cls"``, the class token's output, or ``"mean"``, the mean of all patches; with the
        latter there is no class token.
    layer_norm_eps : float
        Added to variances.
    dropout, drop_path : float
        The rate of dropout, and that of stochastic depth in the last block, rising linearly.
    representation_size : int or None
        The width of the paper's tanh layer before the head at pre-training, or None for none.
    init : str
        ``"jax"``, ``"timm"`` or ``"scratch"``, see :mod:`vitkit.nn.init`.
    gradient_checkpointing : bool
        Whether blocks are recomputed in backward, to save memory.
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
    pool: str = "cls"
    layer_norm_eps: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
    representation_size: int | None = None
    init: str = "jax"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Raise a ConfigError that lists every problem there is."""
        problems = list(_problems(self))
        if problems:
            raise ConfigError(problems)

    @classmethod
    def of(cls, variant: str = "B/16", **options: Any) -> ViTConfig:
        """Return the configuration of a variant with overrides; None means "as the variant".

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
        patch, sizes = _parse_variant(variant)
        implied = dict(zip(("dim", "depth", "num_heads", "mlp_dim"), sizes, strict=True))
        given = {name: value for name, value in options.items() if value is not None}
        dim: Any = given.get("dim")
        if "mlp_dim" not in given and _is_int(dim) and dim > 0:
            implied["mlp_dim"] = 4 * dim  # the ratio of every size in the table
        sized = {
            "image_size": _size(given.pop("image_size", 224)),
            "patch_size": _size(given.pop("patch_size", patch)),
        }
        return cls(variant=variant, **sized, **{**implied, **given})

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


def _parse_variant(variant: str) -> tuple[int, tuple[int, int, int, int]]:
    """Return the patch side and the sizes that ``"B/16"`` stands for."""
    size, _, patch = str(variant).partition("/")
    if size not in SIZES or not patch.isdecimal() or int(patch) == 0:
        raise ConfigError(
            f"variant: got {variant!r}; expected a size ({', '.join(SIZES)}), a slash and a patch "
            f"side, such as {', '.join(VARIANTS)}{suggestion(variant, VARIANTS)}"
        )
    return int(patch), SIZES[size]


def _problems(config: ViTConfig) -> Iterable[str]:
    """Yield one line for each thing that cannot be."""
    sound = True
    for name in ("in_channels", "num_classes", "dim", "depth", "num_heads", "mlp_dim"):
        if not _is_int(getattr(config, name)) or getattr(config, name) < 1:
            sound = False
            yield f"{name}: got {getattr(config, name)!r}; expected a whole number of 1 or more"
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        if not (
            isinstance(value, tuple)
            and len(value) == 2
            and all(_is_int(side) and side > 0 for side in value)
        ):
            sound = False
            yield f"{name}: got {value!r}; expected a number of pixels, or (height, width)"
    size = config.representation_size
    if size is not None and (not _is_int(size) or size < 1):
        yield f"representation_size: got {size!r}; expected a whole number of 1 or more, or None"
    for name in ("dropout", "drop_path"):
        if not _is_number(getattr(config, name)) or not 0 <= getattr(config, name) < 1:
            yield f"{name}: got {getattr(config, name)!r}; expected a number in [0, 1)"
    if not _is_number(config.layer_norm_eps) or not config.layer_norm_eps > 0:
        yield f"layer_norm_eps: got {config.layer_norm_eps!r}; expected a number above 0"
    for name, known in (("activation", ACTIVATIONS), ("pool", POOLS), ("init", SCHEMES)):
        value = getattr(config, name)
        if value not in known:
            yield (
                f"{name}: got {value!r}; expected one of {', '.join(known)}"
                f"{suggestion(value, known)}"
            )
    if sound:
        yield from _misfits(config)


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
