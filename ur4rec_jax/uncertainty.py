"""Uncertainty weighting: the weight of each loss component is learned; see `ur4rec.training.components`.

Shapes: C components, in the order of `ur4rec.training.components.COMPONENTS`.
"""

from collections.abc import Mapping
from functools import reduce

import jax.numpy as jnp
from jax import Array

from ur4rec.training.components import COMPONENTS, UNCERTAINTY, loss_name, weight_name
from ur4rec_jax.losses import Component


def initial_log_variances() -> Array:
    """One log-variance per component, each 0 at first. They belong to the trainer and train in every step."""
    return jnp.zeros(len(COMPONENTS))


def uncertain_total(components: Mapping[str, Component], log_variances_C: Array) -> Array:
    """What is minimised: the sum of exp(−s) · weight · loss + s / 2."""
    present = _present(components, log_variances_C)
    terms = (jnp.exp(-present[name]) * weight * loss + present[name] / 2 for name, (loss, weight) in components.items())
    return reduce(jnp.add, terms)


def uncertainty_metrics(components: Mapping[str, Component], log_variances_C: Array) -> dict[str, Array]:
    """What the epoch reports: the log-variances' own part of the total, and each component's weight."""
    present = _present(components, log_variances_C)
    weights = {
        weight_name(name): jnp.where(weight == 0, jnp.nan, jnp.exp(-present[name]))
        for name, (_, weight) in components.items()
    }
    return {loss_name(UNCERTAINTY): reduce(jnp.add, present.values()) / 2, **weights}


def update_log_variances(
    components: Mapping[str, Component], log_variances_C: Array, is_finite: Array, learning_rate: Array
) -> Array:
    """The log-variances after a step of gradient descent on those of the components present, if the loss is finite."""
    moved_C = log_variances_C
    for name, (loss, weight) in components.items():
        place = COMPONENTS.index(name)
        before = log_variances_C[place]
        gradient = 0.5 - jnp.exp(-before) * weight * loss
        after = jnp.where(is_finite & (weight != 0), before - learning_rate * gradient, before)
        moved_C = moved_C.at[place].set(after)
    return moved_C


def _present(components: Mapping[str, Component], log_variances_C: Array) -> dict[str, Array]:
    """The log-variances of the components; 0 for one that is absent."""
    return {
        name: jnp.where(weight == 0, 0, log_variances_C[COMPONENTS.index(name)])
        for name, (_, weight) in components.items()
    }
