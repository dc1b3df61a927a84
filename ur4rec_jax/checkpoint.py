"""The arrays of a JAX run's checkpoint, from pytrees and back; see `ur4rec.training.checkpoint`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import nnx
from numpy.typing import ArrayLike

from adapters.optax import AlternatingState
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import Arrays, averages_of, load_checkpoint
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS, LOG_VARIANCES
from ur4rec.training.shapes import AVERAGE
from ur4rec_jax.state import TrainState
from ur4rec_jax.strategies import MemoryBank, StrategyState
from ur4rec_jax.ur4rec import UR4Rec
from ur4rec_jax.weights import export_weights, import_weights

_MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
_BANK = (BANK_ITEMS, BANK_KEYS, BANK_CURSOR)


def export_arrays(train_state: TrainState, buffers: Any) -> tuple[Arrays, Arrays]:
    """The weights and moments of a `ur4rec.training.checkpoint.Checkpoint`."""
    moments = _export_strategies(train_state.strategies)
    for inner in train_state.optimizers.inner_states.values():
        moments |= _export_adam(inner[0])
    if train_state.averages is not None:
        moments |= {f"{name}/{AVERAGE}": array for name, array in export_weights(train_state.averages).items()}
    return {**export_weights(train_state.params), **export_weights(buffers)}, moments


def restore_arrays(weights: Arrays, moments: Arrays, train_state: TrainState, buffers: Any) -> tuple[TrainState, Any]:
    """What `export_arrays` gave, in the structure of this training state and these buffers.

    Raises:
        CheckpointError: The arrays do not fit the model.
    """
    buffer_names = export_weights(buffers).keys()
    kept = {name: array for name, array in weights.items() if name in buffer_names}
    trained = {name: array for name, array in weights.items() if name not in buffer_names}
    inner_states = {
        part: (_import_adam(part, inner[0], moments), *inner[1:])
        for part, inner in train_state.optimizers.inner_states.items()
    }
    params = import_weights(train_state.params, trained)
    strategies = _import_strategies(train_state.strategies, moments)
    averages = train_state.averages
    if averages is not None:
        averages = import_weights(averages, averages_of(trained, moments))
    return TrainState(params, AlternatingState(inner_states), strategies, averages), import_weights(buffers, kept)


def load_model(path: str | Path, *, later_items: ArrayLike | None = None) -> UR4Rec:
    """The model of a checkpoint, text vectors included, without a trainer: to score, not to train on.

    Args:
        path: The checkpoint.
        later_items: Text vectors of items that came later, (C, T), or for a model with a text encoder the tokens of
            their texts, (C, S): see `Checkpoint.with_items`. None is no such item.

    Raises:
        CheckpointError: It is missing, damaged or of another version.
    """
    loaded = load_checkpoint(path).averaged()
    if later_items is not None:
        loaded = loaded.with_items(later_items)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UR4Rec(**loaded.model_arguments())))
    model: UR4Rec = nnx.merge(graphdef, import_weights(nnx.to_pure_dict(state), loaded.weights))
    if later_items is not None and model.config.has_text_encoder:
        num_items = model.config.num_items
        model.text_encoder.refresh(np.arange(num_items - len(np.asarray(later_items)), num_items))
    return model


def _export_adam(adam: optax.ScaleByAdamState) -> Arrays:
    """As PyTorch keeps it: nothing before the first update, and the count beside each parameter."""
    if not int(adam.count):
        return {}
    named = {key: export_weights(getattr(adam, field)) for key, field in _MOMENTS.items()}
    moments = {f"{name}/{key}": array for key, arrays in named.items() for name, array in arrays.items()}
    return moments | {f"{name}/step": np.asarray(adam.count, np.float32) for name in named["exp_avg"]}


def _import_adam(part: str, adam: optax.ScaleByAdamState, moments: Arrays) -> optax.ScaleByAdamState:
    own = {
        key: value for key, value in moments.items() if key.startswith(f"{part}.") and not key.endswith(f"/{AVERAGE}")
    }
    if not own:
        return optax.ScaleByAdamState(
            jnp.zeros_like(adam.count),
            *(jax.tree.map(jnp.zeros_like, getattr(adam, field)) for field in _MOMENTS.values()),
        )
    steps = {float(value) for key, value in own.items() if key.endswith("/step")}
    if len(steps) != 1:
        raise CheckpointError(
            f"all parameters of {part!r} must have had the same number of updates, got {sorted(steps)}; "
            "parameters frozen by hand in PyTorch cannot continue in JAX"
        )
    fields = {
        field: import_weights(
            getattr(adam, field),
            {name.removesuffix(f"/{key}"): value for name, value in own.items() if name.endswith(f"/{key}")},
        )
        for key, field in _MOMENTS.items()
    }
    return optax.ScaleByAdamState(jnp.asarray(int(steps.pop()), adam.count.dtype), **fields)


def _export_strategies(strategies: StrategyState) -> Arrays:
    """What the strategies keep, by its names in a checkpoint."""
    arrays: dict[str, Any] = {}
    if strategies.bank is not None:
        arrays |= dict(zip(_BANK, strategies.bank, strict=True))
    if strategies.log_variances_C is not None:
        arrays[LOG_VARIANCES] = strategies.log_variances_C
    return {name: np.asarray(array) for name, array in arrays.items()}


def _import_strategies(strategies: StrategyState, arrays: Arrays) -> StrategyState:
    """What `_export_strategies` gave, in the structure of these."""
    bank, log_variances_C = strategies
    if bank is not None:
        bank = MemoryBank(*(jnp.asarray(arrays[name]) for name in _BANK))
    if log_variances_C is not None:
        log_variances_C = jnp.asarray(arrays[LOG_VARIANCES])
    return StrategyState(bank, log_variances_C)
