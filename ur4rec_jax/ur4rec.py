"""UR4Rec: SASRec and a text preference retriever, and the fusion of their scores.

Shapes: B rows, L positions, N positions of which scores are fused, T width of text vectors, S tokens of a text, I
items, J = I + 1 items with the padding, s of them that are scored at once, U users.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike

from alternator.checks import check_choice
from ur4rec.config import SCORERS, ModelConfig, ModelSettings
from ur4rec.text.encoders import check_text_vectors
from ur4rec.training import arrays
from ur4rec.training.components import RANK_CONSTANT
from ur4rec.training.item_counts import item_popularity
from ur4rec.training.item_init import item_embeddings
from ur4rec.training.item_texts import check_item_texts
from ur4rec.training.memory import enough_for_model
from ur4rec_jax.layers import Buffer
from ur4rec_jax.layout import Layout
from ur4rec_jax.retriever import Catalogue, PreferenceRetriever
from ur4rec_jax.sasrec import SASRec
from ur4rec_jax.text_encoder import TextEncoder

Outputs: TypeAlias = arrays.Outputs[Array]


class LogitFusion(nnx.Module):
    """A weighted product of the two distributions: weights on log-probabilities.

    What normalises each distribution is one number per position, the same for every item, so it changes neither the
    softmax of the fused logits nor their order: the weighted sum of the logits is all that is computed.

    Args:
        popularity_J: The popularity of items, a third term with a weight of 0 until one is chosen; None is no such
            term.
    """

    def __init__(self, popularity_J: Array | None = None) -> None:
        self.weights = nnx.Param(jnp.ones(2) if popularity_J is None else jnp.array([1.0, 1.0, 0.0]))
        if popularity_J is not None:
            self.item_popularity = Buffer(popularity_J)

    def __call__(self, sasrec_NI: Array, retriever_NI: Array, popularity_I: Array | None = None) -> Array:
        """Fused logits, (N, I), with the popularity of these items where it is a term."""
        fused_NI = self.weights[0] * sasrec_NI + self.weights[1] * retriever_NI
        return fused_NI if popularity_I is None else fused_NI + self.weights[2] * popularity_I


class WeightedFusion(nnx.Module):
    """A mixture of the two distributions: weights on probabilities, which sum to one by a softmax."""

    def __init__(self) -> None:
        self.weights = nnx.Param(jnp.zeros(2))

    def __call__(self, sasrec_NI: Array, retriever_NI: Array) -> Array:
        """Fused log-probabilities, (N, I)."""
        return self.mix(jax.nn.log_softmax(sasrec_NI, axis=1), jax.nn.log_softmax(retriever_NI, axis=1))

    def mix(self, sasrec_Ns: Array, retriever_Ns: Array) -> Array:
        """Fused log-probabilities of some items from each module's, (N, s)."""
        log_weights = jax.nn.log_softmax(self.weights[...])
        return jnp.logaddexp(sasrec_Ns + log_weights[0], retriever_Ns + log_weights[1])


class RankFusion(nnx.Module):
    """The sum of both modules' reciprocal ranks (Cormack, Clarke & Büttcher, SIGIR 2009).

    It has no parameters and passes no gradients.
    """

    def __call__(self, sasrec_NI: Array, retriever_NI: Array) -> Array:
        """Sums of 1 / (60 + rank), (N, I)."""
        ranks = (_ranks(scores_NI) for scores_NI in (sasrec_NI, retriever_NI))
        sasrec, retriever = (1 / (RANK_CONSTANT + 1 + ranks_NI) for ranks_NI in ranks)
        return _nan_unless_finite(sasrec + retriever, sasrec_NI, retriever_NI)


class CascadeFusion(nnx.Module):
    """SASRec's top items in the retriever's order, above all others in SASRec's.

    It has no parameters and passes no gradients.

    Args:
        size: The number of items that are re-ordered.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, sasrec_NI: Array, retriever_NI: Array) -> Array:
        """Minus the final rank, 0 for the best item, (N, I): no two items tie."""
        ranks_NI = _ranks(sasrec_NI)
        is_top_NI = ranks_NI < self.size
        among_top_NI = _ranks(jnp.where(is_top_NI, retriever_NI, -jnp.inf))
        fused_NI = -jnp.where(is_top_NI, among_top_NI, ranks_NI).astype(jnp.float32)
        return _nan_unless_finite(fused_NI, sasrec_NI, retriever_NI)


Fusion: TypeAlias = LogitFusion | WeightedFusion | RankFusion | CascadeFusion

FUSIONS: dict[str, Callable[[ModelConfig, Array | None], Fusion]] = {
    "logit": lambda config, popularity_J: LogitFusion(popularity_J),
    "weighted": lambda config, _: WeightedFusion(),
    "rank": lambda config, _: RankFusion(),
    "cascade": lambda config, _: CascadeFusion(config.cascade_size),
}
"""Each builds the fusion of a model, given the popularity of its items where that is fused."""


def _ranks(scores_NI: Array) -> Array:
    """The place of each item, 0 for the best, (N, I); equal scores in the order of item numbers."""
    order_NI = jnp.argsort(scores_NI, axis=1, descending=True, stable=True)
    return jnp.argsort(order_NI, axis=1)


def _nan_unless_finite(fused_NI: Array, sasrec_NI: Array, retriever_NI: Array) -> Array:
    """Scores that are not finite stay so: a rank would hide them."""
    return jnp.where(jnp.isfinite(sasrec_NI + retriever_NI), fused_NI, jnp.nan)


class UR4Rec(nnx.Module):
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
        seed: Seed of the initial weights.
        **settings: The other fields of `ModelConfig` but ``num_users``, such as ``sasrec_hidden_dim`` or ``fusion``.

    Raises:
        ConfigurationError: A setting is out of range, or the text vectors or tokens do not fit it or are missing.

    Example:
        >>> model = UR4Rec(100, np.ones((100, 16)), text_embedding_dim=16, sasrec_hidden_dim=8)
        >>> model(jnp.array([[3, 1, 4, 100, 100]])).shape
        (1, 100)
        >>> encoder = {"text_encoder": "transformer", "text_encoder_tokens": 4, "text_encoder_vocab": 9}
        >>> model = UR4Rec(2, item_tokens=[[2, 5, 3, 0], [2, 8, 7, 3]], text_embedding_dim=16, **encoder)
        >>> model.item_texts().shape
        (3, 16)
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
        users = None if user_text_vectors is None else np.asarray(user_text_vectors, np.float32)
        num_users = 0 if users is None else len(users)
        self.config = ModelConfig(num_items=num_items, num_users=num_users, **settings)
        dim = self.config.text_embedding_dim
        with enough_for_model(self.config):
            texts = check_item_texts(self.config, item_text_vectors, item_tokens, encoder_weights)
            popularity_J = item_popularity(self.config, item_counts)
            vectors_IT = jnp.asarray(texts.vectors_IT) if texts.tokens_IS is None else None
            vectors_UT = None
            if users is not None and num_users:
                vectors_UT = jnp.asarray(check_text_vectors("user", users, count=num_users, dim=dim))
            rngs = nnx.Rngs(seed)
            self.sasrec = SASRec(self.config, rngs)
            if (table_Id := item_embeddings(self.config, texts.vectors_IT, seed)) is not None:
                self.sasrec.item_embedding.embedding[...] = jnp.pad(table_Id, ((0, 1), (0, 0)))
            self.retriever = PreferenceRetriever(self.config, vectors_IT, rngs, vectors_UT)
            self.fusion = FUSIONS[self.config.fusion](
                self.config, None if popularity_J is None else jnp.asarray(popularity_J)
            )
            if texts.tokens_IS is not None:  # drawn last: the others are as without it
                self.text_encoder = TextEncoder(self.config, texts.tokens_IS, rngs, texts.weights, texts.vectors_IT)
            # Memory that has run out is noticed as late as here.
            jax.block_until_ready(nnx.state(self))  # type: ignore[no-untyped-call]

    @property
    def layout(self) -> Layout:
        """Where its arrays are."""
        return self.sasrec.layout

    def lay_out(self, layout: Layout) -> None:
        """Say where its arrays are; they lie there already."""
        self.sasrec.layout = self.retriever.layout = layout

    def item_texts(self) -> Array:
        """The text vectors of all items, and last the padding's, (J, T)."""
        return self.text_encoder.vectors[...] if self.config.has_text_encoder else self.retriever.item_text_vectors[...]

    def catalogue(self, *, with_users: bool = True, texts_JT: Array | None = None) -> Catalogue:
        """What the retriever knows of every item; see `PreferenceRetriever.catalogue`.

        Args:
            with_users: As there.
            texts_JT: As there; None are the text vectors as they are.
        """
        return self.retriever.catalogue(
            with_users=with_users, texts_JT=self.item_texts() if texts_JT is None else texts_JT
        )

    def __call__(self, items_BL: Array, users_B: Array | None = None) -> Array:
        """Fused scores of every item as the next one, (B, I)."""
        return self.score(items_BL, users_B=users_B)

    def score(
        self,
        items_BL: Array,
        scorer: str = "fused",
        catalogue: Catalogue | None = None,
        users_B: Array | None = None,
    ) -> Array:
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
        items_BL: Array,
        scorers: Iterable[str] = SCORERS,
        catalogue: Catalogue | None = None,
        users_B: Array | None = None,
    ) -> dict[str, Array]:
        """The scores of several scorers by name, as `score` returns them; each module is run once, at the last item."""
        wanted = tuple(dict.fromkeys(scorers))
        for scorer in wanted:
            check_choice("scorer", scorer, SCORERS)
        if catalogue is None and set(wanted) & {"retriever", "fused"}:
            catalogue = self.catalogue(with_users=False)
        return self.score_items(self.encode(items_BL, wanted, catalogue, users_B), wanted, catalogue)

    def encode(
        self, items_BL: Array, scorers: Collection[str], catalogue: Catalogue | None, users_B: Array | None = None
    ) -> Outputs:
        """What the modules that these scorers need say of each history: its state and its preference vectors."""
        last_B = self.last(items_BL)
        encoded: Outputs = Outputs()
        if {"sasrec", "fused"} & {*scorers}:
            encoded = encoded._replace(hidden_Nd=self.sasrec(items_BL, at_B=last_B)[:, 0])
        if {"retriever", "fused"} & {*scorers}:
            assert catalogue is not None
            preferences_BKd = self.retriever(items_BL, catalogue, users_B=users_B, at_B=last_B)[:, 0]
            encoded = encoded._replace(preferences_NKd=preferences_BKd)
        return encoded

    def score_items(
        self,
        encoded: Outputs,
        scorers: Collection[str],
        catalogue: Catalogue | None,
        take: Callable[[Array], Array] | None = None,
        totals: Sequence[Array] | None = None,
    ) -> dict[str, Array]:
        """Scores of some items by name, (B, s).

        Args:
            encoded: What `encode` returned.
            scorers: Which.
            catalogue: As for `encode`.
            take: Takes the rows of some items from a table with a row per item; None is all.
            totals: For the fusion `weighted` and fewer items than all, the logarithm of the sum of the exponentials of
                each module's scores of all items, (B, 1).
        """
        found: dict[str, Array] = {}
        if encoded.hidden_Nd is not None:
            table_sd = self.sasrec.item_table() if take is None else take(self.sasrec.item_embedding.embedding[...])
            found["sasrec"] = self.sasrec.score(encoded.hidden_Nd, table_sd)
        if encoded.preferences_NKd is not None:
            assert catalogue is not None
            keys_sd = catalogue.keys_Id if take is None else take(catalogue.keys_Id)
            found["retriever"] = self.retriever.score(encoded.preferences_NKd, keys_sd)
        if take is None:
            found = {scorer: self.layout.join_items(scores_BI) for scorer, scores_BI in found.items()}
        if "fused" in scorers:
            found["fused"] = self.fuse(found["sasrec"], found["retriever"], totals, take)
        return {scorer: found[scorer] for scorer in scorers}

    def fuse(
        self,
        sasrec_Bs: Array,
        retriever_Bs: Array,
        totals: Sequence[Array] | None = None,
        take: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Fused scores of some items, (B, s), from those of both modules; the others as for `score_items`."""
        if isinstance(self.fusion, LogitFusion) and self.config.fusion_popularity:
            popularity_J: Array = self.fusion.item_popularity[...]
            popularity_s = (
                self.layout.whole(popularity_J)[: self.config.num_items] if take is None else take(popularity_J)
            )
            return self.fusion(sasrec_Bs, retriever_Bs, popularity_s)
        if totals is None:
            if isinstance(self.fusion, WeightedFusion):
                sasrec_Bs, retriever_Bs = map(self.layout.without_padding, (sasrec_Bs, retriever_Bs))
            return self.fusion(sasrec_Bs, retriever_Bs)
        assert isinstance(self.fusion, WeightedFusion)
        return self.fusion.mix(sasrec_Bs - totals[0], retriever_Bs - totals[1])

    def explain(
        self, items_BL: Array, candidates_BC: Array, catalogue: Catalogue, users_B: Array | None = None
    ) -> Array:
        """By which texts of a history the retriever finds the candidates, (B, C, M); `PreferenceRetriever.explain`."""
        return self.retriever.explain(items_BL, self.last(items_BL), candidates_BC, catalogue, users_B)

    def last(self, items_BL: Array) -> Array:
        """The position of the last item of each history, (B,)."""
        return jnp.maximum((items_BL != self.config.num_items).sum(1), 1) - 1


def laid_out(graphdef: nnx.GraphDef[UR4Rec], layout: Layout, params: Any, buffers: Any) -> UR4Rec:
    """The model of arrays that lie on some devices.

    Args:
        graphdef: The model without its arrays, from `flax.nnx.split`.
        layout: How they lie.
        params: The parameters of each part.
        buffers: The rest.
    """
    model: UR4Rec = nnx.merge(graphdef, params, buffers)
    model.lay_out(layout)
    return model
