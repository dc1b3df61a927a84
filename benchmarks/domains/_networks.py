"""Small networks in JAX, each one vector of parameters: a step of few arrays is dispatched quickly.

Shapes: B the batch, I inputs, O outputs, P parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Network:
    """Layers with an activation between them.

    Args:
        sizes: The number of inputs, of each hidden layer, and of outputs.
        activation: Between layers.
    """

    sizes: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array] = jax.nn.leaky_relu

    def init(self, key: jax.Array) -> jax.Array:
        """He's initial weights, and biases of 0."""
        weights = [
            jnp.concatenate([jax.random.normal(each, (rows, columns)) * (2 / rows) ** 0.5, jnp.zeros((1, columns))])
            for each, (rows, columns) in zip(jax.random.split(key, len(self.sizes)), pairwise(self.sizes), strict=False)
        ]
        return jnp.concatenate([each.ravel() for each in weights])

    def __call__(self, params_P: jax.Array, inputs_BI: jax.Array) -> jax.Array:
        """Outputs, of shape (B, O)."""
        hidden, start = inputs_BI, 0
        for layer, (rows, columns) in enumerate(pairwise(self.sizes)):
            hidden = self.activation(hidden) if layer else hidden
            end = start + (rows + 1) * columns
            layer_RO = params_P[start:end].reshape(rows + 1, columns)
            hidden, start = hidden @ layer_RO[:-1] + layer_RO[-1], end
        return hidden


def numpy_layers(params_P: np.ndarray, sizes: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases per layer, for single inputs outside of JAX."""
    layers, start = [], 0
    for rows, columns in pairwise(sizes):
        end = start + (rows + 1) * columns
        layer = params_P[start:end].reshape(rows + 1, columns)
        layers.append((layer[:-1], layer[-1]))
        start = end
    return layers
