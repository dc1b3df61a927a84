"""Flax's layers with PyTorch's constants and this project's initial weights, so that both backends are one model."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

_normal = nnx.initializers.normal(0.02)


def normal_with_padding(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Initial weights of an embedding table whose last row is padding."""
    return _normal(key, shape, dtype).at[-1].set(0)


Linear = partial(nnx.Linear, kernel_init=nnx.initializers.xavier_uniform())
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


def normalize(inputs: Array) -> Array:
    """Vectors along the last axis, scaled to unit length; a zero vector stays zero and has finite gradients."""
    precise = inputs.astype(jnp.float32)
    squares = jnp.sum(jnp.square(precise), axis=-1, keepdims=True)
    return (precise / jnp.sqrt(jnp.maximum(squares, 1e-24))).astype(inputs.dtype)
