"""What training changes, as one tree."""

from typing import Any, NamedTuple

from adapters.optax import AlternatingState
from ur4rec_jax.strategies import StrategyState


class TrainState(NamedTuple):
    """What training changes."""

    params: dict[str, Any]
    """The parameters of each part of the model."""
    optimizers: AlternatingState
    """The state of each part's optimizer."""
    strategies: StrategyState
    """What the strategies keep."""
    averages: dict[str, Any] | None = None
    """The averages of the parameters; None where there are none."""
