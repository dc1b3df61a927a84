"""The preference retriever: reads a history's texts, predicts what is wanted, and finds items whose texts match it.

Shapes: B rows, L positions, Q of them that are asked for (all, or one), T width of text vectors, d width of the
preference space, K queries, N positions, I items, J = I + 1 items with the padding, U users, M = L + 1 texts with the
user's own, C candidates, R rows that are B, or 1 where all are alike.
"""

from functools import reduce
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import ModelConfig
from ur4rec.training import arrays
from ur4rec_jax.layers import Buffer, Dropout, Embedding, Linear, normalize
from ur4rec_jax.layout import ONE_DEVICE

BLOCK = 2**16
"""Items of which the catalogue is computed at once, where it is kept."""

UserMemory: TypeAlias = arrays.UserMemory[Array]
Catalogue: TypeAlias = arrays.Catalogue[Array]


class PreferenceRetriever(nnx.Module):
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

    def __init__(
        self,
        config: ModelConfig,
        item_text_vectors_IT: Array | None,
        rngs: nnx.Rngs,
        user_text_vectors_UT: Array | None = None,
    ) -> None:
        text_dim, dim = config.text_embedding_dim, config.retriever_output_dim
        self.temperature = config.retriever_temperature
        self.layout = ONE_DEVICE
        padding_1T = jnp.zeros((1, text_dim))
        if item_text_vectors_IT is not None:
            self.item_text_vectors = Buffer(jnp.concatenate([item_text_vectors_IT, padding_1T]))
        self.reads_users = user_text_vectors_UT is not None
        if user_text_vectors_UT is not None:
            self.user_text_vectors = Buffer(jnp.concatenate([user_text_vectors_UT, padding_1T]))
            self.user_bias = nnx.Param(jnp.zeros(config.retriever_num_queries))
        self.item_projection = Linear(text_dim, dim, rngs=rngs)
        self.key_projection = Linear(text_dim, dim, rngs=rngs)
        self.value_projection = Linear(text_dim, dim, rngs=rngs)
        self.queries = Embedding(config.retriever_num_queries, dim, rngs=rngs)
        self.recency = Embedding(config.retriever_num_queries, config.max_seq_len, rngs=rngs)
        self.preference_projection = Linear(dim, dim, rngs=rngs)
        self.dropout = Dropout(config.retriever_dropout)

    def catalogue(self, *, with_users: bool = True, texts_JT: Array | None = None) -> Catalogue:
        """Project the text of every item, and of every user if there are any.

        Keep the result while the retriever is frozen. While it trains, a step needs the users of its batch alone: then
        leave them out here.

        Args:
            with_users: Whether to project the texts of users.
            texts_JT: The texts of the items, last the padding's; None are those of this module, which a model with a
                text encoder does not have.
        """
        users = self._user_memory(self.user_text_vectors[...]) if with_users and self.reads_users else None
        texts_JT = self.item_text_vectors[...] if texts_JT is None else texts_JT
        return Catalogue(self._candidates(self.layout.candidates(texts_JT)), *self._memory(texts_JT), users)

    def catalogue_in_blocks(self, size: int = BLOCK, *, texts_JT: Array | None = None) -> Catalogue:
        """What `catalogue` returns, to keep: beside it, no more than a block of items is in memory at once.

        It has no derivatives. On a mesh it is computed by each device for its part of the items.

        Args:
            size: The items of a block.
            texts_JT: As for `catalogue`.
        """
        texts_JT = self.item_text_vectors[...] if texts_JT is None else texts_JT
        num_items, num_rows = len(self.layout.candidates(texts_JT)), len(texts_JT)
        if num_items <= size:
            return self.catalogue(texts_JT=texts_JT)

        def fill(number: Array, so_far: tuple[Array, ...]) -> tuple[Array, ...]:
            at_I, at_J = (jnp.minimum(number * size, length - size) for length in (num_items, num_rows))
            texts_I, texts_J = (jax.lax.dynamic_slice_in_dim(texts_JT, at, size) for at in (at_I, at_J))
            blocks = ((self._candidates(texts_I), at_I), *((each, at_J) for each in self._memory(texts_J)))
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(whole, block, at, 0)
                for whole, (block, at) in zip(so_far, blocks, strict=True)
            )

        num_queries, dim = self.queries.embedding.shape
        empty = tuple(map(jnp.zeros, ((num_items, dim), (num_rows, dim), (num_rows, num_queries))))
        keys_Id, values_Jd, content_JK = jax.lax.fori_loop(0, -(-num_rows // size), fill, empty)
        users = self._user_memory(self.user_text_vectors[...]) if self.reads_users else None
        return Catalogue(keys_Id, values_Jd, content_JK, users)

    def __call__(
        self,
        items_BL: Array,
        catalogue: Catalogue,
        rngs: nnx.Rngs | None = None,
        users_B: Array | None = None,
        at_B: Array | None = None,
        *,
        normalise: bool = True,
    ) -> Array:
        """Preference vectors at each position, (B, Q, K, d), of unit length.

        Args:
            items_BL: Histories, right-padded.
            catalogue: What `catalogue` returned.
            rngs: Random numbers for dropout; None is inference.
            users_B: Whose they are; anything but the number of a user is a user without a text.
            at_B: The one position of each row that is asked for; None is all.
            normalise: False leaves that to a caller who goes on with few of the positions.
        """
        weights_BKQM, values_BMd = self._attend(items_BL, catalogue, users_B, at_B)
        vectors_BQKd = self._gather(weights_BKQM, self.dropout(values_BMd, rngs))
        return normalize(vectors_BQKd) if normalise else vectors_BQKd

    def explain(
        self, items_BL: Array, at_B: Array, candidates_BC: Array, catalogue: Catalogue, users_B: Array | None = None
    ) -> Array:
        """By which texts of a history the candidates are found, (B, C, M): weights that sum to 1 for each.

        The weight of a text is each query's attention to it, times the share of what that query gathers in the score
        of the candidate: the softmax over the queries of their cosines over τ.

        Args:
            items_BL: Histories, right-padded.
            at_B: The position of each row from which it is looked back.
            candidates_BC: The items that were found.
            catalogue: What `catalogue` returned.
            users_B: Whose they are, as in `__call__`; with users, the last weight is that of the user's own text.
        """
        weights_BKQM, values_BMd = self._attend(items_BL, catalogue, users_B, at_B)
        preferences_BKd = normalize(self._gather(weights_BKQM, values_BMd)[:, 0])
        keys_BCd = self.layout.take(catalogue.keys_Id, candidates_BC)
        shares_BCK = jax.nn.softmax(keys_BCd @ self.scale(preferences_BKd).swapaxes(1, 2), axis=-1)
        return shares_BCK @ weights_BKQM[:, :, 0]

    def score(self, preferences_NKd: Array, keys_Id: Array) -> Array:
        """Logits of every item, (N, I). Cosines over τ are at most 1/τ, so the exponentials need no shift."""
        queries_KNd = self.scale(preferences_NKd).swapaxes(0, 1)
        logits_NI = ((query_Nd @ keys_Id.T).astype(jnp.float32) for query_Nd in queries_KNd)
        return jnp.log(reduce(jnp.add, (jnp.exp(each_NI) for each_NI in logits_NI)))

    def scale(self, preferences_NKd: Array) -> Array:
        """Preference vectors over τ: their products with items' keys are exponents."""
        return preferences_NKd / self.temperature

    def _attend(
        self, items_BL: Array, catalogue: Catalogue, users_B: Array | None, at_B: Array | None
    ) -> tuple[Array, Array]:
        """The weight that each query gives each text, (B, K, Q, M), and what the texts hold, (B, M, d)."""
        values_BMd = self.layout.take(catalogue.values_Jd, items_BL)
        content_BKL = self.layout.take(catalogue.content_JK, items_BL).mT
        logits_BKQM = content_BKL[:, :, None] + self._recency(items_BL.shape[1], at_B)
        if users_B is not None and self.reads_users:
            values_Bd, content_BK = self._look_up(users_B, catalogue)
            values_BMd = jnp.concatenate([values_BMd, values_Bd[:, None]], axis=1)
            content_BKQ1 = jnp.broadcast_to(content_BK[:, :, None, None], (*logits_BKQM.shape[:3], 1))
            logits_BKQM = jnp.concatenate([logits_BKQM, content_BKQ1], axis=-1)
        return jax.nn.softmax(logits_BKQM, axis=-1), values_BMd

    def _gather(self, weights_BKQM: Array, values_BMd: Array) -> Array:
        """What each query gathers, projected, (B, Q, K, d).

        Weights sum to 1, so texts may be projected before they are gathered: once each, and not once for each query.
        Where one position is asked for, what was gathered is less.
        """
        is_one = weights_BKQM.shape[2] == 1
        read_BMd = values_BMd if is_one else self.preference_projection(values_BMd)
        gathered_BQKd: Array = (weights_BKQM.astype(read_BMd.dtype) @ read_BMd[:, None]).swapaxes(1, 2)
        return self.preference_projection(gathered_BQKd) if is_one else gathered_BQKd

    def _candidates(self, texts_IT: Array) -> Array:
        """What items are as candidates, (I, d)."""
        return normalize(self.item_projection(texts_IT))

    def _memory(self, texts_JT: Array) -> tuple[Array, Array]:
        """What is gathered from items, (J, d), and how much each query attends to them, (J, K)."""
        keys_Jd = self.key_projection(texts_JT)
        return self.value_projection(texts_JT), keys_Jd @ self.queries.embedding[...].T / keys_Jd.shape[1] ** 0.5

    def _look_up(self, users_B: Array, catalogue: Catalogue) -> UserMemory:
        """The memory of the user of each row."""
        no_text = len(self.user_text_vectors[...]) - 1
        rows_B = jnp.where((users_B >= 0) & (users_B < no_text), users_B, no_text)
        if catalogue.users is None:
            return self._user_memory(self.user_text_vectors[...][rows_B])
        return UserMemory(*(each[rows_B] for each in catalogue.users))

    def _user_memory(self, texts_UT: Array) -> UserMemory:
        """Project user texts; a vector of zeros is no text."""
        keys_Ud = self.key_projection(texts_UT)
        content_UK = keys_Ud @ self.queries.embedding[...].T / keys_Ud.shape[1] ** 0.5 + self.user_bias[...]
        is_missing_U1 = (texts_UT == 0).all(1, keepdims=True)
        return UserMemory(self.value_projection(texts_UT), jnp.where(is_missing_U1, -jnp.inf, content_UK))

    def _recency(self, length: int, at_B: Array | None) -> Array:
        """Bias of each query for looking from a position (Q) back to another (L), (R, K, Q, L); causal."""
        position_L = jnp.arange(length)
        from_RQ = position_L[None] if at_B is None else at_B[:, None]
        steps_back_RQL = from_RQ[:, :, None] - position_L
        bias_KRQL = self.recency.embedding[:, jnp.maximum(steps_back_RQL, 0)].astype(jnp.float32)
        return jnp.where(steps_back_RQL < 0, -jnp.inf, bias_KRQL).swapaxes(0, 1)
