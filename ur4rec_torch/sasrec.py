"""SASRec: causal self-attention over a sequence of items (Kang & McAuley, ICDM 2018).

Shapes: B rows, L positions, H heads, d width, h width of a head, N real positions, I items.
Sequences are right-padded, so a causal position never looks at padding and no mask is needed.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.config import ModelConfig


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with explicit projections."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, inputs_BLd: Tensor) -> Tensor:
        """Attend from each position to itself and the ones before it."""
        query, key, value = (self._split(part(inputs_BLd)) for part in (self.query, self.key, self.value))
        attended_BHLh = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output_BLd: Tensor = self.output(attended_BHLh.transpose(1, 2).flatten(2))
        return output_BLd

    def _split(self, projected_BLd: Tensor) -> Tensor:
        return projected_BLd.reshape(*projected_BLd.shape[:2], self.num_heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers applied to each position on its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, 4 * dim)
        self.outer = nn.Linear(4 * dim, dim)

    def forward(self, inputs_BLd: Tensor) -> Tensor:
        """Expand, rectify, contract."""
        output_BLd: Tensor = self.outer(F.relu(self.inner(inputs_BLd)))
        return output_BLd


class Block(nn.Module):
    """A pre-norm transformer block; dropout falls on what each of its halves adds."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs_BLd: Tensor) -> Tensor:
        """Attention, then the feed-forward layers, each added to its input."""
        hidden_BLd: Tensor = inputs_BLd + self.dropout(self.attention(self.attention_norm(inputs_BLd)))
        output_BLd: Tensor = hidden_BLd + self.dropout(self.feedforward(self.feedforward_norm(hidden_BLd)))
        return output_BLd


class SASRec(nn.Module):
    """Sequential recommender over item embeddings.

    Three departures from the paper, all usual today: blocks normalise before each half and once at the end; attention
    weights have no dropout (so that attention stays on the fast path; what it adds has); and item embeddings are not
    multiplied by √d before positions are added, which measures better (docs/log.md).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.sasrec_hidden_dim
        self.num_items = config.num_items
        self.item_embedding = nn.Embedding(config.num_items + 1, dim, padding_idx=config.num_items)
        self.position_embedding = nn.Embedding(config.max_seq_len, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.sasrec_num_heads, config.sasrec_dropout) for _ in range(config.sasrec_num_blocks)
        )
        self.final_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.sasrec_dropout)

    def forward(self, items_BL: Tensor) -> Tensor:
        """The state of each position, (B, L, d): what the sequence up to there says about the next item.

        Args:
            items_BL: Sequences of items.
        """
        hidden_BLd: Tensor = self.item_embedding(items_BL) + self.position_embedding.weight[: items_BL.shape[1]]
        hidden_BLd = self.dropout(hidden_BLd)
        for block in self.blocks:
            hidden_BLd = block(hidden_BLd)
        states_BLd: Tensor = self.final_norm(hidden_BLd)
        return states_BLd

    def item_table(self) -> Tensor:
        """The embeddings that states are scored against, (I, d): without the padding row."""
        return self.item_embedding.weight[: self.num_items]

    def score(self, hidden_Nd: Tensor, table_Id: Tensor) -> Tensor:
        """Logits of every item at each state, (N, I)."""
        return (hidden_Nd @ table_Id.T).float()
