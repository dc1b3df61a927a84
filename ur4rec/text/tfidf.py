"""TF-IDF with a truncated SVD (latent semantic analysis), learned from some texts and applied to any.

Shapes: N texts, D dimensions, V words, K components.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_TOKENS = {"sublinear_tf": True, "token_pattern": r"(?u)\b\w+\b"}
LARGE = 2**16
"""Of more texts than this number, words and components are those of so many of them, evenly chosen: a decomposition of
all would take gigabytes for components that are hardly others."""
_BLOCK, _DIRECTIONS = 2**14, 16
"""Texts, and random directions, that are multiplied at once."""


@dataclass(frozen=True, eq=False)
class Tfidf:
    """Words, their weights and the components that they are reduced to.

    Example:
        >>> model, vectors = Tfidf.fit(["a red fox", "a red hen", "blue"], dim=4)
        >>> model.words, bool(np.allclose(model.encode(["a red fox"], 4), vectors[:1]))
        (['a', 'blue', 'fox', 'hen', 'red'], True)
    """

    words: list[str]
    """The words, none of which has a line end."""
    idf_V: NDArray[np.float64]
    """The inverse document frequency of each."""
    components_KV: NDArray[Any] | None = None
    """The right singular vectors; None where there are no more words than dimensions, or directions are random."""
    num_directions: int = 0
    """The number of random directions, where no two texts share a word: drawn again when they are needed."""

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int) -> "tuple[Tfidf, NDArray[np.float32]]":
        """Learn from texts, and their vectors, (N, D): zeros for a text without a known word."""
        from sklearn.decomposition import TruncatedSVD

        learned = texts if len(texts) <= LARGE else _evenly_chosen(texts)
        if (counted := _count(learned)) is None:
            return cls([], np.zeros(0)), np.zeros((len(texts), dim), np.float32)
        words, idf_V, weights_NV = counted
        if len(words) > dim and weights_NV.getnnz(axis=0).max() == 1:
            return cls._fit_directions(texts, dim)
        if len(words) <= dim:
            model = cls(words, idf_V)
            return model, model._reduce(weights_NV, dim) if learned is texts else model.encode(texts, dim)
        svd = TruncatedSVD(min(dim, len(texts)), random_state=0)
        reduced_NK = svd.fit_transform(weights_NV)
        model = cls(words, idf_V, svd.components_)
        return model, _filled(reduced_NK, dim) if learned is texts else model.encode(texts, dim)

    @classmethod
    def _fit_directions(cls, texts: Sequence[str], dim: int) -> "tuple[Tfidf, NDArray[np.float32]]":
        """A direction per word, of all texts. Words that never meet have no others: an SVD would find but these."""
        logger.warning(
            "no two item texts share a word: they say nothing about which items are alike, and each gets random "
            "numbers as its vector; give the items' titles or texts, if there are any (--items FILE)"
        )
        words, idf_V, weights_NV = _count(texts) or ([], np.zeros(0), None)
        model = cls(words, idf_V, None, min(dim, len(texts)))
        return model, model._reduce(weights_NV, dim)

    def encode(self, texts: Sequence[str], dim: int) -> NDArray[np.float32]:
        """The vectors of any texts, (N, D): zeros for a text without a known word."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not self.words or not texts:
            return np.zeros((len(texts), dim), np.float32)
        vectorizer = TfidfVectorizer(**_TOKENS, vocabulary=self.words)
        vectorizer.idf_ = self.idf_V
        return self._reduce(vectorizer.transform(texts), dim)

    def _reduce(self, weights_NV: Any, dim: int) -> NDArray[np.float32]:
        """The vectors of weighted words, a block at a time."""
        vectors_ND = np.zeros((weights_NV.shape[0], dim), np.float32)
        if self.num_directions:
            for start, directions_kV in _random_directions(self.num_directions, len(self.words)):
                vectors_ND[:, start : start + len(directions_kV)] = weights_NV @ directions_kV.T
            return vectors_ND
        for start in range(0, len(vectors_ND), _BLOCK):
            block_nV = weights_NV[start : start + _BLOCK]
            reduced_nK = block_nV.toarray() if self.components_KV is None else block_nV @ self.components_KV.T
            vectors_ND[start : start + _BLOCK, : reduced_nK.shape[1]] = reduced_nK
        return vectors_ND

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays to be kept in a file; components in single precision."""
        words = np.frombuffer("\n".join(self.words).encode(), np.uint8)
        arrays: dict[str, NDArray[Any]] = {"words": words, "idf": self.idf_V}
        if self.components_KV is not None:
            arrays["components"] = np.ascontiguousarray(self.components_KV, np.float32)
        if self.num_directions:
            arrays["directions"] = np.array([self.num_directions])
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], dim: int) -> "Tfidf":
        """What `to_arrays` gave.

        Raises:
            KeyError, ValueError: The arrays are not those of such a model.
        """
        words = arrays["words"].tobytes().decode()
        num_directions = int(arrays["directions"][0]) if "directions" in arrays else 0
        model = cls(words.split("\n") if words else [], arrays["idf"], arrays.get("components"), num_directions)
        size = len(model.words)
        if model.idf_V.shape != (size,) or len(set(model.words)) != size:
            raise ValueError(f"{size} words need as many weights and no repetition, got {model.idf_V.shape} weights")
        width = num_directions or (size if model.components_KV is None else len(model.components_KV))
        if not 0 <= width <= dim or (model.components_KV is not None and model.components_KV.shape != (width, size)):
            raise ValueError(f"the components are not of {size} words and at most {dim} dimensions")
        return model


def _evenly_chosen(texts: Sequence[str]) -> list[str]:
    return [texts[place] for place in np.linspace(0, len(texts) - 1, LARGE, dtype=np.int64)]


def _count(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64], Any] | None:
    """The words of texts, their inverse document frequencies and their weights in each, (N, V); None without words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**_TOKENS)
    try:
        weights_NV = vectorizer.fit_transform(texts)
    except ValueError:
        logger.warning("no item text has a word: every text gets the same vector")
        return None
    return vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, weights_NV


def _random_directions(num: int, num_words: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Some directions at a time, (k, V), each with the number of those before: always the same ones."""
    rng = np.random.default_rng(0)
    for start in range(0, num, _DIRECTIONS):
        drawn_kV = rng.standard_normal((min(_DIRECTIONS, num - start), num_words), np.float32)
        yield start, drawn_kV / np.float32(num**0.5)


def _filled(vectors_NK: NDArray[Any], dim: int) -> NDArray[np.float32]:
    """The vectors with zeros up to that number of dimensions."""
    filled_ND = np.zeros((len(vectors_NK), dim), np.float32)
    filled_ND[:, : vectors_NK.shape[1]] = vectors_NK
    return filled_ND
