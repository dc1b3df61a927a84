"""How the two modules' scores become one: a small module, chosen by name; some have parameters, some pass no gradients.

Shapes: N positions, I items.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import ModelConfig
from ur4rec.training.components import RANK_CONSTANT


class LogitFusion(nnx.Module):
    """A weighted product of the two distributions: weights on log-probabilities.

    What normalises each distribution is one number per position, the same for every item, so it changes neither the
    softmax of the fused logits nor their order: the weighted sum of the logits is all that is computed.
    """

    def __init__(self) -> None:
        self.weights = nnx.Param(jnp.ones(2))

    def __call__(self, sasrec_NI: Array, retriever_NI: Array) -> Array:
        """Fused logits, (N, I)."""
        return self.weights[0] * sasrec_NI + self.weights[1] * retriever_NI


class WeightedFusion(nnx.Module):
    """A mixture of the two distributions: weights on probabilities, which sum to one by a softmax."""

    def __init__(self) -> None:
        self.weights = nnx.Param(jnp.zeros(2))

    def __call__(self, sasrec_NI: Array, retriever_NI: Array) -> Array:
        """Fused log-probabilities, (N, I)."""
        log_weights = jax.nn.log_softmax(self.weights[...])
        return jnp.logaddexp(
            jax.nn.log_softmax(sasrec_NI, axis=1) + log_weights[0],
            jax.nn.log_softmax(retriever_NI, axis=1) + log_weights[1],
        )


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

FUSIONS: dict[str, Callable[[ModelConfig], Fusion]] = {
    "logit": lambda config: LogitFusion(),
    "weighted": lambda config: WeightedFusion(),
    "rank": lambda config: RankFusion(),
    "cascade": lambda config: CascadeFusion(config.cascade_size),
}
"""Each builds the fusion of a model."""


def _ranks(scores_NI: Array) -> Array:
    """The place of each item, 0 for the best, (N, I); equal scores in the order of item numbers."""
    order_NI = jnp.argsort(scores_NI, axis=1, descending=True, stable=True)
    return jnp.argsort(order_NI, axis=1)


def _nan_unless_finite(fused_NI: Array, sasrec_NI: Array, retriever_NI: Array) -> Array:
    """Scores that are not finite stay so: a rank would hide them."""
    return jnp.where(jnp.isfinite(sasrec_NI + retriever_NI), fused_NI, jnp.nan)
