"""JAX: a training step as one function, compiled by ``jax.jit``, its buffers donated."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from contenders import task
from contenders.serve import Work

Weights = dict[str, jax.Array]


def layer_norm(w: Weights, name: str, x: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    x_hat = (x - mean) * jax.lax.rsqrt(variance + task.LAYER_NORM_EPSILON)
    return x_hat * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Weights, name: str, x: jax.Array) -> jax.Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(w: Weights, name: str, x: jax.Array, num_heads: int) -> jax.Array:
    batch, tokens, dim = x.shape
    qkv = linear(w, f"{name}.qkv", x).reshape(batch, tokens, 3, num_heads, dim // num_heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # (B, h, N, d)
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) * (dim // num_heads) ** -0.5
    y = jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(scores, -1), v)
    return linear(w, f"{name}.proj", y.transpose(0, 2, 1, 3).reshape(batch, tokens, dim))


def patches(images: jax.Array, side: int) -> jax.Array:
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // side, side, width // side, side)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)


def logits_of(w: Weights, images: jax.Array, c: task.Configuration) -> jax.Array:
    kernel = w["patch_embed.proj.weight"].reshape(c.dim, -1)
    x = patches(images, c.patch_size) @ kernel.T + w["patch_embed.proj.bias"]
    first = jnp.broadcast_to(w["cls_token"], (len(x), 1, c.dim))
    x = jnp.concatenate([first, x], 1) + w["pos_embed"]
    for block in (f"blocks.{index}" for index in range(c.depth)):
        y = layer_norm(w, f"{block}.norm1", x)
        x = x + attention(w, f"{block}.attn", y, c.num_heads)
        y = linear(w, f"{block}.mlp.fc1", layer_norm(w, f"{block}.norm2", x))
        x = x + linear(
            w, f"{block}.mlp.fc2", jax.nn.gelu(y, approximate=c.activation == "gelu_tanh")
        )
    return linear(w, "head", layer_norm(w, "norm", x[:, 0]))


def loss_of(w: Weights, images: jax.Array, labels: jax.Array, c: task.Configuration) -> jax.Array:
    log_p = jax.nn.log_softmax(logits_of(w, images, c))
    return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()


def adamw(
    w: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array, step: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    beta1, beta2 = task.BETAS
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    direction = m / (1 - beta1**step) / (jnp.sqrt(v / (1 - beta2**step)) + task.EPSILON)
    return w - task.LEARNING_RATE * (decay * w + direction), m, v


def prepare(mode: str, order: task.Order) -> Work:
    """Return a training step or an inference of JAX."""
    weights = {name: jnp.asarray(value) for name, value in load_file(order.weights).items()}
    images, labels = map(jnp.asarray, task.images_and_labels(order.sizes))
    if order.task == "train":
        run = trainer(weights, images, labels, order)
    else:
        infer = jax.jit(functools.partial(logits_of, c=order.sizes))

        def run() -> jax.Array:
            return infer(weights, images).block_until_ready()

    return Work(run, lambda result: np.asarray(result, np.float64).ravel().tolist())


def trainer(weights: Weights, images: jax.Array, labels: jax.Array, order: task.Order) -> Any:
    """Return a function that makes one training step and returns its loss."""

    # Images are an argument: what a function closes over is a constant, which XLA computes with
    # while it compiles.
    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def step(w: Weights, m: Weights, v: Weights, count: jax.Array, x: Any, y: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(w, x, y, order.sizes)
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in gradients.values()))
        scale = jnp.minimum(1.0, task.MAX_GRAD_NORM / (norm + 1e-6))
        count = count + 1
        updated = {}
        for name in w:
            decay = task.WEIGHT_DECAY if name in order.decayed else 0.0
            g = gradients[name] * scale
            updated[name] = adamw(w[name], g, m[name], v[name], count, decay)
        state = [{name: each[part] for name, each in updated.items()} for part in range(3)]
        return *state, count, loss

    m, v = ({name: jnp.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    state = [weights, m, v, jnp.zeros(())]

    def run() -> jax.Array:
        *state[:], loss = step(*state, images, labels)
        jax.block_until_ready(state)
        return loss

    return run
