"""Checkpoints of a PyTorch run: tensors to safetensors and back. See `ur4rec.training.checkpoint`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.optim import Optimizer

from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, check_same, read_checkpoint, write_checkpoint
from ur4rec_torch.ur4rec import UR4Rec


class Loaded(NamedTuple):
    """A checkpoint that fits."""

    weights: dict[str, Tensor]
    """Parameters and buffers by their names in the model."""
    moments: dict[str, Tensor]
    """Optimizer state: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter, as ``name/exp_avg``; and what the
    strategies keep, by the names of `ur4rec.training.components`."""
    state: dict[str, Any]
    """Everything else."""


def save(
    path: str | Path,
    model: UR4Rec,
    optimizers: Mapping[str, Optimizer],
    strategies: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint; ``path`` never holds half of one."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    moments = {
        f"{module}.{name}/{key}": value.cpu().contiguous()
        for module, optimizer in optimizers.items()
        for name, parameter in model.get_submodule(module).named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    moments |= {name: value.cpu().contiguous() for name, value in strategies.items()}
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


def restore(loaded: Loaded, model: UR4Rec, optimizers: Mapping[str, Optimizer]) -> None:
    """Put weights and optimizer state back."""
    model.load_state_dict(loaded.weights)
    for module, optimizer in optimizers.items():
        _restore_optimizer(optimizer, model.get_submodule(module), module, loaded.moments)


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
    model = UR4Rec(config.num_items, vectors_IT, user_text_vectors=vectors_UT, **settings)
    model.load_state_dict(loaded.weights)
    return model.eval()


def _read(path: str | Path) -> Loaded:
    arrays, state = read_checkpoint(path)
    try:
        return Loaded(load_safetensors(arrays[MODEL_FILE]), load_safetensors(arrays[OPTIMIZER_FILE]), state)
    except SafetensorError as error:
        raise CheckpointError(f"{path} must hold safetensors, got something else ({error})") from error


def _restore_optimizer(optimizer: Optimizer, module: nn.Module, prefix: str, moments: Mapping[str, Tensor]) -> None:
    """AdamW numbers its parameters in the order of the module's."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, _) in enumerate(module.named_parameters()):
        start = f"{prefix}.{name}/"
        own = {key.removeprefix(start): value for key, value in moments.items() if key.startswith(start)}
        if own:
            state[index] = own
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
