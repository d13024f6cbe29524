"""The Vision Transformer (Dosovitskiy et al., 2020, arXiv:2010.11929, Eq. 1-8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from vitkit import kernels, ops
from vitkit.backend import Array, ArrayModule
from vitkit.models.config import ViTConfig
from vitkit.models.sizes import Options
from vitkit.nn.activation import ACTIVATIONS, Activation
from vitkit.nn.attention import Attention
from vitkit.nn.block import Block
from vitkit.nn.context import Context
from vitkit.nn.dropout import Dropout
from vitkit.nn.init import SCHEMES, zeros
from vitkit.nn.layer_norm import LayerNorm
from vitkit.nn.layers import LAYERS
from vitkit.nn.linear import Linear
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter
from vitkit.nn.patch_embed import PatchEmbed
from vitkit.nn.pool import FirstToken, MeanToken
from vitkit.nn.wrappers import Checkpoint, Timed, unwrap
from vitkit.ops.residual import as_wide, narrowed

if TYPE_CHECKING:
    from typing import Unpack

Pass = Callable[[Array, Context], Array]
"""A layer's forward or backward."""


class PreLogits(Module):
    """The paper's hidden layer of the pre-training head: affine, then tanh, (B, D) to (B, R).

    Parameters
    ----------
    dim, size : int
        The widths D and R.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(self, dim: int, size: int, *, xp: ArrayModule = None) -> None:
        self.fc = Linear(dim, size)
        self.act = Activation(ACTIVATIONS["tanh"])
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the representation."""
        return self.act.forward(self.fc.forward(x, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        return self.fc.backward(self.act.backward(dy, ctx), ctx)


class ViT(Module):
    r"""The Vision Transformer: images (B, C, H, W) to logits (B, K).

    .. math:: z_0 = [x_{class}; x_p E] + E_{pos}, \quad z_\ell = \mathrm{Block}_\ell(z_{\ell-1}),
              \quad y = \mathrm{LN}(z_L^0), \quad \mathrm{logits} = W y + b

    Parameters
    ----------
    variant : str or ViTConfig, default "B/16"
        A size (Ti, S, B, L, H, or a plugin's), a slash, and a patch side.
    backend : str or None, default "numpy"
        ``"numpy"``, ``"cupy"`` or ``"auto"``. None declares the model without allocating it, to
        count its parameters or to place it later.
    dtype : str, default "float32"
        ``"float32"``, or ``"float64"`` for checking.
    seed : int or None, default 0
        Where the first weights come from; None leaves zeros, for weights about to be loaded.
    precision : str, default "float32"
        What the matrix products of the patch embedding and the blocks are made of, beside float32
        weights, sums and gradients: ``"bfloat16"`` where the processor is faster that way (AMX, or
        AVX-512 BF16); ``"tf32"`` and ``"float16"`` are for GPUs.
    xp : module, optional
        The array module itself, instead of ``backend``.
    **options
        Overrides of the variant: ``image_size`` and ``patch_size`` (a number or (height, width)),
        ``in_channels``, ``num_classes``, ``dim``, ``depth``, ``num_heads``, ``mlp_dim``,
        ``activation``, ``mlp``, ``norm``, ``attention``, ``pool``, ``layer_norm_eps``,
        ``dropout``, ``drop_path``, ``representation_size``, ``init``,
        ``gradient_checkpointing``, ``residual_in_fp32``; see
        :class:`~vitkit.models.config.ViTConfig`.

    Attributes
    ----------
    config : ViTConfig
        The sizes, resolved.

    Raises
    ------
    ConfigError
        If sizes do not fit each other; nothing has been allocated then.
    BackendError
        If the backend cannot work here; the message names the cause and the cure.

    Examples
    --------
    >>> import numpy, vitkit
    >>> model = vitkit.ViT("Ti/4", image_size=32, num_classes=10, depth=2)
    >>> model(numpy.zeros((5, 3, 32, 32), "float32")).shape
    (5, 10)
    """

    _narrow = False  # whether blocks pass each other bfloat16

    def __init__(
        self,
        variant: str | ViTConfig = "B/16",
        *,
        backend: str | None = "numpy",
        dtype: Any = "float32",
        seed: int | None = 0,
        precision: str = "float32",
        xp: ArrayModule = None,
        **options: Unpack[Options],
    ) -> None:
        if isinstance(variant, ViTConfig):
            given = {name: value for name, value in options.items() if value is not None}
            c = ViTConfig.from_dict({**variant.to_dict(), **given})
        else:
            c = ViTConfig.of(variant, **options)
        self.config = c
        scheme = SCHEMES[c.init]
        has_cls = c.pool == "cls"
        self.cls_token = (
            Parameter((1, 1, c.dim), scheme.cls_token, decay=False) if has_cls else None
        )
        self.pos_embed = Parameter((1, c.num_tokens, c.dim), scheme.pos_embed, decay=False)
        self.patch_embed = PatchEmbed(
            c.image_size, c.patch_size, c.in_channels, c.dim, weight_init=scheme.patch
        )
        self.pos_drop = Dropout(c.dropout)
        self.blocks = [self._block(index) for index in range(c.depth)]
        self.norm: Module = LAYERS[c.norm](c.dim, c.layer_norm_eps)
        self.pool = FirstToken() if has_cls else MeanToken()
        size = c.representation_size
        self.pre_logits = PreLogits(c.dim, size) if size else None
        self.head = Linear(size or c.dim, c.num_classes, weight_init=zeros)
        self.precision = precision
        if xp is not None or backend is not None:
            self.place(backend if xp is None else xp, seed=seed, dtype=dtype)

    def _block(self, index: int) -> Module:
        c = self.config
        block = Block(
            c.dim,
            c.num_heads,
            c.mlp_dim,
            ACTIVATIONS[c.activation],
            layer_norm_eps=c.layer_norm_eps,
            dropout=c.dropout,
            drop_path=c.drop_path * index / max(c.depth - 1, 1),
            init=SCHEMES[c.init],
            mlp=LAYERS[c.mlp],
            norm=LAYERS[c.norm],
            attention=LAYERS[c.attention],
        )
        return Checkpoint(block) if c.gradient_checkpointing else block

    def _set_precision(self, precision: str) -> None:
        super()._set_precision(precision)
        for part in (self.pre_logits, self.head):
            if part is not None:
                part._set_precision("float32")
        wanted = not self.config.residual_in_fp32 and precision == "bfloat16"
        self._narrow = wanted and kernels.serves_narrow_residual(self.xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the logits (B, K) of images ``x`` (B, C, H, W)."""
        x = self._encode(x, ctx)
        x = self.pool.forward(self.norm.forward(x, ctx), ctx)
        if self.pre_logits is not None:
            x = self.pre_logits.forward(x, ctx)
        return self.head.forward(x, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Add to every parameter's gradient and return the images' gradient (B, C, H, W).

        None instead where ``ctx.input_gradient`` is false.
        """
        dy = self.xp.asarray(dy, dtype=self.pos_embed.value.dtype)  # a loss may be in float64
        dx = self.head.backward(dy, ctx)
        if self.pre_logits is not None:
            dx = self.pre_logits.backward(dx, ctx)
        return self._encode_backward(self.norm.backward(self.pool.backward(dx, ctx), ctx), ctx)

    def features(self, images: Array, *, tokens: bool = False) -> Array:
        """Return the pooled output of the encoder, from which the head classifies.

        Parameters
        ----------
        images : array, shape (B, C, H, W)
            Normalised images.
        tokens : bool, default False
            Whether to return every token instead of the pooled one.

        Returns
        -------
        array, shape (B, D) or (B, N, D)
            The normalised output of the encoder.
        """
        ctx = Context()
        with self.rounded_once():
            x = self.norm.forward(self._encode(images, ctx, every=tokens), ctx)
        return x if tokens else self.pool.forward(x, ctx)

    def attention_maps(self, images: Array) -> Array:
        """Return how much each token takes from each, in every block and head.

        Parameters
        ----------
        images : array, shape (B, C, H, W)
            Normalised images.

        Returns
        -------
        array, shape (depth, B, h, N, N)
            Probabilities: rows (queries) sum to one over columns (keys). With ``pool="cls"``
            token 0 is the class token.

        Raises
        ------
        NotImplementedError
            If the model's attention has no method ``weights(x)``, as one of a plugin may.
        """
        blocks = [cast("Block", unwrap(block)) for block in self.blocks]
        for block in blocks:
            if not callable(getattr(block.attn, "weights", None)):
                raise NotImplementedError(
                    f"{block.attn.label} has no method weights(x), so it cannot show what each "
                    "token takes from each. Define it, as vitkit.nn.Attention does, or use a model "
                    "with attention='attention'."
                )
        ctx, maps = Context(), []
        with self.rounded_once():
            x = self._rounded(self._embed(images, ctx))
            for block in blocks:
                wide = as_wide(x, xp=self.xp)
                maps.append(cast("Attention", block.attn).weights(block.norm1(wide)))
                x = self._through(block, block.forward, x, ctx)
        return self.xp.stack(maps)

    def _reads_one_token(self, ctx: Context) -> bool:
        """Return whether the last block may leave out what only other tokens need."""
        last = self.blocks[-1] if self.blocks else None
        each = type(self.pool) is FirstToken and type(self.norm) is LayerNorm
        return each and type(last) is Block and last.can_stop_at_first(ctx)

    def _encode(self, images: Array, ctx: Context, *, every: bool = False) -> Array:
        """Return the last block's output (B, N, D): every token's, or that of those read."""
        x = self._rounded(self._embed(images, ctx))
        stops = not every and self._reads_one_token(ctx)
        for block in self.blocks[:-1] if stops else self.blocks:
            x = self._through(block, block.forward, x, ctx)
        if stops:
            x = cast("Block", self.blocks[-1]).first(x, ctx)
        return as_wide(x, xp=self.xp)

    def _encode_backward(self, dy: Array, ctx: Context) -> Array:
        """Return the gradient of the images, given that of what the head's norm read."""
        dx = self._rounded(dy)
        for block in reversed(self.blocks):
            dx = self._through(block, block.backward, dx, ctx)
        return self._embed_backward(as_wide(dx, xp=self.xp), ctx)

    def _through(self, block: Module, function: Pass, x: Array, ctx: Context) -> Array:
        """Return what a block makes of what flows; one that is not ours sees float32."""
        if not self._narrow or _is_ours(block):
            return function(x, ctx)
        return self._rounded(function(as_wide(x, xp=self.xp), ctx))

    def _rounded(self, x: Array) -> Array:
        """Return what flows from block to block as it does, rounded or not."""
        return narrowed(x, xp=self.xp) if self._narrow else x

    def _embed(self, images: Array, ctx: Context) -> Array:
        """Return z_0 (B, N, D), Eq. 1."""
        x = self.patch_embed.forward(self._checked(images), ctx)
        cls_token = None if self.cls_token is None else self.cls_token.value
        x = ops.embed_positions(x, cls_token, self.pos_embed.value, xp=self.xp)
        return self.pos_drop.forward(x, ctx)

    def _embed_backward(self, dy: Array, ctx: Context) -> Array:
        dy = self.pos_drop.backward(dy, ctx)
        dpatches, dcls_token, dpos_embed = ops.embed_positions_backward(
            dy, self.cls_token is not None, xp=self.xp
        )
        if self.cls_token is not None:
            self.cls_token.add_grad(dcls_token)
        self.pos_embed.add_grad(dpos_embed)
        return self.patch_embed.backward(dpatches, ctx)

    def _checked(self, images: Array) -> Array:
        """Return the images as the model's own kind of array, or say what is wrong with them."""
        expected = (self.config.in_channels, *self.config.image_size)
        if not hasattr(images, "dtype"):
            images = self.xp.asarray(images)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, expected))}); got {images.shape}."
            )
        if images.dtype.kind != "f":
            raise ValueError(
                f"images must be normalised floats; got {images.dtype}. Turn pixels into network "
                "input with vitkit.ops.normalize_images."
            )
        return self.xp.asarray(images, dtype=self.pos_embed.value.dtype)

    def __repr__(self) -> str:
        c = self.config
        where = (
            "not placed"
            if self._xp is None
            else (f"{self.xp.__name__}, {self.pos_embed.value.dtype}")
        )
        return (
            f"ViT({c.variant!r}, image_size={c.image_size}, patch_size={c.patch_size}, "
            f"in_channels={c.in_channels}, num_classes={c.num_classes}, dim={c.dim}, "
            f"depth={c.depth}, num_heads={c.num_heads}, mlp_dim={c.mlp_dim}, pool={c.pool!r}: "
            f"{self.num_parameters:,} parameters, {where})"
        )


def _is_ours(block: Module) -> bool:
    """Return whether all that a block does to what flows through it is known."""
    while type(block) in (Checkpoint, Timed):
        ((_, block),) = block.children()
    return type(block) is Block
