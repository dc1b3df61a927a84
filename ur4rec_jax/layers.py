"""Flax's layers with PyTorch's constants and this project's initial weights, so that both backends are one model."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

MASKED = -1e30
"""What is added to the logit of a position that may not be looked at."""

_normal = nnx.initializers.normal(0.02)


def normal_with_padding(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Initial weights of an embedding table whose last row is padding."""
    return _normal(key, shape, dtype).at[-1].set(0)


def flat_product(inputs: Array, kernel: Array, axes: Any, **options: Any) -> Array:
    """What `jax.lax.dot_general` gives a linear layer, with all positions as rows of one matrix.

    So the gradient of the kernel is a plain product. Summed over two axes, XLA would transpose a copy first.

    Args:
        inputs: Inputs along the last axis.
        kernel: A matrix.
        axes: The last axis and the first one.
        **options: Of `jax.lax.dot_general`.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    product: Array = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return product.reshape(*inputs.shape[:-1], -1)


Linear = partial(nnx.Linear, kernel_init=nnx.initializers.xavier_uniform(), dot_general=flat_product)
Embedding = partial(nnx.Embed, embedding_init=_normal)
LayerNorm = partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class Buffer(nnx.Variable[Array]):
    """An array that belongs to the model and never trains."""


class Dropout(nnx.Module):
    """Dropout where random numbers are given, and none (inference) where they are not."""

    def __init__(self, rate: float) -> None:
        self.layer = nnx.Dropout(rate)

    def __call__(self, inputs: Array, rngs: nnx.Rngs | None) -> Array:
        """Apply it."""
        return self.layer(inputs, deterministic=rngs is None, rngs=rngs)


def attend(query_BQHh: Array, key_BLHh: Array, value_BLHh: Array, mask: Array) -> Array:
    """Multi-head attention, as `jax.nn.dot_product_attention` has it: (B, Q, H, h).

    On a CPU it takes 0.7 to 0.8 of its time: one product over rows and heads, and a mask that is added.

    Args:
        query_BQHh: Where from: rows, positions, heads, width of a head.
        key_BLHh: Where to.
        value_BLHh: What is there.
        mask: Whether a position may be looked at; to be broadcast to (B, H, Q, L).
    """
    # As there: without it the gradients of bfloat16 would be products of float32.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if query_BQHh.dtype == jnp.bfloat16 else None
    kind = jnp.promote_types(query_BQHh.dtype, jnp.float32)
    axes = (((3,), (3,)), ((0, 2), (0, 2)))
    logits_BHQL = jax.lax.dot_general(query_BQHh * query_BQHh.shape[3] ** -0.5, key_BLHh, axes, precision, kind)
    weights_BHQL = jax.nn.softmax(logits_BHQL + jnp.where(mask, 0.0, MASKED)).astype(value_BLHh.dtype)
    return jax.lax.dot_general(weights_BHQL, value_BLHh, (((3,), (1,)), ((0, 1), (0, 2)))).swapaxes(1, 2)


def normalize(inputs: Array) -> Array:
    """Vectors along the last axis, scaled to unit length; a zero vector stays zero and has finite gradients."""
    precise = inputs.astype(jnp.float32)
    squares = jnp.sum(jnp.square(precise), axis=-1, keepdims=True)
    return (precise / jnp.sqrt(jnp.maximum(squares, 1e-24))).astype(inputs.dtype)
