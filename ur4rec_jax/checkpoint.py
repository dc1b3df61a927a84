"""The arrays of a JAX run's checkpoint, from pytrees and back; see `ur4rec.training.checkpoint`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from adapters.optax import AlternatingState
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import Arrays, load_checkpoint
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS, LOG_VARIANCES
from ur4rec_jax.state import TrainState
from ur4rec_jax.strategies import MemoryBank, StrategyState
from ur4rec_jax.ur4rec import UR4Rec

_MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
_BANK = (BANK_ITEMS, BANK_KEYS, BANK_CURSOR)


def export_arrays(train_state: TrainState, buffers: Any) -> tuple[Arrays, Arrays]:
    """The weights and moments of a `ur4rec.training.checkpoint.Checkpoint`."""
    moments = _export_strategies(train_state.strategies)
    for inner in train_state.optimizers.inner_states.values():
        moments |= _export_adam(inner[0])
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
    return TrainState(params, AlternatingState(inner_states), strategies), import_weights(buffers, kept)


def load_model(path: str | Path, *, later_items: ArrayLike | None = None) -> UR4Rec:
    """The model of a checkpoint, text vectors included, without a trainer: to score, not to train on.

    Args:
        path: The checkpoint.
        later_items: Text vectors of items that came later, (C, T): see `Checkpoint.with_items`. None is no such item.

    Raises:
        CheckpointError: It is missing, damaged or of another version.
    """
    loaded = load_checkpoint(path)
    if later_items is not None:
        loaded = loaded.with_items(later_items)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UR4Rec(**loaded.model_arguments())))
    model: UR4Rec = nnx.merge(graphdef, import_weights(nnx.to_pure_dict(state), loaded.weights))
    return model


def _export_adam(adam: optax.ScaleByAdamState) -> Arrays:
    """As PyTorch keeps it: nothing before the first update, and the count beside each parameter."""
    if not int(adam.count):
        return {}
    named = {key: export_weights(getattr(adam, field)) for key, field in _MOMENTS.items()}
    moments = {f"{name}/{key}": array for key, arrays in named.items() for name, array in arrays.items()}
    return moments | {f"{name}/step": np.asarray(adam.count, np.float32) for name in named["exp_avg"]}


def _import_adam(part: str, adam: optax.ScaleByAdamState, moments: Arrays) -> optax.ScaleByAdamState:
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


_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def export_weights(tree: Any) -> dict[str, NDArray[Any]]:
    """Arrays by canonical name, laid out as in PyTorch.

    Args:
        tree: Nested dictionaries: the model's parameters or a part of them, or what an optimizer keeps for each.
    """
    return {canonical_name(path): _turned(path, np.asarray(leaf)) for path, leaf in _leaves(tree)}


def import_weights(tree: Any, weights: Mapping[str, NDArray[Any]]) -> Any:
    """A tree like this one with the arrays that `export_weights` returns.

    Raises:
        CheckpointError: A name is missing or unknown, or a shape differs.
    """
    named = {canonical_name(path): (path, leaf) for path, leaf in _leaves(tree)}
    if different := sorted(set(named) ^ set(weights)):
        listed = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise CheckpointError(f"the weights must be of the same model, but only one of the two has {listed}")
    arrays = [_turned(path, np.asarray(weights[name])) for name, (path, _) in named.items()]
    for (name, (path, leaf)), array in zip(named.items(), arrays, strict=True):
        if array.shape != leaf.shape:
            shapes = (_turned(path, each).shape for each in (leaf, array))
            raise CheckpointError("{} must have the shape {}, got {}".format(name, *shapes))
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(array) for array in arrays])


def canonical_name(path: tuple[str, ...]) -> str:
    """The name in PyTorch of what is at a path of the model's state.

    Example:
        >>> canonical_name(("sasrec", "blocks", "layers", "0", "attention", "query", "kernel"))
        'sasrec.blocks.0.attention.query.weight'
    """
    *modules, leaf = (part for part in path if part != "layers")
    return ".".join((*modules, _LEAF_NAMES.get(leaf, leaf)))


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(tuple(str(key.key) for key in keys), leaf) for keys, leaf in flat]


def _turned(path: tuple[str, ...], array: Any) -> NDArray[Any]:
    """From Flax's layout to PyTorch's or back: linear layers hold the transposed matrix."""
    return np.ascontiguousarray(array.T) if path[-1] == "kernel" else np.asarray(array)
