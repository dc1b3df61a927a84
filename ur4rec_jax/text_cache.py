"""The cache of a text encoder that trains: whether it is older than the weights, and vectors that are not.

Shapes: J items with the padding, T width.
"""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike

from ur4rec_jax.device import send
from ur4rec_jax.layout import ENCODED
from ur4rec_jax.text_encoder import TextEncoder, encode_all
from ur4rec_jax.text_groups import TextGroups, Texts

MODULE, VECTORS = ENCODED


class CacheState(NamedTuple):
    """The vectors that a text encoder's cache holds, and those to score with."""

    vectors_JT: Array
    """The cache."""
    fresh_JT: Array | None = None
    """The vectors of the weights, where the cache is older than these; else None."""


class TextCache:
    """Knows of the vectors in a model's buffers whether they are those of the weights as they are.

    A step that trains the encoder reads the cache as it is and writes what it has encoded; the others are then older
    than the weights. To score, and to save, there are `current` vectors, kept apart until the encoder trains again: so
    evaluation does not change training. Before the encoder is frozen they become the cache.

    Args:
        encoder: The encoder, of which the shape and the tokens are read.
        device: Where it trains.

    Attributes:
        groups: Divides the texts of a step.
        is_stale: Whether the encoder has trained since all vectors of the cache were encoded.
    """

    def __init__(self, encoder: TextEncoder, device: jax.Device) -> None:
        self._graphdef, _ = nnx.split(encoder)
        self._device = device
        self._fresh_JT: Array | None = None
        self.is_stale = False
        self.read(encoder.tokens[...])

    def read(self, tokens_JS: ArrayLike) -> None:
        """Take over the tokens of all texts."""
        self.groups = TextGroups(tokens_JS)
        self._texts = [Texts(send(items_C, self._device), num_tokens) for items_C, num_tokens in self.groups.all()]

    def trained(self) -> None:
        """The encoder has trained."""
        self.is_stale, self._fresh_JT = True, None

    def take(self, params: Any, buffers: Any) -> CacheState:
        """The cache as it is."""
        fresh_JT = self.current(params, buffers)[MODULE][VECTORS] if self.is_stale else None
        return CacheState(buffers[MODULE][VECTORS], fresh_JT)

    def set(self, state: CacheState, buffers: Any) -> Any:
        """The buffers with a cache as it was."""
        self.is_stale, self._fresh_JT = state.fresh_JT is not None, state.fresh_JT
        return with_vectors(buffers, state.vectors_JT)

    def current(self, params: Any, buffers: Any) -> Any:
        """The buffers with vectors of the weights as they are; the cache stays as it is."""
        if not self.is_stale:
            return buffers
        if self._fresh_JT is None:
            self._fresh_JT = encode_all(self._graphdef, (params[MODULE], buffers[MODULE]), self._texts)
        return with_vectors(buffers, self._fresh_JT)

    def refreshed(self, params: Any, buffers: Any) -> Any:
        """The buffers whose cache is that of the weights as they are."""
        buffers = self.current(params, buffers)
        self.is_stale, self._fresh_JT = False, None
        return buffers


def with_vectors(buffers: Any, vectors_JT: Array) -> Any:
    """The buffers of a model with another cache."""
    return {**buffers, MODULE: {**buffers[MODULE], VECTORS: vectors_JT}}
