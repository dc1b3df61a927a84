"""The preference retriever: reads a history's texts, predicts what is wanted, and finds items whose texts match it.

Shapes: B rows, L positions, Q of them that are asked for (all, or one), T width of text vectors, d width of the
preference space, K queries, N positions, I items, J = I + 1 items with the padding, U users, M = L + 1 texts with the
user's own, C candidates, R rows that are B, or 1 where all are alike.
"""

from functools import reduce
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.config import ModelConfig
from ur4rec.training import arrays
from ur4rec_torch.dropout import Dropout
from ur4rec_torch.item_shards import ItemShard, look_up

UserMemory: TypeAlias = arrays.UserMemory[Tensor]
Catalogue: TypeAlias = arrays.Catalogue[Tensor]


class PreferenceRetriever(nn.Module):
    """Preference vectors from the text of a history, matched with the text of candidates.

    K learned queries attend causally over the history's projected texts. Query k gives the text s steps back the
    weight softmax(queries[k] · key / √d + recency[k, s]): what it is about, and how long ago it was. What a query
    gathers, projected and normalised, is one preference vector.

    Where users have preference texts, each position may also look at its user's: one more text, whose recency is the
    learned user_bias[k]. It is masked for a user without a text, who is scored as if no user had one.

    A candidate with the projected, normalised text c is scored by the preferences it retrieves::

        score = log Σ_k exp(preference_k · c / τ)

    This is attention over the preferences in closed form: with weights w = softmax_k(preference_k · c / τ) it equals
    Σ_k w_k · (preference_k · c / τ) plus the entropy of w, at most log K more than the attention's own score, and its
    gradient with respect to the cosine of preference k is w_k / τ. It needs one exponential per preference and item.
    """

    item_text_vectors: Tensor
    user_text_vectors: Tensor

    def __init__(
        self, config: ModelConfig, item_text_vectors_IT: Tensor | None, user_text_vectors_UT: Tensor | None = None
    ) -> None:
        super().__init__()
        text_dim, dim = config.text_embedding_dim, config.retriever_output_dim
        self.shard: ItemShard | None = None
        self.temperature = config.retriever_temperature
        padding_1T = torch.zeros(1, text_dim)
        if item_text_vectors_IT is not None:
            self.register_buffer("item_text_vectors", torch.cat([item_text_vectors_IT, padding_1T]))
        self.reads_users = user_text_vectors_UT is not None
        if user_text_vectors_UT is not None:
            self.register_buffer("user_text_vectors", torch.cat([user_text_vectors_UT, padding_1T]))
            self.user_bias = nn.Parameter(torch.zeros(config.retriever_num_queries))
        self.item_projection = nn.Linear(text_dim, dim)
        self.key_projection = nn.Linear(text_dim, dim)
        self.value_projection = nn.Linear(text_dim, dim)
        self.queries = nn.Embedding(config.retriever_num_queries, dim)
        self.recency = nn.Embedding(config.retriever_num_queries, config.max_seq_len)
        self.preference_projection = nn.Linear(dim, dim)
        self.dropout = Dropout(config.retriever_dropout)

    def catalogue(
        self, items_J: Tensor | None = None, *, with_users: bool = True, texts_JT: Tensor | None = None
    ) -> Catalogue:
        """Project the text of every item, and of every user if there are any.

        Keep the result while the retriever is frozen. While it trains, a step needs the users of its batch alone: then
        leave them out here.

        Args:
            items_J: The only items that are asked for, and last the padding: the result numbers them by their place.
            with_users: Whether to project the texts of users.
            texts_JT: The texts of the items that are asked for, last the padding's; None are those of this module,
                which a model with a text encoder does not have.
        """
        users = self._user_memory(self.user_text_vectors) if with_users and self.reads_users else None
        shard = self.shard if items_J is None else None
        if texts_JT is None:
            texts_JT = self.item_text_vectors
            if items_J is not None:
                (texts_JT,) = look_up(items_J, [texts_JT], self.shard)
        item, key, value = self.item_projection, self.key_projection, self.value_projection
        weights: list[Tensor] = [each for layer in (item, key, value) for each in layer.parameters()]
        queries_Kd: Tensor = self.queries.weight
        if shard is not None:
            queries_Kd, *weights = shard.replicated(queries_Kd, *weights)
        keys_Jd = F.linear(texts_JT, *weights[2:4])
        return Catalogue(
            keys_Id=F.normalize(F.linear(texts_JT[:-1], *weights[:2]), dim=-1),
            values_Jd=F.linear(texts_JT, *weights[4:]),
            content_JK=keys_Jd @ queries_Kd.T / keys_Jd.shape[1] ** 0.5,
            users=users,
            shard=shard,
        )

    def forward(
        self,
        items_BL: Tensor,
        catalogue: Catalogue,
        users_B: Tensor | None = None,
        at_B: Tensor | None = None,
        *,
        normalise: bool = True,
    ) -> Tensor:
        """Preference vectors at each position, (B, Q, K, d), of unit length.

        Args:
            items_BL: Histories, right-padded.
            catalogue: What `catalogue` returned.
            users_B: Whose they are; anything but the number of a user is a user without a text.
            at_B: The one position of each row that is asked for; None is all.
            normalise: False leaves that to a caller who goes on with few of the positions.
        """
        weights_BKQM, values_BMd = self._attend(items_BL, catalogue, users_B, at_B)
        vectors_BQKd = self._gather(weights_BKQM, self.dropout(values_BMd))
        return F.normalize(vectors_BQKd, dim=-1) if normalise else vectors_BQKd

    def explain(
        self, items_BL: Tensor, at_B: Tensor, candidates_BC: Tensor, catalogue: Catalogue, users_B: Tensor | None = None
    ) -> Tensor:
        """By which texts of a history the candidates are found, (B, C, M): weights that sum to 1 for each.

        The weight of a text is each query's attention to it, times the share of what that query gathers in the score
        of the candidate: the softmax over the queries of their cosines over τ.

        Args:
            items_BL: Histories, right-padded.
            at_B: The position of each row from which it is looked back.
            candidates_BC: The items that were found.
            catalogue: What `catalogue` returned.
            users_B: Whose they are, as in `forward`; with users, the last weight is that of the user's own text.
        """
        weights_BKQM, values_BMd = self._attend(items_BL, catalogue, users_B, at_B)
        preferences_BKd = F.normalize(self._gather(weights_BKQM, values_BMd)[:, 0], dim=-1)
        (keys_BCd,) = look_up(candidates_BC, [catalogue.keys_Id], catalogue.shard)
        shares_BCK = torch.softmax(keys_BCd @ self.scale(preferences_BKd).transpose(1, 2), dim=-1)
        return shares_BCK @ weights_BKQM[:, :, 0]

    def score(self, preferences_NKd: Tensor, keys_Id: Tensor) -> Tensor:
        """Logits of every item, (N, I). Cosines over τ are at most 1/τ, so the exponentials need no shift."""
        logits_NI = ((query_Nd @ keys_Id.T).float() for query_Nd in self.scale(preferences_NKd).unbind(1))
        return reduce(torch.add, (each_NI.exp() for each_NI in logits_NI)).log()

    def scale(self, preferences_NKd: Tensor) -> Tensor:
        """Preference vectors over τ: their products with items' keys are exponents."""
        return preferences_NKd / self.temperature

    def _attend(
        self, items_BL: Tensor, catalogue: Catalogue, users_B: Tensor | None, at_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The weight that each query gives each text, (B, K, Q, M), and what the texts hold, (B, M, d)."""
        values_BMd, content_BLK = look_up(items_BL, [catalogue.values_Jd, catalogue.content_JK], catalogue.shard)
        logits_BKQM = content_BLK.transpose(1, 2).unsqueeze(2) + self._recency(items_BL.shape[1], at_B)
        if users_B is not None and self.reads_users:
            values_Bd, content_BK = self._look_up(users_B, catalogue)
            values_BMd = torch.cat([values_BMd, values_Bd.unsqueeze(1)], dim=1)
            content_BKQ1 = content_BK[:, :, None, None].expand(-1, -1, logits_BKQM.shape[2], 1)
            logits_BKQM = torch.cat([logits_BKQM, content_BKQ1], dim=-1)
        return torch.softmax(logits_BKQM, dim=-1), values_BMd

    def _gather(self, weights_BKQM: Tensor, values_BMd: Tensor) -> Tensor:
        """What each query gathers, projected, (B, Q, K, d).

        Weights sum to 1, so texts may be projected before they are gathered: once each, and not once for each query.
        Where one position is asked for, what was gathered is less.
        """
        is_one = weights_BKQM.shape[2] == 1
        read_BMd = values_BMd if is_one else self.preference_projection(values_BMd)
        gathered_BQKd: Tensor = (weights_BKQM @ read_BMd.unsqueeze(1)).transpose(1, 2)
        return self.preference_projection(gathered_BQKd) if is_one else gathered_BQKd

    def _look_up(self, users_B: Tensor, catalogue: Catalogue) -> UserMemory:
        """The memory of the user of each row."""
        no_text = len(self.user_text_vectors) - 1
        rows_B = torch.where((users_B >= 0) & (users_B < no_text), users_B, no_text)
        if catalogue.users is None:
            return self._user_memory(self.user_text_vectors[rows_B])
        return UserMemory(*(F.embedding(rows_B, each) for each in catalogue.users))

    def _user_memory(self, texts_UT: Tensor) -> UserMemory:
        """Project user texts; a vector of zeros is no text."""
        keys_Ud = self.key_projection(texts_UT)
        content_UK = keys_Ud @ self.queries.weight.T / keys_Ud.shape[1] ** 0.5 + self.user_bias
        is_missing_U1 = (texts_UT == 0).all(1, keepdim=True)
        return UserMemory(self.value_projection(texts_UT), content_UK.masked_fill(is_missing_U1, -torch.inf))

    def _recency(self, length: int, at_B: Tensor | None) -> Tensor:
        """Bias of each query for looking from a position (Q) back to another (L), (R, K, Q, L); causal."""
        position_L = torch.arange(length, device=self.recency.weight.device)
        from_RQ = position_L[None] if at_B is None else at_B[:, None]
        steps_back_RQL = from_RQ[:, :, None] - position_L
        bias_KRQL = self.recency.weight[:, steps_back_RQL.clamp(min=0)]
        return bias_KRQL.masked_fill(steps_back_RQL < 0, -torch.inf).transpose(0, 1)
