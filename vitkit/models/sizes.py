"""The sizes of a ViT by name: the papers' and those of plugins, and what ``"B/16"`` stands for."""

from __future__ import annotations

import re
from typing import Any, TypedDict

from vitkit.errors import ConfigError, nearest
from vitkit.registry import BUILTIN, Registry

Size = tuple[int, int]

MODELS = Registry("model", late=True)
"""The sizes that a variant can begin with, such as ``B`` of ``"B/16"``, those of plugins too.

Each stands for a dict of options of :class:`~vitkit.ViT`: ``dim``, ``depth``, ``num_heads``, and as
defaults any others but ``patch_size`` and ``representation_size``.
"""

# arXiv 2010.11929, Table 1; Ti and S from DeiT (arXiv 2012.12877).
for _name, _dim, _depth, _num_heads, _mlp_dim in [
    ("Ti", 192, 12, 3, 768),
    ("S", 384, 12, 6, 1536),
    ("B", 768, 12, 12, 3072),
    ("L", 1024, 24, 16, 4096),
    ("H", 1280, 32, 16, 5120),
]:
    _sizes = {"dim": _dim, "depth": _depth, "num_heads": _num_heads, "mlp_dim": _mlp_dim}
    MODELS.add(_name, _sizes, plugin=BUILTIN)

VARIANTS = ("Ti/16", "S/16", "B/16", "B/32", "L/16", "L/32", "H/14")
"""The variants of the papers; any size goes with any patch side that divides the image."""


class Options(TypedDict, total=False):
    """The keywords of :class:`~vitkit.ViTConfig` that a user may give beside the variant."""

    image_size: int | Size
    patch_size: int | Size
    in_channels: int
    num_classes: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    mlp: str
    norm: str
    attention: str
    pool: str
    layer_norm_eps: float
    dropout: float
    drop_path: float
    representation_size: int | None
    init: str
    gradient_checkpointing: bool
    residual_in_fp32: bool


REQUIRED = ("dim", "depth", "num_heads")
"""What every size must say; without ``mlp_dim``, the MLP is four times as wide as the model."""
OPTIONS_OF_A_SIZE = frozenset(Options.__annotations__) - {"patch_size", "representation_size"}
"""What a size may say: the patch is the variant's, and None, for no representation, means "as the
variant" where a user writes it."""


def parse_variant(variant: str) -> tuple[int, dict[str, Any]]:
    """Return the patch side and the options that a variant stands for.

    Parameters
    ----------
    variant : str
        Such as ``"B/16"``.

    Returns
    -------
    int, dict of str to object
        16, and ``dim``, ``depth``, ``num_heads``, ``mlp_dim`` and whatever else the size says.

    Raises
    ------
    ConfigError
        If there is no such size, if what follows is no patch side, or if a plugin's size says
        what none can.
    """
    size, _, patch = str(variant).partition("/")
    if size not in MODELS or not patch.isdecimal() or int(patch) == 0:
        raise ConfigError(
            f"variant: got {variant!r}; expected a size ({', '.join(MODELS)}), a slash and a patch "
            f"side, such as {', '.join(VARIANTS)}{_hint(str(variant))}"
        )
    options = dict(MODELS[size])
    wrong = [f"has {name}" for name in options if name not in OPTIONS_OF_A_SIZE]
    wrong += [f"lacks {name}" for name in REQUIRED if name not in options]
    if wrong:
        raise ConfigError(
            f"variant: the model {size!r} of plugin {MODELS.entry(size).plugin!r} "
            f"{' and '.join(wrong)}; expected {', '.join(REQUIRED)} and options of ViT"
        )
    dim = options["dim"]
    return int(patch), {"mlp_dim": 4 * dim if isinstance(dim, int) else dim, **options}


def _hint(variant: str) -> str:
    """Return a suggestion for an unknown variant: the nearest size, and the patch as it came."""
    near = nearest(variant.partition("/")[0].rstrip("0123456789"), MODELS)
    side = re.search(r"[1-9][0-9]*$", variant)
    return f"; did you mean '{near}/{side[0] if side else 16}'?" if near else ""
