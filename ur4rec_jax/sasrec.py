"""SASRec: causal self-attention over a sequence of items (Kang & McAuley, ICDM 2018).

Shapes: B rows, L positions, H heads, d width, h width of a head, N real positions, I items.
Sequences are right-padded, so a causal position never looks at padding and no mask is needed.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import ModelConfig
from ur4rec_jax.layers import Dropout, Embedding, LayerNorm, Linear, normal_with_padding


class SelfAttention(nnx.Module):
    """Causal multi-head self-attention with explicit projections."""

    def __init__(self, dim: int, num_heads: int, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.query = Linear(dim, dim, rngs=rngs)
        self.key = Linear(dim, dim, rngs=rngs)
        self.value = Linear(dim, dim, rngs=rngs)
        self.output = Linear(dim, dim, rngs=rngs)

    def __call__(self, inputs_BLd: Array) -> Array:
        """Attend from each position to itself and the ones before it."""
        query, key, value = (self._split(part(inputs_BLd)) for part in (self.query, self.key, self.value))
        attended_BLHh = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.output(attended_BLHh.reshape(inputs_BLd.shape))

    def _split(self, projected_BLd: Array) -> Array:
        return projected_BLd.reshape(*projected_BLd.shape[:2], self.num_heads, -1)


class FeedForward(nnx.Module):
    """Two layers applied to each position on its own."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        self.inner = Linear(dim, 4 * dim, rngs=rngs)
        self.outer = Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, inputs_BLd: Array) -> Array:
        """Expand, rectify, contract."""
        return self.outer(nnx.relu(self.inner(inputs_BLd)))


class Block(nnx.Module):
    """A pre-norm transformer block; dropout falls on what each of its halves adds."""

    def __init__(self, dim: int, num_heads: int, dropout: float, rngs: nnx.Rngs) -> None:
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, num_heads, rngs)
        self.feedforward_norm = LayerNorm(dim, rngs=rngs)
        self.feedforward = FeedForward(dim, rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, inputs_BLd: Array, rngs: nnx.Rngs | None = None) -> Array:
        """Attention, then the feed-forward layers, each added to its input."""
        hidden_BLd = inputs_BLd + self.dropout(self.attention(self.attention_norm(inputs_BLd)), rngs)
        return hidden_BLd + self.dropout(self.feedforward(self.feedforward_norm(hidden_BLd)), rngs)


class SASRec(nnx.Module):
    """Sequential recommender over item embeddings.

    Three departures from the paper, all usual today: blocks normalise before each half and once at the end; attention
    weights have no dropout (so that attention stays on the fast path; what it adds has); and item embeddings are not
    multiplied by √d before positions are added, which measures better (docs/log.md).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        dim = config.sasrec_hidden_dim
        self.num_items = config.num_items
        self.item_embedding = Embedding(config.num_items + 1, dim, embedding_init=normal_with_padding, rngs=rngs)
        self.position_embedding = Embedding(config.max_seq_len, dim, rngs=rngs)
        # In a Sequential because Flax 0.12 changed how a list of modules is written.
        self.blocks = nnx.Sequential(
            *(Block(dim, config.sasrec_num_heads, config.sasrec_dropout, rngs) for _ in range(config.sasrec_num_blocks))
        )
        self.final_norm = LayerNorm(dim, rngs=rngs)
        self.dropout = Dropout(config.sasrec_dropout)

    def __call__(self, items_BL: Array, rngs: nnx.Rngs | None = None) -> Array:
        """The state of each position, (B, L, d): what the sequence up to there says about the next item.

        Args:
            items_BL: Sequences of items.
            rngs: Random numbers for dropout; None is inference.
        """
        hidden_BLd = self.item_embedding(items_BL) + self.position_embedding.embedding[: items_BL.shape[1]]
        hidden_BLd = self.dropout(hidden_BLd, rngs)
        for block in self.blocks.layers:
            hidden_BLd = block(hidden_BLd, rngs)
        states_BLd: Array = self.final_norm(hidden_BLd)
        return states_BLd

    def item_table(self) -> Array:
        """The embeddings that states are scored against, (I, d): without the padding row."""
        return self.item_embedding.embedding[: self.num_items]

    def score(self, hidden_Nd: Array, table_Id: Array) -> Array:
        """Logits of every item at each state, (N, I)."""
        return (hidden_Nd @ table_Id.T).astype(jnp.float32)
