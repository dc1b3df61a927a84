"""The arrays of a PyTorch run's checkpoint, from tensors and back; see `ur4rec.training.checkpoint`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import is_pruned
from torch.optim import Optimizer

from ur4rec.errors import ConfigurationError
from ur4rec.training.checkpoint import Arrays, load_checkpoint, saved_model
from ur4rec.training.shapes import AVERAGE, CACHED, ENCODED_TEXTS
from ur4rec_torch.device import to_host
from ur4rec_torch.layout import Layout
from ur4rec_torch.spread import spread_like
from ur4rec_torch.strategies import Strategies
from ur4rec_torch.ur4rec import UR4Rec

if TYPE_CHECKING:
    from ur4rec_torch.averages import Averages

_CACHED = f"{ENCODED_TEXTS}/{CACHED}"


def export_arrays(
    model: UR4Rec,
    optimizers: Mapping[str, Optimizer],
    strategies: Strategies,
    averages: "Averages | None",
    layout: Layout,
) -> tuple[Arrays, Arrays]:
    """The weights and moments of a `ur4rec.training.checkpoint.Checkpoint`, in whatever layout those of one process.

    All processes must call it together; process 0 has all arrays, the others those that each has whole.
    """
    moments = {
        f"{module}.{plain_name(name)}/{key}": value
        for module, optimizer in optimizers.items()
        for name, parameter in model.get_submodule(module).named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    moments |= strategies.state_dict()
    if averages is not None:
        moments |= averages.state_dict()
    weights = {plain_name(name): value for name, value in model.state_dict().items()}
    if model.config.has_text_encoder and model.text_encoder.is_stale:
        weights[ENCODED_TEXTS], moments[_CACHED] = model.text_encoder.current(), model.text_encoder.vectors
    return _to_arrays(weights, layout), _to_arrays(moments, layout)


def restore_arrays(
    weights: Arrays,
    moments: Arrays,
    model: UR4Rec,
    optimizers: Mapping[str, Optimizer],
    strategies: Strategies,
    averages: "Averages | None",
    layout: Layout,
) -> None:
    """Put back what `export_arrays` gave in process 0, in all processes."""
    current = {plain_name(name): (name, tensor) for name, tensor in model.state_dict().items()}
    tensors = _to_tensors(layout.cut(weights))
    for name, tensor in tensors.items():
        if name in current:
            tensors[name] = spread_like(tensor, current[name][1])
    model.load_state_dict({current.get(name, (name,))[0]: tensor for name, tensor in tensors.items()})
    tensors = _to_tensors(layout.cut(moments))
    for module, optimizer in optimizers.items():
        _restore_optimizer(optimizer, model.get_submodule(module), module, tensors)
    strategies.load_state_dict(tensors)
    if averages is not None:
        averages.load_state_dict(tensors)
    if model.config.has_text_encoder:
        vectors_JT = model.text_encoder.vectors
        if (cached_JT := tensors.get(_CACHED)) is None:
            model.text_encoder.restore(vectors_JT)
        else:
            model.text_encoder.restore(cached_JT, vectors_JT.clone())


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
    num_known = saved_model(loaded.state).num_items
    if later_items is not None:
        loaded = loaded.with_items(later_items)
    model = UR4Rec(**loaded.model_arguments())
    model.load_state_dict(_to_tensors(loaded.weights))
    if model.config.has_text_encoder:
        model.text_encoder.encode_from(num_known)
    return model.eval()


def refuse_renamed(model: nn.Module) -> None:
    """Refuse a model whose weights are kept under other names, or as other tensors, than `load_model` looks for.

    Raises:
        ConfigurationError: A part of it is parametrized or pruned.
    """
    for name, module in reversed(list(model.named_modules())):  # the innermost first: it is to be named
        if is_parametrized(module) or is_pruned(module):
            raise ConfigurationError(
                f"weights must be plain parameters to be saved, but {plain_name(name) or 'the model'} is parametrized "
                "or pruned; make that permanent with torch.nn.utils.parametrize.remove_parametrizations or prune.remove"
            )


def plain_name(name: str) -> str:
    """The name that a parameter has without ``torch.compile`` around the model or a part of it.

    Example:
        >>> plain_name("_orig_mod.sasrec._orig_mod.item_embedding.weight")
        'sasrec.item_embedding.weight'
    """
    return name.replace("_orig_mod.", "")


def _restore_optimizer(optimizer: Optimizer, module: nn.Module, prefix: str, moments: Mapping[str, Tensor]) -> None:
    """AdamW numbers its parameters in the order of the module's."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(module.named_parameters()):
        start = f"{prefix}.{plain_name(name)}/"
        own = {
            key.removeprefix(start): spread_like(value, parameter) if value.ndim else value
            for key, value in moments.items()
            if key.startswith(start) and key != f"{start}{AVERAGE}"
        }
        if own:
            state[index] = own
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _to_arrays(tensors: Mapping[str, Tensor], layout: Layout) -> Arrays:
    in_order = sorted(tensors.items())  # the same in all processes: that of what was loaded is not
    whole = ((name, layout.gather(name, tensor)) for name, tensor in in_order)
    return {name: to_host(tensor) for name, tensor in whole if tensor is not None}


def _to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}
