"""SASRec: causal self-attention over a sequence of items (Kang & McAuley, ICDM 2018).

Shapes: B rows, L positions, Q of them that are asked for (all, or one), H heads, d width, h width of a head, N real
positions, I items, J items of a step with the padding. Sequences are right-padded, so a causal position never looks at
padding and no mask is needed.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.config import LIGR, PLAIN_BLOCKS, ModelConfig
from ur4rec_torch.dropout import Dropout
from ur4rec_torch.item_shards import ShardedEmbedding
from ur4rec_torch.rows import take_rows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with explicit projections."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, inputs_BLd: Tensor, at_B: Tensor | None = None) -> Tensor:
        """Attend from each position, or from one of each row, to itself and the ones before it, (B, Q, d)."""
        query = self._split(self.query(take_positions(inputs_BLd, at_B)))
        key, value = (self._split(part(inputs_BLd)) for part in (self.key, self.value))
        mask_B11L = None if at_B is None else _up_to(at_B, inputs_BLd.shape[1])[:, None, None]
        attended_BHQh = F.scaled_dot_product_attention(query, key, value, mask_B11L, is_causal=at_B is None)
        output_BQd: Tensor = self.output(attended_BHQh.transpose(1, 2).flatten(2))
        return output_BQd

    def _split(self, projected_BLd: Tensor) -> Tensor:
        return projected_BLd.reshape(*projected_BLd.shape[:2], self.num_heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers applied to each position on its own."""

    def __init__(self, dim: int, inner_dim: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.inner = nn.Linear(dim, inner_dim)
        self.outer = nn.Linear(inner_dim, dim)

    def forward(self, inputs_BLd: Tensor) -> Tensor:
        """Expand, apply the activation, contract."""
        output_BLd: Tensor = self.outer(self.activation(self.inner(inputs_BLd)))
        return output_BLd


class GatedFeedForward(nn.Module):
    """SwiGLU: what is inside is multiplied by a gate (Shazeer, 2020, equation 6; here with biases)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, inner_dim)
        self.inner = nn.Linear(dim, inner_dim)
        self.outer = nn.Linear(inner_dim, dim)

    def forward(self, inputs_BLd: Tensor) -> Tensor:
        """Expand, gate, contract."""
        output_BLd: Tensor = self.outer(F.silu(self.gate(inputs_BLd)) * self.inner(inputs_BLd))
        return output_BLd


class Block(nn.Module):
    """A pre-norm transformer block; dropout falls on what each of its halves adds.

    In a LiGR block (Borisyuk et al., arXiv 2502.03417) what a half adds is multiplied by a gate: the sigmoid of a
    linear layer of the half's normalised input.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, inner_dim, kind = config.sasrec_hidden_dim, config.sasrec_inner_dim, config.sasrec_block
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, config.sasrec_num_heads)
        self.feedforward_norm = nn.LayerNorm(dim)
        is_plain = kind in PLAIN_BLOCKS
        self.feedforward = FeedForward(dim, inner_dim, kind) if is_plain else GatedFeedForward(dim, inner_dim)
        self.attention_gate = nn.Linear(dim, dim) if kind == LIGR else None
        self.feedforward_gate = nn.Linear(dim, dim) if kind == LIGR else None
        self.dropout = Dropout(config.sasrec_dropout)

    def forward(self, inputs_BLd: Tensor, at_B: Tensor | None = None) -> Tensor:
        """Attention, then the feed-forward layers, each added to its input; at every position or at one, (B, Q, d)."""
        normed_BLd = self.attention_norm(inputs_BLd)
        added_BQd = self.attention(normed_BLd, at_B)
        if self.attention_gate is not None:
            added_BQd = added_BQd * torch.sigmoid(self.attention_gate(take_positions(normed_BLd, at_B)))
        hidden_BQd: Tensor = take_positions(inputs_BLd, at_B) + self.dropout(added_BQd)
        normed_BQd = self.feedforward_norm(hidden_BQd)
        added_BQd = self.feedforward(normed_BQd)
        if self.feedforward_gate is not None:
            added_BQd = added_BQd * torch.sigmoid(self.feedforward_gate(normed_BQd))
        output_BQd: Tensor = hidden_BQd + self.dropout(added_BQd)
        return output_BQd


class SASRec(nn.Module):
    """Sequential recommender over item embeddings.

    Three departures from the paper, all usual today: blocks normalise before each half and once at the end; attention
    weights have no dropout (so that attention stays on the fast path; what it adds has); and item embeddings are not
    multiplied by √d before positions are added, which measures better (docs/log.md), unless ``sasrec_embedding_scale``
    is on. ``sasrec_block`` says what the blocks are.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.sasrec_hidden_dim
        self.num_items = config.num_items
        self.item_embedding = nn.Embedding(config.num_items + 1, dim, padding_idx=config.num_items)
        self.position_embedding = nn.Embedding(config.max_seq_len, dim)
        self.embedding_scale = dim**0.5 if config.sasrec_embedding_scale else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.sasrec_num_blocks))
        self.final_norm = nn.LayerNorm(dim)
        rate = config.sasrec_embedding_dropout
        self.dropout = Dropout(config.sasrec_dropout if rate is None else rate)

    def forward(self, items_BL: Tensor, at_B: Tensor | None = None, rows_Jd: Tensor | None = None) -> Tensor:
        """The state of each position, (B, Q, d): what the sequence up to there says about the next item.

        Args:
            items_BL: Sequences of items.
            at_B: The one position of each row that is asked for; None is all. Only the last block can leave the others
                out: it reads them all from the blocks before it.
            rows_Jd: Embeddings that ``items_BL`` numbers, the padding's last; None are those of all items.
        """
        embedded_BLd = self.item_embedding(items_BL) if rows_Jd is None else F.embedding(items_BL, rows_Jd, -1)
        if self.embedding_scale is not None:
            embedded_BLd = embedded_BLd * self.embedding_scale
        hidden_BLd: Tensor = embedded_BLd + self.position_embedding.weight[: items_BL.shape[1]]
        hidden_BLd = self.dropout(hidden_BLd)
        *before, last = self.blocks
        for block in before:
            hidden_BLd = block(hidden_BLd)
        states_BQd: Tensor = self.final_norm(last(hidden_BLd, at_B))
        return states_BQd

    def take_rows(self, items_J: Tensor) -> Tensor:
        """The embeddings of items, ascending and each once, with a sparse gradient, (J, d)."""
        if isinstance(self.item_embedding, ShardedEmbedding):
            return self.item_embedding.take(items_J)
        return take_rows(self.item_embedding.weight, items_J)

    def item_table(self) -> Tensor:
        """The embeddings that states are scored against, (I, d): without the padding row, the last."""
        return self.item_embedding.weight[:-1]

    def score(self, hidden_Nd: Tensor, table_Id: Tensor) -> Tensor:
        """Logits of every item at each state, (N, I)."""
        return (hidden_Nd @ table_Id.T).float()


def take_positions(values_BLd: Tensor, at_B: Tensor | None) -> Tensor:
    """One position of each row, (B, 1, d); all of them, (B, L, d), where none is named."""
    if at_B is None:
        return values_BLd
    return values_BLd[torch.arange(len(at_B), device=at_B.device), at_B].unsqueeze(1)


def _up_to(at_B: Tensor, length: int) -> Tensor:
    """Whether a position is not after that of its row, (B, L)."""
    return torch.arange(length, device=at_B.device) <= at_B.unsqueeze(1)
