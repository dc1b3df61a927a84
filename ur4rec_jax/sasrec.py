"""SASRec: causal self-attention over a sequence of items (Kang & McAuley, ICDM 2018).

Shapes: B rows, L positions, Q of them that are asked for (all, or one), H heads, d width, h width of a head, N real
positions, I items. Sequences are right-padded, so a causal position never looks at padding and no mask is needed.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import LIGR, PLAIN_BLOCKS, ModelConfig
from ur4rec_jax.layers import Dropout, Embedding, LayerNorm, Linear, attend, normal_with_padding
from ur4rec_jax.layout import ONE_DEVICE

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": nnx.relu, "gelu": partial(nnx.gelu, approximate=False)}


class SelfAttention(nnx.Module):
    """Causal multi-head self-attention with explicit projections."""

    def __init__(self, dim: int, num_heads: int, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.query = Linear(dim, dim, rngs=rngs)
        self.key = Linear(dim, dim, rngs=rngs)
        self.value = Linear(dim, dim, rngs=rngs)
        self.output = Linear(dim, dim, rngs=rngs)

    def __call__(self, inputs_BLd: Array, at_B: Array | None = None) -> Array:
        """Attend from each position, or from one of each row, to itself and the ones before it, (B, Q, d)."""
        query = self._split(self.query(take_positions(inputs_BLd, at_B)))
        key, value = (self._split(part(inputs_BLd)) for part in (self.key, self.value))
        length = inputs_BLd.shape[1]
        mask = jnp.tri(length, dtype=bool) if at_B is None else _up_to(at_B, length)[:, None, None]
        attended_BQHh = attend(query, key, value, mask)
        return self.output(attended_BQHh.reshape(*attended_BQHh.shape[:2], -1))

    def _split(self, projected_BLd: Array) -> Array:
        return projected_BLd.reshape(*projected_BLd.shape[:2], self.num_heads, -1)


class FeedForward(nnx.Module):
    """Two layers applied to each position on its own."""

    def __init__(self, dim: int, inner_dim: int, activation: str, rngs: nnx.Rngs) -> None:
        self.activation = activation
        self.inner = Linear(dim, inner_dim, rngs=rngs)
        self.outer = Linear(inner_dim, dim, rngs=rngs)

    def __call__(self, inputs_BLd: Array) -> Array:
        """Expand, apply the activation, contract."""
        return self.outer(ACTIVATIONS[self.activation](self.inner(inputs_BLd)))


class GatedFeedForward(nnx.Module):
    """SwiGLU: what is inside is multiplied by a gate (Shazeer, 2020, equation 6; here with biases)."""

    def __init__(self, dim: int, inner_dim: int, rngs: nnx.Rngs) -> None:
        self.gate = Linear(dim, inner_dim, rngs=rngs)
        self.inner = Linear(dim, inner_dim, rngs=rngs)
        self.outer = Linear(inner_dim, dim, rngs=rngs)

    def __call__(self, inputs_BLd: Array) -> Array:
        """Expand, gate, contract."""
        return self.outer(nnx.silu(self.gate(inputs_BLd)) * self.inner(inputs_BLd))


class Block(nnx.Module):
    """A pre-norm transformer block; dropout falls on what each of its halves adds.

    In a LiGR block (Borisyuk et al., arXiv 2502.03417) what a half adds is multiplied by a gate: the sigmoid of a
    linear layer of the half's normalised input.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        dim, inner_dim, kind = config.sasrec_hidden_dim, config.sasrec_inner_dim, config.sasrec_block
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, config.sasrec_num_heads, rngs)
        self.feedforward_norm = LayerNorm(dim, rngs=rngs)
        is_plain = kind in PLAIN_BLOCKS
        self.feedforward = (
            FeedForward(dim, inner_dim, kind, rngs) if is_plain else GatedFeedForward(dim, inner_dim, rngs)
        )
        self.has_gates = kind == LIGR
        if self.has_gates:
            self.attention_gate = Linear(dim, dim, rngs=rngs)
            self.feedforward_gate = Linear(dim, dim, rngs=rngs)
        self.dropout = Dropout(config.sasrec_dropout)

    def __call__(self, inputs_BLd: Array, rngs: nnx.Rngs | None = None, at_B: Array | None = None) -> Array:
        """Attention, then the feed-forward layers, each added to its input; at every position or at one, (B, Q, d)."""
        normed_BLd = self.attention_norm(inputs_BLd)
        added_BQd = self.attention(normed_BLd, at_B)
        if self.has_gates:
            added_BQd = added_BQd * nnx.sigmoid(self.attention_gate(take_positions(normed_BLd, at_B)))
        hidden_BQd = take_positions(inputs_BLd, at_B) + self.dropout(added_BQd, rngs)
        normed_BQd = self.feedforward_norm(hidden_BQd)
        added_BQd = self.feedforward(normed_BQd)
        if self.has_gates:
            added_BQd = added_BQd * nnx.sigmoid(self.feedforward_gate(normed_BQd))
        return hidden_BQd + self.dropout(added_BQd, rngs)


class SASRec(nnx.Module):
    """Sequential recommender over item embeddings.

    Three departures from the paper, all usual today: blocks normalise before each half and once at the end; attention
    weights have no dropout (so that attention stays on the fast path; what it adds has); and item embeddings are not
    multiplied by √d before positions are added, which measures better (docs/log.md), unless ``sasrec_embedding_scale``
    is on. ``sasrec_block`` says what the blocks are.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        dim = config.sasrec_hidden_dim
        self.num_items = config.num_items
        self.layout = ONE_DEVICE
        self.item_embedding = Embedding(config.num_items + 1, dim, embedding_init=normal_with_padding, rngs=rngs)
        self.position_embedding = Embedding(config.max_seq_len, dim, rngs=rngs)
        self.embedding_scale = dim**0.5 if config.sasrec_embedding_scale else None
        # In a Sequential because Flax 0.12 changed how a list of modules is written.
        self.blocks = nnx.Sequential(*(Block(config, rngs) for _ in range(config.sasrec_num_blocks)))
        self.final_norm = LayerNorm(dim, rngs=rngs)
        rate = config.sasrec_embedding_dropout
        self.dropout = Dropout(config.sasrec_dropout if rate is None else rate)

    def __call__(self, items_BL: Array, rngs: nnx.Rngs | None = None, at_B: Array | None = None) -> Array:
        """The state of each position, (B, Q, d): what the sequence up to there says about the next item.

        Args:
            items_BL: Sequences of items.
            rngs: Random numbers for dropout; None is inference.
            at_B: The one position of each row that is asked for; None is all. Only the last block can leave the others
                out: it reads them all from the blocks before it.
        """
        embedded_BLd = self.layout.take(self.item_embedding.embedding[...], items_BL)
        if self.embedding_scale is not None:
            embedded_BLd = embedded_BLd * self.embedding_scale
        hidden_BLd = embedded_BLd + self.position_embedding.embedding[: items_BL.shape[1]]
        hidden_BLd = self.dropout(hidden_BLd, rngs)
        *before, last = self.blocks.layers
        for block in before:
            hidden_BLd = block(hidden_BLd, rngs)
        states_BQd: Array = self.final_norm(last(hidden_BLd, rngs, at_B))
        return states_BQd

    def item_table(self) -> Array:
        """The embeddings that states are scored against, (I, d): without the padding row, unless the table is cut."""
        return self.layout.candidates(self.item_embedding.embedding[...])

    def score(self, hidden_Nd: Array, table_Id: Array) -> Array:
        """Logits of every item at each state, (N, I)."""
        return (hidden_Nd @ table_Id.T).astype(jnp.float32)


def take_positions(values_BLd: Array, at_B: Array | None) -> Array:
    """One position of each row, (B, 1, d); all of them, (B, L, d), where none is named."""
    if at_B is None:
        return values_BLd
    return jnp.take_along_axis(values_BLd, at_B[:, None, None], axis=1)


def _up_to(at_B: Array, length: int) -> Array:
    """Whether a position is not after that of its row, (B, L)."""
    return jnp.arange(length) <= at_B[:, None]
