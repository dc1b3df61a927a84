"""Checkpoints: a directory of arrays and one JSON file, written whole, checksummed and versioned; no pickle.

``model.safetensors`` and ``optimizer.safetensors`` hold arrays, ``state.json`` the rest with the SHA-256 of both.
Arrays have PyTorch's names and layout, so either backend loads what the other saved, optimizer state included.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.errors import CheckpointError
from ur4rec.files import write_directory

VERSION = 3
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"

Arrays = dict[str, NDArray[Any]]


class Checkpoint(NamedTuple):
    """The content of a checkpoint."""

    weights: Arrays
    """Parameters and buffers by their names in the model."""
    moments: Arrays
    """Optimizer state: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter, as ``name/exp_avg``; and what the
    strategies and the payoff probe keep, by the names of `ur4rec.training.components` and
    `ur4rec.schedule.payoff_probe`."""
    state: dict[str, Any]
    """JSON values: configuration, counters, schedule."""

    def check_settings(self, model: ModelConfig, trainer: TrainerConfig) -> None:
        """Refuse a checkpoint of another configuration.

        Raises:
            CheckpointError: Naming every setting that differs.
        """
        check_same("model", self.state["model"], asdict(model))
        check_same("training configuration", self.state["trainer"], asdict(trainer))

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `UR4Rec` for a model of this shape, text vectors included; its weights are to be loaded."""
        settings = asdict(ModelConfig(**self.state["model"]))
        num_items, num_users = settings["num_items"], settings.pop("num_users")
        vectors_UT = self.weights["retriever.user_text_vectors"][:num_users] if num_users else None
        vectors_IT = self.weights["retriever.item_text_vectors"][:num_items]
        return {**settings, "item_text_vectors": vectors_IT, "user_text_vectors": vectors_UT}


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; ``path`` never holds half of one. An earlier checkpoint there is replaced."""
    arrays = {MODEL_FILE: checkpoint.weights, OPTIMIZER_FILE: checkpoint.moments}
    write_checkpoint(path, {name: save_safetensors(content) for name, content in arrays.items()}, checkpoint.state)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: It is missing, damaged, of another version, or a weight is NaN or infinite.
    """
    files, state = read_checkpoint(path)
    try:
        loaded = Checkpoint(load_safetensors(files[MODEL_FILE]), load_safetensors(files[OPTIMIZER_FILE]), state)
    except SafetensorError as error:
        raise CheckpointError(f"{path} must hold safetensors, got something else ({error})") from error
    for name, array in loaded.weights.items():
        if not (finite := np.isfinite(array)).all():
            raise CheckpointError(
                f"weights must be finite, got {array[~finite][0]} in {name!r} of {Path(path) / MODEL_FILE} "
                f"({np.sum(~finite)} of its {array.size} numbers are not); take another checkpoint, or train again "
                "with a lower learning rate"
            )
    return loaded


def write_checkpoint(path: str | Path, arrays: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint; see `save_checkpoint`.

    Args:
        path: The directory to make.
        arrays: The content of `MODEL_FILE` and `OPTIMIZER_FILE`.
        state: JSON values.
    """
    document = {"version": VERSION, "sha256": {name: _digest(content) for name, content in arrays.items()}, **state}
    state_json = json.dumps({**document, "checksum": _checksum(document)}, indent=1)
    write_directory(Path(path), {**arrays, STATE_FILE: state_json.encode()})


def read_checkpoint(path: str | Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files and the state of a checkpoint, known to be whole.

    Raises:
        CheckpointError: There is none, it is damaged, or it is of another version.
    """
    directory = Path(path)
    state = _read_state(directory)
    arrays = {name: _read_file(directory / name) for name in (MODEL_FILE, OPTIMIZER_FILE)}
    for name, content in arrays.items():
        if state["sha256"].get(name) != _digest(content):
            raise CheckpointError(
                f"{directory / name} is damaged: its SHA-256 is not the one in {STATE_FILE}; take another checkpoint"
            )
    return arrays, state


def check_same(what: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another configuration.

    Raises:
        CheckpointError: Naming every setting that differs.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    different = [name for name in sorted({*saved, *current}) if saved.get(name) != current.get(name)]
    if different:
        listed = "; ".join(f"{name} was {saved.get(name)!r}, is {current.get(name)!r}" for name in different)
        raise CheckpointError(f"the checkpoint is of another {what} ({listed}); use the settings it was saved with")


def _read_state(directory: Path) -> dict[str, Any]:
    path = directory / STATE_FILE
    content = _read_file(path)
    try:
        state = json.loads(content)
        version = state.pop("version")
        checksum = state.pop("checksum")
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}); take another checkpoint") from error
    if version != VERSION:
        raise CheckpointError(f"{path} must be of version {VERSION}, got {version!r}; load it with that release")
    if checksum != _checksum({"version": version, **state}):
        raise CheckpointError(f"{path} is damaged: its checksum does not match; take another checkpoint")
    return dict(state)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"a checkpoint is a directory with {MODEL_FILE}, {OPTIMIZER_FILE} and {STATE_FILE}; "
            f"{path} cannot be read ({error.strerror})"
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(document: Mapping[str, Any]) -> str:
    return _digest(json.dumps(document, sort_keys=True).encode())
