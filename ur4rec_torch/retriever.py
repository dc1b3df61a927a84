"""The preference retriever: reads a history's texts, says what is wanted, and finds items whose texts answer it.

Shapes: B rows, L positions, T width of text vectors, d width of the preference space, K queries, N positions, I items,
J = I + 1 items with the padding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.config import ModelConfig


class Catalogue(NamedTuple):
    """What the retriever knows of every item: the same for all histories until one of its parameters changes."""

    keys_Id: Tensor
    """As a candidate: its projected text, of unit length."""
    values_Jd: Tensor
    """As part of a history: what is gathered from it."""
    content_JK: Tensor
    """As part of a history: how much each query attends to it, before recency and softmax."""


class PreferenceRetriever(nn.Module):
    """Preference vectors from the text of a history, matched with the text of candidates.

    K learned queries attend causally over the history's projected texts. Query k gives the text s steps back the
    weight softmax(queries[k] · key / √d + recency[k, s]): what it is about, and how long ago it was. What a query
    gathers, projected and normalised, is one preference vector.

    A candidate with the projected, normalised text c is scored by the preferences it retrieves::

        score = log Σ_k exp(preference_k · c / τ)

    This is attention over the preferences in closed form: with weights w = softmax_k(preference_k · c / τ) it equals
    Σ_k w_k · (preference_k · c / τ) plus the entropy of w, at most log K more than the attention's own score, and its
    gradient with respect to the cosine of preference k is w_k / τ. It needs one exponential per preference and item.
    """

    def __init__(self, config: ModelConfig, item_text_vectors_IT: Tensor) -> None:
        super().__init__()
        text_dim, dim = config.text_embedding_dim, config.retriever_output_dim
        self.temperature = config.retriever_temperature
        padding_1T = torch.zeros(1, text_dim)
        self.register_buffer("item_text_vectors", torch.cat([item_text_vectors_IT, padding_1T]))
        self.item_projection = nn.Linear(text_dim, dim)
        self.key_projection = nn.Linear(text_dim, dim)
        self.value_projection = nn.Linear(text_dim, dim)
        self.queries = nn.Embedding(config.retriever_num_queries, dim)
        self.recency = nn.Embedding(config.retriever_num_queries, config.max_seq_len)
        self.preference_projection = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(config.retriever_dropout)

    def catalogue(self) -> Catalogue:
        """Project the text of every item. Keep the result while the retriever is frozen."""
        texts_JT = self.item_text_vectors
        keys_Jd = self.key_projection(texts_JT)
        return Catalogue(
            keys_Id=F.normalize(self.item_projection(texts_JT[:-1]), dim=-1),
            values_Jd=self.value_projection(texts_JT),
            content_JK=keys_Jd @ self.queries.weight.T / keys_Jd.shape[1] ** 0.5,
        )

    def forward(self, items_BL: Tensor, catalogue: Catalogue) -> Tensor:
        """Preference vectors at each position, (B, L, K, d), of unit length."""
        values_BLd = self.dropout(F.embedding(items_BL, catalogue.values_Jd))
        content_BKL = F.embedding(items_BL, catalogue.content_JK).transpose(1, 2)
        weights_BKLL = torch.softmax(content_BKL.unsqueeze(2) + self._recency(items_BL.shape[1]), dim=-1)
        gathered_BKLd = weights_BKLL @ values_BLd.unsqueeze(1)
        return F.normalize(self.preference_projection(gathered_BKLd).transpose(1, 2), dim=-1)

    def score(self, preferences_NKd: Tensor, catalogue: Catalogue) -> Tensor:
        """Logits of every item, (N, I). Cosines over τ are at most 1/τ, so the exponentials need no shift."""
        queries_KNd = (preferences_NKd / self.temperature).transpose(0, 1)
        return sum((query_Nd @ catalogue.keys_Id.T).float().exp() for query_Nd in queries_KNd).log()

    def _recency(self, length: int) -> Tensor:
        """Bias of each query for looking from a position (rows) back to another (columns), (K, L, L); causal."""
        position_L = torch.arange(length, device=self.recency.weight.device)
        steps_back_LL = position_L[:, None] - position_L
        bias_KLL = self.recency.weight[:, steps_back_LL.clamp(min=0)]
        return bias_KLL.masked_fill(steps_back_LL < 0, -torch.inf)
