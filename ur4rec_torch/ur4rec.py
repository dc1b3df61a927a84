"""UR4Rec: SASRec and a text preference retriever, and the fusion of their scores.

Shapes: B rows, L positions, N positions of which scores are fused, T width of text vectors, S tokens of a text, I
items, J = I + 1 items with the padding, s of them that are scored at once, U users.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from alternator.checks import check_choice
from ur4rec.config import SCORERS, ModelConfig, ModelSettings
from ur4rec.text.encoders import check_text_vectors
from ur4rec.training import arrays
from ur4rec.training.components import RANK_CONSTANT
from ur4rec.training.item_counts import item_popularity
from ur4rec.training.item_init import item_embeddings
from ur4rec.training.item_texts import check_item_texts
from ur4rec.training.memory import enough_for_model
from ur4rec_torch.item_shards import ItemShard, ShardedEmbedding
from ur4rec_torch.retriever import Catalogue, PreferenceRetriever
from ur4rec_torch.sasrec import SASRec
from ur4rec_torch.text_encoder import TextEncoder

Outputs: TypeAlias = arrays.Outputs[Tensor]


class LogitFusion(nn.Module):
    """A weighted product of the two distributions: weights on log-probabilities.

    What normalises each distribution is one number per position, the same for every item, so it changes neither the
    softmax of the fused logits nor their order: the weighted sum of the logits is all that is computed.

    Args:
        popularity_J: The popularity of items, a third term with a weight of 0 until one is chosen; None is no such
            term.
    """

    item_popularity: Tensor

    def __init__(self, popularity_J: Tensor | None = None) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2) if popularity_J is None else torch.tensor([1.0, 1.0, 0.0]))
        if popularity_J is not None:
            self.register_buffer("item_popularity", popularity_J)

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor, popularity_I: Tensor | None = None) -> Tensor:
        """Fused logits, (N, I), with the popularity of these items where it is a term."""
        fused_NI = self.weights[0] * sasrec_NI + self.weights[1] * retriever_NI
        return fused_NI if popularity_I is None else fused_NI + self.weights[2] * popularity_I


class WeightedFusion(nn.Module):
    """A mixture of the two distributions: weights on probabilities, which sum to one by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Fused log-probabilities, (N, I)."""
        return self.mix(torch.log_softmax(sasrec_NI, dim=1), torch.log_softmax(retriever_NI, dim=1))

    def mix(self, sasrec_Ns: Tensor, retriever_Ns: Tensor) -> Tensor:
        """Fused log-probabilities of some items from each module's, (N, s)."""
        log_weights = torch.log_softmax(self.weights, dim=0)
        return torch.logaddexp(sasrec_Ns + log_weights[0], retriever_Ns + log_weights[1])


class RankFusion(nn.Module):
    """The sum of both modules' reciprocal ranks (Cormack, Clarke & Büttcher, SIGIR 2009).

    It has no parameters and passes no gradients.
    """

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Sums of 1 / (60 + rank), (N, I)."""
        ranks = (_ranks(scores_NI) for scores_NI in (sasrec_NI, retriever_NI))
        sasrec, retriever = (1 / (RANK_CONSTANT + 1 + ranks_NI).float() for ranks_NI in ranks)
        return _nan_unless_finite(sasrec + retriever, sasrec_NI, retriever_NI)


class CascadeFusion(nn.Module):
    """SASRec's top items in the retriever's order, above all others in SASRec's.

    It has no parameters and passes no gradients.

    Args:
        size: The number of items that are re-ordered.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Minus the final rank, 0 for the best item, (N, I): no two items tie."""
        ranks_NI = _ranks(sasrec_NI)
        is_top_NI = ranks_NI < self.size
        among_top_NI = _ranks(retriever_NI.masked_fill(~is_top_NI, -torch.inf))
        fused_NI = -torch.where(is_top_NI, among_top_NI, ranks_NI).float()
        return _nan_unless_finite(fused_NI, sasrec_NI, retriever_NI)


Fusion: TypeAlias = LogitFusion | WeightedFusion | RankFusion | CascadeFusion

FUSIONS: dict[str, Callable[[ModelConfig, Tensor | None], Fusion]] = {
    "logit": lambda config, popularity_J: LogitFusion(popularity_J),
    "weighted": lambda config, _: WeightedFusion(),
    "rank": lambda config, _: RankFusion(),
    "cascade": lambda config, _: CascadeFusion(config.cascade_size),
}
"""Each builds the fusion of a model, given the popularity of its items where that is fused."""


def _ranks(scores_NI: Tensor) -> Tensor:
    """The place of each item, 0 for the best, (N, I); equal scores in the order of item numbers."""
    order_NI = scores_NI.argsort(dim=1, descending=True, stable=True)
    places_I = torch.arange(scores_NI.shape[1], device=scores_NI.device)
    return torch.empty_like(order_NI).scatter_(1, order_NI, places_I.expand_as(order_NI))


def _nan_unless_finite(fused_NI: Tensor, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
    """Scores that are not finite stay so: a rank would hide them."""
    return fused_NI.masked_fill(~torch.isfinite(sasrec_NI + retriever_NI), torch.nan)


class UR4Rec(nn.Module):
    """A recommender of two modules that train in turns, or of three, with a text encoder.

    Items are numbered 0 to num_items - 1; num_items is padding. Histories are right-padded.

    Args:
        num_items: Size of the catalogue.
        item_text_vectors: One text vector per item, (I, T). Frozen: a buffer, never trained. With a text encoder they
            are its own as last encoded, of a checkpoint; None encodes the texts of all items now.
        item_tokens: With a text encoder (``text_encoder="transformer"``, for example), and only then, the tokens of
            each item's text, (I, S), padded with 0: see `ur4rec.text.tokens`.
        encoder_weights: With ``text_encoder="pretrained"`` its first weights by name, of
            `ur4rec.text.pretrained.read_weights`.
        user_text_vectors: One preference text vector per user, (U, T), zeros for a user without a text; None is a model
            without user texts. Frozen likewise.
        item_counts: The uses of each item in the training data, (I,), `TrainBatches.item_counts`; needed, and read,
            with ``fusion_popularity``.
        seed: Seed of the initial weights. The caller's random state is left as it was.
        **settings: The other fields of `ModelConfig` but ``num_users``, such as ``sasrec_hidden_dim`` or ``fusion``.

    Raises:
        ConfigurationError: A setting is out of range, or the text vectors or tokens do not fit it or are missing.

    Example:
        >>> model = UR4Rec(100, torch.randn(100, 16), text_embedding_dim=16, sasrec_hidden_dim=8)
        >>> model(torch.tensor([[3, 1, 4, 100, 100]])).shape
        torch.Size([1, 100])
        >>> encoder = {"text_encoder": "transformer", "text_encoder_tokens": 4, "text_encoder_vocab": 9}
        >>> model = UR4Rec(2, item_tokens=[[2, 5, 3, 0], [2, 8, 7, 3]], text_embedding_dim=16, **encoder)
        >>> model.item_texts().shape
        torch.Size([3, 16])
    """

    text_encoder: TextEncoder
    """The third module, of a model with a text encoder."""

    def __init__(
        self,
        num_items: int,
        item_text_vectors: ArrayLike | None = None,
        *,
        item_tokens: ArrayLike | None = None,
        encoder_weights: Mapping[str, ArrayLike] | None = None,
        user_text_vectors: ArrayLike | None = None,
        item_counts: ArrayLike | None = None,
        seed: int = 0,
        **settings: Unpack[ModelSettings],
    ) -> None:
        super().__init__()
        users = None if user_text_vectors is None else np.asarray(user_text_vectors, np.float32)
        num_users = 0 if users is None else len(users)
        self.config = ModelConfig(num_items=num_items, num_users=num_users, **settings)
        dim = self.config.text_embedding_dim
        with enough_for_model(self.config):
            texts = check_item_texts(self.config, item_text_vectors, item_tokens, encoder_weights)
            popularity_J = item_popularity(self.config, item_counts)
            vectors_IT, vectors_UT = None, None
            if texts.tokens_IS is None:
                vectors_IT = torch.tensor(texts.vectors_IT)
            if users is not None and num_users:
                vectors_UT = torch.tensor(check_text_vectors("user", users, count=num_users, dim=dim))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.sasrec = SASRec(self.config)
                self.retriever = PreferenceRetriever(self.config, vectors_IT, vectors_UT)
                self.fusion = FUSIONS[self.config.fusion](
                    self.config, None if popularity_J is None else torch.from_numpy(popularity_J)
                )
                self.apply(_initialise)
                if (table_Id := item_embeddings(self.config, texts.vectors_IT, seed)) is not None:
                    self.sasrec.item_embedding.weight.data[:-1] = torch.from_numpy(table_Id)
                if texts.tokens_IS is not None:  # drawn last: the others are as without it
                    self.text_encoder = TextEncoder(self.config, texts.tokens_IS, texts.weights, texts.vectors_IT)

    @property
    def shard(self) -> ItemShard | None:
        """Which items this process has of a catalogue in parts; None is all."""
        return self.retriever.shard

    def divide_items(self, shard: ItemShard) -> None:
        """Keep this process's part of SASRec's table and of the items' texts alone; scores are then of its items.

        All processes of the group must have the same model, and call its methods together from now on.
        """
        self.sasrec.item_embedding = ShardedEmbedding(self.sasrec.item_embedding, shard)
        self.retriever.item_text_vectors = shard.cut(self.retriever.item_text_vectors)
        if isinstance(self.fusion, LogitFusion) and self.config.fusion_popularity:
            self.fusion.item_popularity = shard.cut(self.fusion.item_popularity)
        self.retriever.shard = shard

    def item_texts(self) -> Tensor:
        """The text vectors of all items as they are now, and last the padding's, (J, T)."""
        return self.text_encoder.current() if self.config.has_text_encoder else self.retriever.item_text_vectors

    def catalogue(
        self, items_J: Tensor | None = None, *, with_users: bool = True, texts_JT: Tensor | None = None
    ) -> Catalogue:
        """What the retriever knows of every item; see `PreferenceRetriever.catalogue`.

        Args:
            items_J: As there.
            with_users: As there.
            texts_JT: As there; None are the text vectors as they are now.
        """
        if texts_JT is None and self.config.has_text_encoder:
            texts_JT = self.item_texts() if items_J is None else F.embedding(items_J, self.item_texts())
        return self.retriever.catalogue(items_J=items_J, with_users=with_users, texts_JT=texts_JT)

    def forward(self, items_BL: Tensor, users_B: Tensor | None = None) -> Tensor:
        """Fused scores of every item as the next one, (B, I)."""
        return self.score(items_BL, users_B=users_B)

    def score(
        self,
        items_BL: Tensor,
        scorer: str = "fused",
        catalogue: Catalogue | None = None,
        users_B: Tensor | None = None,
    ) -> Tensor:
        """Scores of every item as the next one, (B, I).

        Args:
            items_BL: Histories, right-padded.
            scorer: ``fused``, or one module alone: ``sasrec``, ``retriever``.
            catalogue: What `PreferenceRetriever.catalogue` returned, if it has been computed already.
            users_B: Whose histories they are, for a model with user texts; None is a user without a text.

        Raises:
            UnknownNameError: There is no such scorer.
        """
        return self.scores(items_BL, (scorer,), catalogue, users_B)[scorer]

    def scores(
        self,
        items_BL: Tensor,
        scorers: Iterable[str] = SCORERS,
        catalogue: Catalogue | None = None,
        users_B: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The scores of several scorers by name, as `score` returns them; each module is run once, at the last item."""
        wanted = tuple(dict.fromkeys(scorers))
        for scorer in wanted:
            check_choice("scorer", scorer, SCORERS)
        if catalogue is None and set(wanted) & {"retriever", "fused"}:
            catalogue = self.catalogue(with_users=False)
        return self.score_items(self.encode(items_BL, wanted, catalogue, users_B), wanted, catalogue)

    def encode(
        self, items_BL: Tensor, scorers: Collection[str], catalogue: Catalogue | None, users_B: Tensor | None = None
    ) -> Outputs:
        """What the modules that these scorers need say of each history: its state and its preference vectors."""
        last_B = self.last(items_BL)
        encoded = Outputs()
        if {"sasrec", "fused"} & {*scorers}:
            encoded = encoded._replace(hidden_Nd=self.sasrec(items_BL, last_B)[:, 0])
        if {"retriever", "fused"} & {*scorers}:
            assert catalogue is not None
            encoded = encoded._replace(preferences_NKd=self.retriever(items_BL, catalogue, users_B, last_B)[:, 0])
        return encoded

    def score_items(
        self,
        encoded: Outputs,
        scorers: Collection[str],
        catalogue: Catalogue | None,
        items: slice | Tensor = slice(None),
        totals: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Scores of some items by name, (B, s).

        Args:
            encoded: What `encode` returned.
            scorers: Which.
            catalogue: As for `encode`.
            items: Which items; all by default.
            totals: For the fusion `weighted` and fewer items than all, the logarithm of the sum of the exponentials of
                each module's scores of all items, (B, 1).
        """
        found: dict[str, Tensor] = {}
        if encoded.hidden_Nd is not None:
            found["sasrec"] = self.sasrec.score(encoded.hidden_Nd, self.sasrec.item_table()[items])
        if encoded.preferences_NKd is not None:
            assert catalogue is not None
            found["retriever"] = self.retriever.score(encoded.preferences_NKd, catalogue.keys_Id[items])
        if "fused" in scorers:
            found["fused"] = self.fuse(found["sasrec"], found["retriever"], totals, items)
        return {scorer: found[scorer] for scorer in scorers}

    def fuse(
        self,
        sasrec_Bs: Tensor,
        retriever_Bs: Tensor,
        totals: Sequence[Tensor] | None = None,
        items: slice | Tensor = slice(None),
    ) -> Tensor:
        """Fused scores of some items, (B, s), from those of both modules; the others as for `score_items`."""
        if isinstance(self.fusion, LogitFusion) and self.config.fusion_popularity:
            with_popularity_Bs: Tensor = self.fusion(sasrec_Bs, retriever_Bs, self.fusion.item_popularity[:-1][items])
            return with_popularity_Bs
        if totals is None and self.shard is not None and isinstance(self.fusion, WeightedFusion):
            logs = (each_Bs.logsumexp(1, keepdim=True) for each_Bs in (sasrec_Bs, retriever_Bs))
            totals = [self.shard.logsumexp(log_B1) for log_B1 in logs]
        if totals is None:
            fused_Bs: Tensor = self.fusion(sasrec_Bs, retriever_Bs)
            return fused_Bs
        assert isinstance(self.fusion, WeightedFusion)
        return self.fusion.mix(sasrec_Bs - totals[0], retriever_Bs - totals[1])

    def explain(
        self, items_BL: Tensor, candidates_BC: Tensor, catalogue: Catalogue, users_B: Tensor | None = None
    ) -> Tensor:
        """By which texts of a history the retriever finds the candidates, (B, C, M); `PreferenceRetriever.explain`."""
        return self.retriever.explain(items_BL, self.last(items_BL), candidates_BC, catalogue, users_B)

    def last(self, items_BL: Tensor) -> Tensor:
        """The position of the last item of each history, (B,)."""
        return (items_BL != self.config.num_items).sum(1).clamp(min=1) - 1


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
