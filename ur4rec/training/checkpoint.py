"""Checkpoints: a directory of arrays and one JSON file, written whole, checksummed and versioned; no pickle.

``model.safetensors`` and ``optimizer.safetensors`` hold arrays, ``state.json`` the rest with the SHA-256 of both.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ur4rec.errors import CheckpointError
from ur4rec.files import write_directory

VERSION = 3
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


def write_checkpoint(path: str | Path, arrays: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; ``path`` never holds half of one. An earlier checkpoint there is replaced.

    Args:
        path: The directory to make.
        arrays: The content of `MODEL_FILE` and `OPTIMIZER_FILE`.
        state: JSON values: configuration, counters, schedule.
    """
    document = {"version": VERSION, "sha256": {name: _digest(content) for name, content in arrays.items()}, **state}
    text = json.dumps({**document, "checksum": _checksum(document)}, indent=1)
    write_directory(Path(path), {**arrays, STATE_FILE: text.encode()})


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
