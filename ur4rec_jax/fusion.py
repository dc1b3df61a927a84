"""How the two modules' scores become one: a small module of its own parameters, chosen by name.

Shapes: N positions, I items.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


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


FUSIONS: dict[str, type[nnx.Module]] = {"logit": LogitFusion, "weighted": WeightedFusion}
