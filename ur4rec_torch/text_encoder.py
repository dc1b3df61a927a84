"""The text encoder: a transformer that reads the tokens of an item's text, and a cache of what it made of each item.

It is BERT (Devlin et al., NAACL 2019) as sentence encoders use it (Reimers & Gurevych, EMNLP 2019): the mean over the
tokens of a text, of unit length. So it can begin with the weights of one, or with none.

There is no dropout: what a training step makes of a text is exactly what the cache holds of it then.

Shapes: N texts, S tokens of a text, H heads, T width, h width of a head, I items, J = I + 1 items with the padding, E
items whose texts a step encodes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ur4rec.config import ModelConfig
from ur4rec.text.tokens import PADDING
from ur4rec.training.item_texts import chunks_by_length, token_counts, trains

_STD = 0.02
"""Of weights that are drawn, as in BERT."""
_NORM_EPS = 1e-12
_MASKED = -1e30
"""What is added to the logits of padding: finite, so that a text without tokens has no NaN."""
CPU_CHUNK, ACCELERATOR_CHUNK = 1 << 13, 1 << 16
"""Tokens that are encoded at once, outside of training."""


class Adapter(nn.Module):
    """What is added to a projection: a product of two thin matrices, zero at first (LoRA; Hu et al., ICLR 2022)."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim, bias=False)

    def forward(self, inputs_NST: Tensor) -> Tensor:
        """What to add, (N, S, T)."""
        added_NST: Tensor = self.up(self.down(inputs_NST))
        return added_NST


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of a text."""

    def __init__(self, dim: int, num_heads: int, rank: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.query_adapter = Adapter(dim, rank) if rank else None
        self.value_adapter = Adapter(dim, rank) if rank else None

    def forward(self, inputs_NST: Tensor, mask_N11S: Tensor) -> Tensor:
        """Attend from each token to all, (N, S, T), with a mask that is added to the logits."""
        query, key, value = (part(inputs_NST) for part in (self.query, self.key, self.value))
        if self.query_adapter is not None and self.value_adapter is not None:
            query, value = query + self.query_adapter(inputs_NST), value + self.value_adapter(inputs_NST)
        query, key, value = (self._split(each) for each in (query, key, value))
        attended_NHSh = F.scaled_dot_product_attention(query, key, value, mask_N11S.to(query.dtype))
        output_NST: Tensor = self.output(attended_NHSh.transpose(1, 2).flatten(2))
        return output_NST

    def _split(self, projected_NST: Tensor) -> Tensor:
        return projected_NST.reshape(*projected_NST.shape[:2], self.num_heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers applied to each token on its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, 4 * dim)
        self.outer = nn.Linear(4 * dim, dim)

    def forward(self, inputs_NST: Tensor) -> Tensor:
        """Expand, apply the exact GELU, contract."""
        output_NST: Tensor = self.outer(F.gelu(self.inner(inputs_NST)))
        return output_NST


class Block(nn.Module):
    """A transformer block; each of its halves is normalised after it has been added."""

    def __init__(self, dim: int, num_heads: int, rank: int) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, rank)
        self.attention_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.feedforward = FeedForward(dim)
        self.feedforward_norm = nn.LayerNorm(dim, eps=_NORM_EPS)

    def forward(self, inputs_NST: Tensor, mask_N11S: Tensor) -> Tensor:
        """Attention, then the feed-forward layers, (N, S, T)."""
        hidden_NST = self.attention_norm(inputs_NST + self.attention(inputs_NST, mask_N11S))
        output_NST: Tensor = self.feedforward_norm(hidden_NST + self.feedforward(hidden_NST))
        return output_NST


class TextEncoder(nn.Module):
    """Makes a vector of each item's text, and keeps it.

    The cache, ``vectors``, is what training steps read: while the encoder is frozen they cost what they cost without
    one. A step that trains it encodes the texts of its batch, takes the others from the cache, and writes what it
    has encoded; the rest of the cache is then older than the weights. `refresh` encodes all again. To score, and to
    save, `current` has vectors of the weights as they are, without touching the cache.

    Weights that ``text_encoder_trains`` leaves out require no gradients.

    Args:
        config: The shape of the model.
        tokens_IS: The tokens of each item's text.
        weights: First weights by name; those that are missing are drawn.
        vectors_IT: Vectors as last encoded; None encodes all texts now.
    """

    tokens: Tensor
    vectors: Tensor

    def __init__(
        self,
        config: ModelConfig,
        tokens_IS: NDArray[np.int32],
        weights: Mapping[str, NDArray[np.float32]],
        vectors_IT: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        dim, num_items = config.text_embedding_dim, config.num_items
        tokens_JS = torch.full((num_items + 1, config.text_encoder_tokens), PADDING, dtype=torch.int32)
        tokens_JS[:-1] = torch.from_numpy(tokens_IS)
        self.register_buffer("tokens", tokens_JS)
        self.register_buffer("vectors", torch.zeros(num_items + 1, dim))
        self.word_embedding = nn.Embedding(config.text_encoder_vocab, dim)
        self.position_embedding = nn.Embedding(config.text_encoder_tokens, dim)
        self.embedding_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(dim, config.text_encoder_heads, config.lora_rank) for _ in range(config.text_encoder_layers)
        )
        self.is_stale = False
        """Whether the encoder has trained since all vectors of the cache were encoded."""
        self._fresh: tuple[tuple[int, ...], Tensor] | None = None
        self._set_weights(config, weights)
        if vectors_IT is None:
            self.vectors.copy_(self.encode_all())
        else:
            self.vectors[:-1] = torch.from_numpy(vectors_IT)

    def forward(self, tokens_NS: Tensor) -> Tensor:
        """The vector of each text, (N, T), of unit length; zeros of a text without tokens."""
        is_token_NS = tokens_NS != PADDING
        hidden_NST = self.word_embedding(tokens_NS) + self.position_embedding.weight[: tokens_NS.shape[1]]
        hidden_NST = self.embedding_norm(hidden_NST)
        mask_N11S = torch.zeros_like(hidden_NST[:, :, 0]).masked_fill(~is_token_NS, _MASKED)[:, None, None]
        for block in self.blocks:
            hidden_NST = block(hidden_NST, mask_N11S)
        kept_NST = hidden_NST.float() * is_token_NS.unsqueeze(2)
        count_N1 = is_token_NS.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(kept_NST.sum(1) / count_N1, dim=1)

    def encode(self, tokens_NS: Tensor) -> Tensor:
        """As `forward`: the vector of each text, (N, T)."""
        vectors_NT: Tensor = self(tokens_NS)
        return vectors_NT

    def encode_chunks(self, items_E: Tensor, chunks: Sequence[tuple[int, int]]) -> Tensor:
        """The vectors of some items' texts by the weights as they are, (E, T), with gradients.

        Args:
            items_E: The items.
            chunks: The number of items of each chunk of them, and the number of tokens of its longest text.
        """
        if not chunks:
            return self.vectors.new_zeros(0, self.vectors.shape[1])
        parts = torch.split(items_E, [size for size, _ in chunks])
        widths = [num_tokens for _, num_tokens in chunks]
        return torch.cat([self.encode(self.tokens[part, :num]) for part, num in zip(parts, widths, strict=True)])

    @torch.no_grad()
    def encode_all(self) -> Tensor:
        """The vectors of all items by the weights as they are, (J, T), without gradients.

        Texts of about the same length are encoded together, as many as bounded memory allows.
        """
        vectors_JT = torch.zeros_like(self.vectors)
        self._encode_into(vectors_JT)
        return vectors_JT

    @torch.no_grad()
    def encode_from(self, first: int) -> None:
        """Let the cache hold the vectors of the items from this one on, which have come after the others."""
        self._encode_into(self.vectors, first)

    def current(self) -> Tensor:
        """The vectors to score with, (J, T): of the weights as they are, also where the cache is older."""
        if not self.is_stale:
            return self.vectors
        versions = tuple(parameter._version for parameter in self.parameters())  # who goes back may not write
        if self._fresh is None or self._fresh[0] != versions:
            self._fresh = versions, self.encode_all()
        return self._fresh[1]

    def write(self, items_E: Tensor, vectors_ET: Tensor, is_valid: Tensor | None = None) -> None:
        """Put into the cache what a step has encoded that trains the encoder.

        Args:
            items_E: The items.
            vectors_ET: Their vectors.
            is_valid: On the device, whether the step counts: else the cache stays as it is. None is yes.
        """
        vectors_ET = vectors_ET.detach()
        if is_valid is not None:
            vectors_ET = vectors_ET.where(is_valid, self.vectors[items_E])
        self.vectors.index_copy_(0, items_E, vectors_ET)
        self.is_stale, self._fresh = True, None

    def refresh(self) -> None:
        """Let the cache hold the vectors of the weights as they are."""
        self.restore(self.current())

    def restore(self, vectors_JT: Tensor, fresh_JT: Tensor | None = None) -> None:
        """Take over the cache of a checkpoint.

        Args:
            vectors_JT: The cache.
            fresh_JT: Where that is older than the weights, vectors of the weights as they are.
        """
        self.vectors.copy_(vectors_JT)
        self.is_stale, self._fresh = fresh_JT is not None, None
        if fresh_JT is not None:
            self._fresh = tuple(parameter._version for parameter in self.parameters()), fresh_JT

    def _encode_into(self, vectors_JT: Tensor, first: int = 0) -> None:
        size = CPU_CHUNK if self.tokens.device.type == "cpu" else ACCELERATOR_CHUNK
        for items, num_tokens in chunks_by_length(token_counts(self.tokens[first:-1].cpu()), size):
            items_E = torch.from_numpy(first + items).to(self.tokens.device)
            vectors_JT[items_E] = self.encode(self.tokens[items_E, :num_tokens])

    @torch.no_grad()
    def _set_weights(self, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.copy_(torch.from_numpy(weights[name]))
            elif name.endswith("_adapter.up.weight") or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=_STD)
            parameter.requires_grad_(trains(config, name))
