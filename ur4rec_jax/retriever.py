"""The preference retriever: reads a history's texts, says what is wanted, and finds items whose texts answer it.

Shapes: B rows, L positions, T width of text vectors, d width of the preference space, K queries, N positions, I items,
J = I + 1 items with the padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import ModelConfig
from ur4rec_jax.layers import Dropout, Embedding, Linear, normalize


class Buffer(nnx.Variable):
    """What belongs to the model and never trains."""


class Catalogue(NamedTuple):
    """What the retriever knows of every item: the same for all histories until one of its parameters changes."""

    keys_Id: Array
    """As a candidate: its projected text, of unit length."""
    values_Jd: Array
    """As part of a history: what is gathered from it."""
    content_JK: Array
    """As part of a history: how much each query attends to it, before recency and softmax."""


class PreferenceRetriever(nnx.Module):
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

    def __init__(self, config: ModelConfig, item_text_vectors_IT: Array, rngs: nnx.Rngs) -> None:
        text_dim, dim = config.text_embedding_dim, config.retriever_output_dim
        self.temperature = config.retriever_temperature
        padding_1T = jnp.zeros((1, text_dim))
        self.item_text_vectors = Buffer(jnp.concatenate([item_text_vectors_IT, padding_1T]))
        self.item_projection = Linear(text_dim, dim, rngs=rngs)
        self.key_projection = Linear(text_dim, dim, rngs=rngs)
        self.value_projection = Linear(text_dim, dim, rngs=rngs)
        self.queries = Embedding(config.retriever_num_queries, dim, rngs=rngs)
        self.recency = Embedding(config.retriever_num_queries, config.max_seq_len, rngs=rngs)
        self.preference_projection = Linear(dim, dim, rngs=rngs)
        self.dropout = Dropout(config.retriever_dropout)

    def catalogue(self) -> Catalogue:
        """Project the text of every item. Keep the result while the retriever is frozen."""
        texts_JT = self.item_text_vectors[...]
        keys_Jd = self.key_projection(texts_JT)
        return Catalogue(
            keys_Id=normalize(self.item_projection(texts_JT[:-1])),
            values_Jd=self.value_projection(texts_JT),
            content_JK=keys_Jd @ self.queries.embedding[...].T / keys_Jd.shape[1] ** 0.5,
        )

    def __call__(self, items_BL: Array, catalogue: Catalogue, rngs: nnx.Rngs | None = None) -> Array:
        """Preference vectors at each position, (B, L, K, d), of unit length.

        Args:
            items_BL: Histories, right-padded.
            catalogue: What `catalogue` gave.
            rngs: Random numbers for dropout; None is inference.
        """
        values_BLd = self.dropout(catalogue.values_Jd[items_BL], rngs)
        content_BKL = catalogue.content_JK[items_BL].mT
        weights_BKLL = jax.nn.softmax(content_BKL[:, :, None] + self._recency(items_BL.shape[1]), axis=-1)
        gathered_BKLd = weights_BKLL.astype(values_BLd.dtype) @ values_BLd[:, None]
        return normalize(self.preference_projection(gathered_BKLd).swapaxes(1, 2))

    def score(self, preferences_NKd: Array, catalogue: Catalogue) -> Array:
        """Logits of every item, (N, I). Cosines over τ are at most 1/τ, so the exponentials need no shift."""
        queries_KNd = (preferences_NKd / self.temperature).swapaxes(0, 1)
        return jnp.log(sum(jnp.exp((query_Nd @ catalogue.keys_Id.T).astype(jnp.float32)) for query_Nd in queries_KNd))

    def _recency(self, length: int) -> Array:
        """Bias of each query for looking from a position (rows) back to another (columns), (K, L, L); causal."""
        position_L = jnp.arange(length)
        steps_back_LL = position_L[:, None] - position_L
        bias_KLL = self.recency.embedding[:, jnp.maximum(steps_back_LL, 0)].astype(jnp.float32)
        return jnp.where(steps_back_LL < 0, -jnp.inf, bias_KLL)
