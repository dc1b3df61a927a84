"""The text encoder: a transformer of BERT's class that gives each item's text a unit vector, and can train.

It is BERT (Devlin et al., NAACL 2019), the mean over a text's tokens (Sentence-BERT; Reimers & Gurevych, EMNLP 2019),
and its direction. It has no dropout, whether it trains or not: so what a step encodes is what the cache then holds, and
an item is the same whether it is in the batch or not.

Shapes: N texts, S tokens of a text, T width, H heads, h width of a head, I items, J = I + 1 items with the padding, C
items that are encoded at once.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from ur4rec.config import ModelConfig
from ur4rec.text.tokens import PADDING
from ur4rec.training.item_texts import trains
from ur4rec_jax.layers import Buffer, attend, flat_product, normalize
from ur4rec_jax.precision import compiled
from ur4rec_jax.text_groups import TextGroups, Texts
from ur4rec_jax.weights import canonical_name, export_weights, import_weights

_normal = nnx.initializers.normal(0.02)
Linear = partial(nnx.Linear, kernel_init=_normal, dot_general=flat_product)
Embedding = partial(nnx.Embed, embedding_init=_normal)
LayerNorm = partial(nnx.LayerNorm, epsilon=1e-12, use_fast_variance=False)


class Adapter(nnx.Module):
    """What is added to a projection: a product of two narrow matrices (LoRA; Hu et al., ICLR 2022), at first 0."""

    def __init__(self, dim: int, rank: int, rngs: nnx.Rngs) -> None:
        self.down = Linear(dim, rank, use_bias=False, rngs=rngs)
        self.up = Linear(rank, dim, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, inputs_NST: Array) -> Array:
        """What is added."""
        return self.up(self.down(inputs_NST))


class Attention(nnx.Module):
    """Multi-head attention of each token to all of its text's."""

    def __init__(self, dim: int, num_heads: int, rank: int, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.has_adapters = rank > 0
        self.query = Linear(dim, dim, rngs=rngs)
        self.key = Linear(dim, dim, rngs=rngs)
        self.value = Linear(dim, dim, rngs=rngs)
        self.output = Linear(dim, dim, rngs=rngs)
        if rank:
            self.query_adapter = Adapter(dim, rank, rngs)
            self.value_adapter = Adapter(dim, rank, rngs)

    def __call__(self, inputs_NST: Array, is_token_NS: Array) -> Array:
        """Attend from each token, (N, S, T)."""
        query, key, value = self.query(inputs_NST), self.key(inputs_NST), self.value(inputs_NST)
        if self.has_adapters:
            query, value = query + self.query_adapter(inputs_NST), value + self.value_adapter(inputs_NST)
        query, key, value = (each.reshape(*each.shape[:2], self.num_heads, -1) for each in (query, key, value))
        attended_NSHh = attend(query, key, value, is_token_NS[:, None, None])
        return self.output(attended_NSHh.reshape(inputs_NST.shape))


class FeedForward(nnx.Module):
    """Two layers applied to each token on its own."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        self.inner = Linear(dim, 4 * dim, rngs=rngs)
        self.outer = Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, inputs_NST: Array) -> Array:
        """Expand, rectify smoothly, contract."""
        return self.outer(jax.nn.gelu(self.inner(inputs_NST), approximate=False))


class Block(nnx.Module):
    """A post-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, rank: int, rngs: nnx.Rngs) -> None:
        self.attention = Attention(dim, num_heads, rank, rngs)
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        self.feedforward = FeedForward(dim, rngs)
        self.feedforward_norm = LayerNorm(dim, rngs=rngs)

    def __call__(self, inputs_NST: Array, is_token_NS: Array) -> Array:
        """Attention, then the feed-forward layers, each added to its input and then normalised."""
        hidden_NST = self.attention_norm(inputs_NST + self.attention(inputs_NST, is_token_NS))
        output_NST: Array = self.feedforward_norm(hidden_NST + self.feedforward(hidden_NST))
        return output_NST


class TextEncoder(nnx.Module):
    """Encodes texts, and keeps the vector of each item as it was last encoded.

    A training step that trains it encodes the texts of its batch, takes the others from the cache, ``vectors``, and
    writes what it has encoded. What is kept beside a cache that is older than the weights, the trainer knows.

    Weights that ``text_encoder_trains`` leaves out are buffers.

    Args:
        config: The shape of the model.
        tokens_IS: The tokens of each item's text.
        rngs: Random numbers for weights that are not given.
        weights: First weights by name; those that are missing are drawn.
        vectors_IT: Vectors as last encoded; None encodes all texts now.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokens_IS: NDArray[np.int32],
        rngs: nnx.Rngs,
        weights: Mapping[str, NDArray[np.float32]],
        vectors_IT: NDArray[np.float32] | None = None,
    ) -> None:
        dim, num_layers = config.text_embedding_dim, config.text_encoder_layers
        self.word_embedding = Embedding(config.text_encoder_vocab, dim, rngs=rngs)
        self.position_embedding = Embedding(config.text_encoder_tokens, dim, rngs=rngs)
        self.embedding_norm = LayerNorm(dim, rngs=rngs)
        self.blocks = nnx.Sequential(
            *(Block(dim, config.text_encoder_heads, config.lora_rank, rngs) for _ in range(num_layers))
        )
        if weights:
            tree = nnx.to_pure_dict(nnx.state(self))
            nnx.update(self, import_weights(tree, {**export_weights(tree), **weights}))
        if config.text_encoder_trains != "all":
            _freeze(self, config)
        padding_1S = np.full((1, tokens_IS.shape[1]), PADDING, np.int32)
        self.tokens = Buffer(jnp.asarray(np.concatenate([tokens_IS, padding_1S])))
        known_IT = np.zeros((len(tokens_IS), dim), np.float32) if vectors_IT is None else vectors_IT
        self.vectors = Buffer(jnp.asarray(np.concatenate([known_IT, np.zeros((1, dim), np.float32)])))
        if vectors_IT is None:
            self.vectors[...] = self.encode_all()

    def encode(self, tokens_NS: Array) -> Array:
        """The vectors of texts, (N, T), of unit length; zeros for a text without tokens.

        Args:
            tokens_NS: Their tokens, of which those at the end may be padding.
        """
        is_token_NS = tokens_NS != PADDING
        positions_ST = self.position_embedding.embedding[...][: tokens_NS.shape[1]]
        hidden_NST = self.embedding_norm(self.word_embedding.embedding[...][tokens_NS] + positions_ST)
        for block in self.blocks.layers:
            hidden_NST = block(hidden_NST, is_token_NS)
        total_NT = jnp.where(is_token_NS[:, :, None], hidden_NST, 0).sum(1, dtype=jnp.float32)
        mean_NT = total_NT / jnp.maximum(is_token_NS.sum(1, keepdims=True), 1)
        return normalize(mean_NT).astype(hidden_NST.dtype)

    def encode_all(self) -> Array:
        """The vector of every item and of the padding, as the weights are now, (J, T). It has no derivatives."""
        graphdef, arrays = self._split()
        return encode_all(graphdef, arrays, TextGroups(self.tokens[...]).all())

    def refresh(self, items_N: NDArray[np.integer]) -> None:
        """Encode the texts of some items again, so that the cache has their vectors of the weights as they are."""
        graphdef, arrays = self._split()
        texts = TextGroups(self.tokens[...]).all(items_N)
        self.vectors[...] = encode_all(graphdef, arrays, texts)

    def _split(self) -> tuple[nnx.GraphDef["TextEncoder"], tuple[Any, Any]]:
        graphdef, params, *rest = nnx.split(self, nnx.Param, ...)
        (buffers,) = rest
        return graphdef, (nnx.to_pure_dict(params), nnx.to_pure_dict(buffers))


def encode_all(graphdef: nnx.GraphDef[TextEncoder], arrays: tuple[Any, Any], texts: Iterable[Texts]) -> Array:
    """What `TextEncoder.encode_all` returns.

    Args:
        graphdef: The encoder without its arrays.
        arrays: Its parameters and its buffers.
        texts: What is to be encoded; the vectors of all others are those of the cache.
    """
    vectors_JT = jnp.copy(arrays[1]["vectors"])
    for items_C, num_tokens in texts:
        vectors_JT = encode_texts(graphdef, arrays, vectors_JT, items_C, num_tokens=num_tokens)
    return vectors_JT


def _encode_texts(
    graphdef: nnx.GraphDef[TextEncoder], arrays: tuple[Any, Any], vectors_JT: Array, items_C: Array, *, num_tokens: int
) -> Array:
    encoder = nnx.merge(graphdef, *arrays)
    return vectors_JT.at[items_C].set(encoder.encode(encoder.tokens[...][items_C, :num_tokens]))


encode_texts = compiled(_encode_texts, static_argnames=("graphdef", "num_tokens"), donate_argnames="vectors_JT")
"""The vectors, which are consumed, with those of some items encoded; compiled once per number of items and tokens."""


def _freeze(encoder: TextEncoder, config: ModelConfig) -> None:
    """Make parameters that are not to train buffers."""
    for path, module in nnx.iter_modules(encoder):
        for leaf, value in list(vars(module).items()):
            if isinstance(value, nnx.Param) and not trains(config, canonical_name((*map(str, path), leaf))):
                setattr(module, leaf, Buffer(value[...]))
