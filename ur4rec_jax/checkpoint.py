"""Checkpoints of a JAX run: arrays to safetensors and back. What backends share is in `ur4rec.training.checkpoint`.

Arrays have PyTorch's names and layout, so either backend loads what the other saved, optimizer state included.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from adapters.optax import AlternatingState
from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, check_same, read_checkpoint, write_checkpoint
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS, LOG_VARIANCES
from ur4rec_jax.memory_bank import MemoryBank
from ur4rec_jax.step import TrainState
from ur4rec_jax.strategies import StrategyState
from ur4rec_jax.ur4rec import UR4Rec
from ur4rec_jax.weights import export_weights, import_weights

_MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
_BANK = (BANK_ITEMS, BANK_KEYS, BANK_CURSOR)


class Loaded(NamedTuple):
    """A checkpoint that fits."""

    weights: dict[str, NDArray[Any]]
    """Parameters and buffers by their canonical names."""
    moments: dict[str, NDArray[Any]]
    """Optimizer state: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter, as ``name/exp_avg``; and what the
    strategies keep, by the names of `ur4rec.training.components`."""
    state: dict[str, Any]
    """Everything else."""


def save(
    path: str | Path,
    train_state: TrainState,
    buffers: Any,
    payoffs: Mapping[str, NDArray[Any]],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint; ``path`` never holds half of one."""
    weights = {**export_weights(train_state.params), **export_weights(buffers)}
    moments: dict[str, NDArray[Any]] = {}
    for inner in train_state.optimizers.inner_states.values():
        moments |= _export_adam(inner[0])
    moments |= _export_strategies(train_state.strategies) | payoffs
    write_checkpoint(path, {MODEL_FILE: save_safetensors(weights), OPTIMIZER_FILE: save_safetensors(moments)}, state)


def load(path: str | Path, model_config: ModelConfig, trainer_config: TrainerConfig) -> Loaded:
    """Read a checkpoint of the same configuration; nothing is changed yet.

    Raises:
        CheckpointError: It is missing, damaged, or of another version or configuration.
    """
    loaded = _read(path)
    check_same("model", loaded.state["model"], asdict(model_config))
    check_same("training configuration", loaded.state["trainer"], asdict(trainer_config))
    return loaded


def restore(loaded: Loaded, train_state: TrainState, buffers: Any) -> tuple[TrainState, Any]:
    """The training state and the buffers of a checkpoint, in the structure of these.

    Raises:
        CheckpointError: The arrays do not fit the model.
    """
    buffer_names = export_weights(buffers).keys()
    kept = {name: array for name, array in loaded.weights.items() if name in buffer_names}
    trained = {name: array for name, array in loaded.weights.items() if name not in buffer_names}
    inner_states = {
        part: (_import_adam(part, inner[0], loaded.moments), *inner[1:])
        for part, inner in train_state.optimizers.inner_states.items()
    }
    params = import_weights(train_state.params, trained)
    strategies = _import_strategies(train_state.strategies, loaded.moments)
    return TrainState(params, AlternatingState(inner_states), strategies), import_weights(buffers, kept)


def load_model(path: str | Path) -> UR4Rec:
    """The model of a checkpoint, text vectors included, without a trainer: to score, not to train on.

    Raises:
        CheckpointError: It is missing, damaged or of another version.
    """
    loaded = _read(path)
    config = ModelConfig(**loaded.state["model"])
    vectors_IT = loaded.weights["retriever.item_text_vectors"][: config.num_items]
    vectors_UT = loaded.weights["retriever.user_text_vectors"][: config.num_users] if config.num_users else None
    settings = {name: value for name, value in asdict(config).items() if name not in ("num_items", "num_users")}
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: UR4Rec(config.num_items, vectors_IT, user_text_vectors=vectors_UT, **settings))
    )
    return nnx.merge(graphdef, import_weights(nnx.to_pure_dict(state), loaded.weights))


def _read(path: str | Path) -> Loaded:
    arrays, state = read_checkpoint(path)
    try:
        return Loaded(load_safetensors(arrays[MODEL_FILE]), load_safetensors(arrays[OPTIMIZER_FILE]), state)
    except SafetensorError as error:
        raise CheckpointError(f"{path} must hold safetensors, got something else ({error})") from error


def _export_adam(adam: optax.ScaleByAdamState) -> dict[str, NDArray[Any]]:
    """As PyTorch keeps it: nothing before the first update, and the count beside each parameter."""
    if not int(adam.count):
        return {}
    named = {key: export_weights(getattr(adam, field)) for key, field in _MOMENTS.items()}
    moments = {f"{name}/{key}": array for key, arrays in named.items() for name, array in arrays.items()}
    return moments | {f"{name}/step": np.asarray(adam.count, np.float32) for name in named["exp_avg"]}


def _import_adam(
    part: str, adam: optax.ScaleByAdamState, moments: Mapping[str, NDArray[Any]]
) -> optax.ScaleByAdamState:
    own = {key: value for key, value in moments.items() if key.startswith(f"{part}.")}
    if not own:
        return optax.ScaleByAdamState(
            jnp.zeros_like(adam.count),
            *(jax.tree.map(jnp.zeros_like, getattr(adam, field)) for field in _MOMENTS.values()),
        )
    steps = {float(value) for key, value in own.items() if key.endswith("/step")}
    if len(steps) != 1:
        raise CheckpointError(
            f"all parameters of {part!r} must have had the same number of updates, got {sorted(steps)}; "
            "parameters frozen by hand in PyTorch cannot go on in JAX"
        )
    fields = {
        field: import_weights(
            getattr(adam, field),
            {name.removesuffix(f"/{key}"): value for name, value in own.items() if name.endswith(f"/{key}")},
        )
        for key, field in _MOMENTS.items()
    }
    return optax.ScaleByAdamState(jnp.asarray(int(steps.pop()), adam.count.dtype), **fields)


def _export_strategies(strategies: StrategyState) -> dict[str, NDArray[Any]]:
    """What the strategies keep, by its names in a checkpoint."""
    arrays = {}
    if strategies.bank is not None:
        arrays |= dict(zip(_BANK, strategies.bank, strict=True))
    if strategies.log_variances_C is not None:
        arrays[LOG_VARIANCES] = strategies.log_variances_C
    return {name: np.asarray(array) for name, array in arrays.items()}


def _import_strategies(strategies: StrategyState, arrays: Mapping[str, NDArray[Any]]) -> StrategyState:
    """What `_export_strategies` gave, in the structure of these."""
    bank, log_variances_C = strategies
    if bank is not None:
        bank = MemoryBank(*(jnp.asarray(arrays[name]) for name in _BANK))
    if log_variances_C is not None:
        log_variances_C = jnp.asarray(arrays[LOG_VARIANCES])
    return StrategyState(bank, log_variances_C)
