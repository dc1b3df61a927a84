"""Checkpoints: a directory of arrays and one JSON file, written whole, checksummed and versioned; no pickle.

``model.safetensors`` and ``optimizer.safetensors`` hold arrays, ``state.json`` the rest with the SHA-256 of both. Text
vectors never change: the checkpoints of a run share one file of them, ``texts-HASH.safetensors`` beside their
directories, by its SHA-256; a checkpoint that is saved alone holds its own.

Arrays have PyTorch's names and layout, so either backend loads what the other saved, optimizer state included.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from alternator.checks import cut, listed
from ur4rec.config import AUTO, ModelConfig, TrainerConfig
from ur4rec.errors import CheckpointError, ConfigurationError, refuse_malformed
from ur4rec.files import in_lines, parse_object, write_directory, write_whole
from ur4rec.schedule.trial_probe import SNAPSHOTS
from ur4rec.text.encoders import check_text_vectors
from ur4rec.text.tokens import check_tokens
from ur4rec.training.shapes import (
    AVERAGE,
    ENCODED_TEXTS,
    ITEM_EMBEDDING,
    ITEM_POPULARITY,
    ITEM_TEXTS,
    ITEM_TOKENS,
    USER_TEXTS,
    Shape,
    check_moments,
    check_weights,
)

VERSION = 3
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"

FROZEN = (ITEM_TEXTS, USER_TEXTS, ITEM_TOKENS, ITEM_POPULARITY)
"""What never changes in the course of a run."""
WEIGHTS, MOMENTS = "weights.", "moments."
"""In a snapshot of a `Trial` schedule, the names of weights and moments begin so; see `ur4rec.training.undo`."""
_PARTS = ("sha256", "model", "trainer", "progress", "schedule", "metrics")
"""The objects in the state of a checkpoint."""

Arrays = dict[str, NDArray[Any]]


class Checkpoint(NamedTuple):
    """The content of a checkpoint."""

    weights: Arrays
    """Parameters and buffers by their names in the model."""
    moments: Arrays
    """Optimizer state: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter, as ``name/exp_avg``, and with
    ``ema_decay`` its ``average``; and what the strategies and the probes keep, by the names of
    `ur4rec.training.components`, `ur4rec.schedule.payoff_probe` and `ur4rec.schedule.trial_probe`."""
    state: dict[str, Any]
    """JSON values: configuration, counters, schedule."""

    def check_settings(self, model: ModelConfig, trainer: TrainerConfig) -> None:
        """Refuse a checkpoint of another configuration.

        Raises:
            CheckpointError: Naming every setting that differs.
        """
        check_same("model", asdict(saved_model(self.state)), asdict(model))
        saved = _saved_trainer(self.state, length_groups=trainer.length_groups)
        check_same("training configuration", asdict(saved), asdict(trainer))

    @property
    def length_groups(self) -> bool:
        """Whether its run divides rows by their lengths; one that is older than this does not."""
        return _saved_trainer(self.state).length_groups

    def averaged(self) -> "Checkpoint":
        """The checkpoint of the model to score with: its weights are their averages, where it was trained with any."""
        if not _saved_trainer(self.state).ema_decay:
            return self
        return self._replace(weights={**self.weights, **averages_of(self.weights, self.moments)})

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `UR4Rec` for a model of this shape, text vectors included; its weights are to be loaded."""
        settings = asdict(saved_model(self.state))
        num_items, num_users = settings["num_items"], settings.pop("num_users")
        if settings["fusion_popularity"]:
            settings["item_counts"] = np.expm1(self.weights[ITEM_POPULARITY][:num_items])
        if saved_model(self.state).has_text_encoder:
            tokens_IS, vectors_IT = (self.weights[name][:num_items] for name in (ITEM_TOKENS, ENCODED_TEXTS))
            return {**settings, "item_tokens": tokens_IS, "item_text_vectors": vectors_IT}
        vectors_UT = self.weights[USER_TEXTS][:num_users] if num_users else None
        vectors_IT = self.weights[ITEM_TEXTS][:num_items]
        return {**settings, "item_text_vectors": vectors_IT, "user_text_vectors": vectors_UT}

    def with_items(self, texts: ArrayLike) -> "Checkpoint":
        """The checkpoint of a model that also knows items that came after it was trained, by their texts alone.

        They follow the items that it knows. The retriever gets their text vectors. For SASRec each is the mean of the
        items that it has learned, as a part of a history and as a candidate: so its logit is the mean of their logits,
        which neither favours nor hides it. Nothing else changes: known items have the scores that they had.

        Args:
            texts: One text vector per item, (C, T), from the encoder of the others; for a model with a text encoder the
                tokens of its text, (C, S), whose vectors are zeros in the result: the model is to encode them.

        Raises:
            ConfigurationError: The vectors or tokens do not fit the model.
        """
        model = saved_model(self.state)
        count, known = len(np.asarray(texts)), model.num_items
        rows: dict[str, NDArray[Any]]
        if model.has_text_encoder:
            rows = {
                ITEM_TOKENS: check_tokens(texts, model, count=count),
                ENCODED_TEXTS: np.zeros((count, model.text_embedding_dim), np.float32),
            }
        else:
            rows = {ITEM_TEXTS: check_text_vectors("item", texts, count=count, dim=model.text_embedding_dim)}
        mean_d = self.weights[ITEM_EMBEDDING][:known].mean(axis=0, dtype=np.float64).astype(np.float32)
        rows[ITEM_EMBEDDING] = np.tile(mean_d, (count, 1))
        if model.fusion_popularity:
            rows[ITEM_POPULARITY] = np.zeros(count, np.float32)
        longer = {name: np.insert(self.weights[name], known, each, axis=0) for name, each in rows.items()}
        state = {**self.state, "model": {**self.state["model"], "num_items": known + count}}
        return self._replace(weights={**self.weights, **longer}, state=state)


def remedy_for(path: str | Path) -> str:
    """What to do about a checkpoint that is damaged, for messages: whether there is another to take depends on its run.

    Args:
        path: The checkpoint; others are directories beside it.

    Example:
        >>> remedy_for("no/such/run/checkpoint/step-7")
        'restore it, or train again: no other checkpoint is beside it'
    """
    others = _others(path)
    return f"restore it, or {others}" if others else "restore it, or train again: no other checkpoint is beside it"


def _others(path: str | Path) -> str:
    """How to take another checkpoint; empty where none is beside this one."""
    own = Path(path).absolute()
    there = sorted(each.parent.name for each in own.parent.glob(f"*/{STATE_FILE}") if each.parent != own)
    if not there:
        return ""
    return (
        f"take another checkpoint, of which {listed(there)} {'is' if len(there) == 1 else 'are'} beside it: by "
        "--checkpoint, or for --resume by its name in the file LATEST"
    )


def averages_of(weights: Iterable[str], moments: Arrays) -> Arrays:
    """The averages of weights among the moments, by the names of the weights.

    Example:
        >>> averages_of(["fusion.weights"], {"fusion.weights/average": np.ones(2), "fusion.weights/step": np.ones(())})
        {'fusion.weights': array([1., 1.])}
    """
    return {name: moments[key] for name in weights if (key := f"{name}/{AVERAGE}") in moments}


class SharedTexts:
    """Writes the text vectors of a run once, beside its checkpoints."""

    def __init__(self) -> None:
        self._digest: str | None = None

    def write(self, folder: Path, weights: Arrays) -> str:
        """Make sure that the file of the text vectors is in the folder.

        Args:
            folder: Where the checkpoints are.
            weights: Those of a checkpoint; their text vectors are always the same.

        Returns:
            The file's SHA-256.
        """
        if self._digest is None or not (folder / _texts_file(self._digest)).exists():
            content = save_safetensors({name: weights[name] for name in FROZEN if name in weights})
            self._digest = _digest(content)
            write_whole(folder / _texts_file(self._digest), content)
        return self._digest


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, texts: SharedTexts | None = None) -> None:
    """Write a checkpoint; ``path`` never holds half of one. An earlier checkpoint there is replaced.

    Args:
        path: The directory to make.
        checkpoint: Its content.
        texts: Keeps the text vectors beside ``path``; None keeps them in it.
    """
    weights, state = checkpoint.weights, checkpoint.state
    if texts is not None:
        state = {**state, "texts": texts.write(Path(path).parent, weights)}
        weights = {name: array for name, array in weights.items() if name not in FROZEN}
    arrays = {MODEL_FILE: weights, OPTIMIZER_FILE: checkpoint.moments}
    write_checkpoint(path, {name: save_safetensors(content) for name, content in arrays.items()}, state)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, known to be whole, and of weights that are those of its settings.

    Raises:
        CheckpointError: It is missing, damaged, of another version, or a weight is NaN or infinite.
    """
    files, state = read_checkpoint(path)
    with _refuse_other_formats(path):
        loaded = Checkpoint(load_safetensors(files[MODEL_FILE]), load_safetensors(files[OPTIMIZER_FILE]), state)
    if (digest := state.pop("texts", None)) is not None:
        loaded.weights.update(_read_texts(Path(path), digest))
    for name, weight in loaded.weights.items():
        expected = np.int32 if name == ITEM_TOKENS else np.float32
        if weight.dtype != expected:
            raise CheckpointError(f"{path}: weights must be {expected.__name__}, got {weight.dtype} in {name!r}")
    shapes = ({name: array.shape for name, array in each.items()} for each in loaded[:2])
    _check_shapes(state, *shapes)
    tried = {name: array for name, array in loaded.moments.items() if name.startswith(SNAPSHOTS)}
    averages = averages_of(loaded.weights, loaded.moments)
    for arrays, file in ((loaded.weights, MODEL_FILE), (tried | averages, OPTIMIZER_FILE)):
        _check_finite(Path(path) / file, arrays)
    if ITEM_TOKENS in loaded.weights:
        model = saved_model(state)
        try:
            check_tokens(loaded.weights[ITEM_TOKENS], model, count=model.num_items + 1)
        except ConfigurationError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    return loaded


def check_settings(path: str | Path, model: ModelConfig, trainer: TrainerConfig | None = None) -> None:
    """Refuse settings that are not a checkpoint's, or a checkpoint that is not of its settings.

    This is for settings from a file, before anything of the size that they ask for is made: of the arrays, only the
    headers are read.

    Args:
        path: The checkpoint.
        model: Settings of the model; the numbers of items and users, which come from the data, are left out.
        trainer: Settings of the trainer; None for a model that is not trained.

    Raises:
        CheckpointError: They do not fit, or the checkpoint is missing, damaged or of another version.
    """
    directory = Path(path)
    state = _read_state(directory)
    known = asdict(saved_model(state))  # with settings that have been added since
    from_data = {name: known[name] for name in ("num_items", "num_users")}
    check_same("model", known, {**asdict(model), **from_data})
    if trainer is not None:
        saved = _saved_trainer(state, length_groups=trainer.length_groups)
        chosen = saved.catalogue_loss if trainer.catalogue_loss == AUTO else trainer.catalogue_loss
        check_same("training configuration", asdict(saved), asdict(replace(trainer, catalogue_loss=chosen)))
    try:
        weights, moments = (_read_shapes(directory / name) for name in (MODEL_FILE, OPTIMIZER_FILE))
        if "texts" in state:
            weights |= _read_shapes(_find_texts(directory, state["texts"]))
        _check_shapes(state, weights, moments)
    except CheckpointError:
        read_checkpoint(directory)  # that a file is damaged says more than what does not fit for that reason
        if "texts" in state:
            _read_texts(directory, state["texts"])
        raise


def saved_model(state: Mapping[str, Any]) -> ModelConfig:
    """The shape of the model of a checkpoint.

    Raises:
        ConfigurationError, CheckpointError: There is no model of this shape.
    """
    with refuse_malformed(f"the model in {STATE_FILE}", "restore it, or train again", CheckpointError):
        return ModelConfig(**state["model"])


def _saved_trainer(state: Mapping[str, Any], *, length_groups: bool = False) -> TrainerConfig:
    """The settings of the trainer of a checkpoint; those that are newer have what there was before.

    Args:
        state: Of the checkpoint.
        length_groups: What this one is to have if it is newer.
    """
    with refuse_malformed(f"the trainer in {STATE_FILE}", "restore it, or train again", CheckpointError):
        return TrainerConfig(**{"catalogue_loss": "full", "length_groups": length_groups, **state["trainer"]})


def _texts_file(digest: str) -> str:
    return f"texts-{digest[:16]}.safetensors"


def _find_texts(directory: Path, digest: object) -> Path:
    """The file of the text vectors of a checkpoint, which is beside its directory."""
    if not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise CheckpointError(f"{directory / STATE_FILE} must name its texts by SHA-256, got {cut(repr(digest))}")
    path = directory.absolute().parent / _texts_file(digest)
    if not path.is_file():
        raise CheckpointError(
            f"{directory} shares its text vectors with the other checkpoints of its run, but {path.name} is not beside "
            "it; copy that file from the run's folder checkpoint, too"
        )
    return path


def _read_texts(directory: Path, digest: object) -> Arrays:
    """The text vectors of a checkpoint that are beside it, known to be whole."""
    path = _find_texts(directory, digest)
    content = _read_file(path)
    if _digest(content) != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {STATE_FILE}; restore it")
    with _refuse_other_formats(path):
        found = load_safetensors(content)
    if unknown := sorted(found.keys() - {*FROZEN}):
        raise CheckpointError(f"{path} must hold text vectors alone, got {unknown[0]!r}; restore it")
    return found


def _check_shapes(state: Mapping[str, Any], weights: Mapping[str, Shape], moments: Mapping[str, Shape]) -> None:
    model, trainer = saved_model(state), _saved_trainer(state)
    check_weights(model, weights)
    check_moments(model, trainer, weights, moments)
    for start in SNAPSHOTS:
        own = {name.removeprefix(start): shape for name, shape in moments.items() if name.startswith(start)}
        if own:
            tried = {name.removeprefix(WEIGHTS): shape for name, shape in own.items() if name.startswith(WEIGHTS)}
            tried |= {name: shape for name, shape in weights.items() if name in FROZEN}
            check_weights(model, tried)
            kept = {name.removeprefix(MOMENTS): shape for name, shape in own.items() if name.startswith(MOMENTS)}
            check_moments(model, trainer, tried, kept)


def _check_finite(file: Path, weights: Arrays) -> None:
    for name, array in weights.items():
        if not (finite := np.isfinite(array)).all():
            others = _others(file.parent)
            remedy = f"train again with a lower learning rate{', or ' if others else ''}{others}"
            raise CheckpointError(
                f"weights must be finite, got {array[~finite][0]} in {name!r} of {file} "
                f"({np.sum(~finite)} of its {array.size} numbers are not); {remedy}"
            )


def _read_shapes(path: Path) -> dict[str, Shape]:
    """The shape of each array of a safetensors file, by name."""
    _read_file(path, size=0)
    with _refuse_other_formats(path), safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _refuse_other_formats(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} must hold safetensors, got something else ({error}); restore it") from error


def write_checkpoint(path: str | Path, arrays: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint; see `save_checkpoint`.

    Args:
        path: The directory to make.
        arrays: The content of `MODEL_FILE` and `OPTIMIZER_FILE`.
        state: JSON values.
    """
    document = {"version": VERSION, "sha256": {name: _digest(content) for name, content in arrays.items()}, **state}
    state_json = in_lines({**document, "checksum": _checksum(document)}, allow_nan=True)
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
                f"{directory / name} is damaged: its SHA-256 is not the one in {STATE_FILE}; {remedy_for(directory)}"
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
        state = parse_object(content)
        version = state.pop("version")
        checksum = state.pop("checksum")
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}); {remedy_for(directory)}") from error
    if version != VERSION:
        raise CheckpointError(f"{path} must be of version {VERSION}, got {version!r}; load it with that release")
    if checksum != _checksum({"version": version, **state}):
        raise CheckpointError(f"{path} is damaged: its checksum does not match; {remedy_for(directory)}")
    for name in _PARTS:
        if not isinstance(state.get(name), dict):
            raise CheckpointError(f"{path} must have an object {name!r}, it has none; {remedy_for(directory)}")
    return state


def _read_file(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        remedy = f"; {remedy_for(path.parent)}" if path.parent.is_dir() else ""
        raise CheckpointError(
            f"a checkpoint is a directory with {MODEL_FILE}, {OPTIMIZER_FILE} and {STATE_FILE}; "
            f"{path} cannot be read ({error.strerror}){remedy}"
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(document: Mapping[str, Any]) -> str:
    return _digest(json.dumps(document, sort_keys=True).encode())
