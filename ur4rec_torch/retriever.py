"""The preference retriever: reads a history's texts, says what is wanted, and finds items whose texts answer it.

Shapes: B rows, L positions, T width of text vectors, d width of the preference space, K queries, N positions, I items.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.config import ModelConfig


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

    def __init__(self, config: ModelConfig, item_text_vectors: Tensor) -> None:
        super().__init__()
        dim, num_queries = config.retriever_output_dim, config.retriever_num_queries
        self.temperature = config.retriever_temperature
        padding = torch.zeros(1, config.text_embedding_dim)
        self.register_buffer("item_text_vectors", torch.cat([item_text_vectors, padding]))
        self.item_projection = nn.Linear(config.text_embedding_dim, dim)
        self.key_projection = nn.Linear(config.text_embedding_dim, dim)
        self.value_projection = nn.Linear(config.text_embedding_dim, dim)
        self.queries = nn.Embedding(num_queries, dim)
        self.recency = nn.Embedding(num_queries, config.max_seq_len)
        self.preference_projection = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(config.retriever_dropout)

    def forward(self, items_BL: Tensor) -> Tensor:
        """Preference vectors at each position, (B, L, K, d), of unit length."""
        texts_BLT = self.item_text_vectors[items_BL]
        keys_BLd = self.key_projection(texts_BLT)
        values_BLd = self.dropout(self.value_projection(texts_BLT))
        content_BKL = self.queries.weight @ keys_BLd.transpose(1, 2) / keys_BLd.shape[2] ** 0.5
        weights_BKLL = torch.softmax(content_BKL.unsqueeze(2) + self._recency(items_BL.shape[1]), dim=-1)
        gathered_BKLd = weights_BKLL @ values_BLd.unsqueeze(1)
        return F.normalize(self.preference_projection(gathered_BKLd).transpose(1, 2), dim=-1)

    def item_keys(self) -> Tensor:
        """The projected text of every item, (I, d), of unit length: the same until a parameter changes."""
        return F.normalize(self.item_projection(self.item_text_vectors[:-1]), dim=-1)

    def score(self, preferences_NKd: Tensor, keys_Id: Tensor) -> Tensor:
        """Logits of every item, (N, I). Cosines over τ are at most 1/τ, so the exponentials need no shift."""
        queries_NKd = preferences_NKd / self.temperature
        total_NI = sum((queries_NKd[:, k] @ keys_Id.T).float().exp() for k in range(queries_NKd.shape[1]))
        return total_NI.log()

    def _recency(self, length: int) -> Tensor:
        """Bias of each query for looking from a position (rows) back to another (columns), (K, L, L); causal."""
        position_L = torch.arange(length, device=self.recency.weight.device)
        steps_back_LL = position_L[:, None] - position_L
        bias_KLL = self.recency.weight[:, steps_back_LL.clamp(min=0)]
        return bias_KLL.masked_fill(steps_back_LL < 0, -torch.inf)
