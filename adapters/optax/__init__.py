"""optax: one optimizer over all modules, of which only the active ones move."""

from adapters.contract import ALWAYS
from adapters.jax.turns import FROZEN
from adapters.optax.frozen_states import FrozenStates
from adapters.optax.labels import labels_of
from adapters.optax.optimizer import (
    AccumulationState,
    AlternatingState,
    Away,
    active_value_and_grad,
    alternating,
    apply_updates,
    in_force,
)
from adapters.optax.statistics import keep_frozen

__all__ = [
    "ALWAYS",
    "FROZEN",
    "AccumulationState",
    "AlternatingState",
    "Away",
    "FrozenStates",
    "active_value_and_grad",
    "alternating",
    "apply_updates",
    "in_force",
    "keep_frozen",
    "labels_of",
]
