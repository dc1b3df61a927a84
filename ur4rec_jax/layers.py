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
CPU_LOGITS = 2**18
"""Logits of the rows that attend at a time on a CPU, about: as many as fit a core's caches."""

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

    On a CPU some rows at a time, so that a core's caches hold what is between the products, and gradients compute that
    again: 0.3 of the time with 200 positions, and what a backend's own fused attention takes.

    Args:
        query_BQHh: Where from: rows, positions, heads, width of a head.
        key_BLHh: Where to.
        value_BLHh: What is there.
        mask: Whether a position may be looked at, of all rows (Q, L), or of each one (B, 1, 1, L).
    """
    parts, of_each = (query_BQHh, key_BLHh, value_BLHh), mask.ndim == 4
    num_rows = _rows_at_once(query_BQHh, key_BLHh)
    attended: Array
    if num_rows >= query_BQHh.shape[0]:
        attended = jax.vmap(_attend_row, in_axes=(0, 0, 0, 0 if of_each else None))(*parts, mask)
    else:
        again = jax.checkpoint(_attend_row if of_each else partial(_attend_row, mask=mask))
        rows = (*parts, mask) if of_each else parts
        attended = jax.lax.map(lambda row: again(*row), rows, batch_size=num_rows)
    return attended


def _rows_at_once(query_BQHh: Array, key_BLHh: Array) -> int:
    """The rows whose attention is computed at a time."""
    num_rows, num_queries, num_heads, _ = query_BQHh.shape
    if jax.default_backend() != "cpu" or jax.device_count() > 1:  # where rows are spread over devices
        return num_rows
    return max(round(CPU_LOGITS / (num_queries * num_heads * key_BLHh.shape[1])), 1)


def _attend_row(query_QHh: Array, key_LHh: Array, value_LHh: Array, mask: Array) -> Array:
    """Attention within one row, (Q, H, h).

    What the weights give is divided by their sum, not each of them: so few numbers are divided.
    """
    # As in JAX: without it the gradients of bfloat16 would be products of float32.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if query_QHh.dtype == jnp.bfloat16 else None
    kind = jnp.promote_types(query_QHh.dtype, jnp.float32)
    axes = (((2,), (2,)), ((1,), (1,)))
    logits_HQL = jax.lax.dot_general(query_QHh * query_QHh.shape[2] ** -0.5, key_LHh, axes, precision, kind)
    logits_HQL += jnp.where(mask, 0.0, MASKED)
    weights_HQL = jnp.exp(logits_HQL - jax.lax.stop_gradient(logits_HQL.max(axis=-1, keepdims=True)))
    axes = (((2,), (0,)), ((0,), (1,)))
    sums_HQh = jax.lax.dot_general(weights_HQL.astype(value_LHh.dtype), value_LHh, axes)
    attended_HQh = sums_HQh / weights_HQL.sum(axis=-1, keepdims=True)
    return attended_HQh.swapaxes(0, 1).astype(value_LHh.dtype)


def normalize(inputs: Array) -> Array:
    """Vectors along the last axis, scaled to unit length; a zero vector stays zero and has finite gradients."""
    precise = inputs.astype(jnp.float32)
    squares = jnp.sum(jnp.square(precise), axis=-1, keepdims=True)
    return (precise / jnp.sqrt(jnp.maximum(squares, 1e-24))).astype(inputs.dtype)
