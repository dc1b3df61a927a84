"""TF-IDF with a truncated SVD (latent semantic analysis), learned from some texts and applied to any.

Shapes: N texts, D dimensions, V words, K components.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_TOKENS = {"sublinear_tf": True, "token_pattern": r"(?u)\b\w+\b"}


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
    components_KV: NDArray[Any] | None
    """The right singular vectors, or random directions where no two texts share a word; None where there are no more
    words than dimensions."""

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int) -> "tuple[Tfidf, NDArray[np.float32]]":
        """Learn from texts, and their vectors, (N, D): zeros for a text without a word."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            vectorizer = TfidfVectorizer(**_TOKENS)
            weights_NV = vectorizer.fit_transform(texts)
        except ValueError:
            logger.warning("no item text has a word: every text gets the same vector")
            return cls([], np.zeros(0), None), np.zeros((len(texts), dim), np.float32)
        words = vectorizer.get_feature_names_out().tolist()
        if len(words) <= dim:
            return cls(words, vectorizer.idf_, None), _filled(weights_NV.toarray(), dim)
        if weights_NV.getnnz(axis=0).max() == 1:
            logger.warning("no two item texts share a word: they say nothing about which items are alike")
            components_KV = _random_directions(min(dim, len(texts)), len(words))
            return cls(words, vectorizer.idf_, components_KV), _filled(weights_NV @ components_KV.T, dim)
        svd = TruncatedSVD(min(dim, len(texts)), random_state=0)
        reduced_NK = svd.fit_transform(weights_NV)
        return cls(words, vectorizer.idf_, svd.components_), _filled(reduced_NK, dim)

    def encode(self, texts: Sequence[str], dim: int) -> NDArray[np.float32]:
        """The vectors of any texts, (N, D): zeros for a text without a known word."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not self.words or not texts:
            return np.zeros((len(texts), dim), np.float32)
        vectorizer = TfidfVectorizer(**_TOKENS, vocabulary=self.words)
        vectorizer.idf_ = self.idf_V
        weights_NV = vectorizer.transform(texts)
        if self.components_KV is None:
            return _filled(weights_NV.toarray(), dim)
        return _filled(weights_NV @ self.components_KV.T, dim)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays to be kept in a file; components in single precision."""
        words = np.frombuffer("\n".join(self.words).encode(), np.uint8)
        arrays: dict[str, NDArray[Any]] = {"words": words, "idf": self.idf_V}
        if self.components_KV is not None:
            arrays["components"] = np.ascontiguousarray(self.components_KV, np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], dim: int) -> "Tfidf":
        """What `to_arrays` gave.

        Raises:
            KeyError, ValueError: The arrays are not those of such a model.
        """
        words = arrays["words"].tobytes().decode()
        model = cls(words.split("\n") if words else [], arrays["idf"], arrays.get("components"))
        size = len(model.words)
        if model.idf_V.shape != (size,) or len(set(model.words)) != size:
            raise ValueError(f"{size} words need as many weights and no repetition, got {model.idf_V.shape} weights")
        width = size if model.components_KV is None else len(model.components_KV)
        if width > dim or (model.components_KV is not None and model.components_KV.shape != (width, size)):
            raise ValueError(f"the components are not of {size} words and at most {dim} dimensions")
        return model


def _random_directions(num: int, num_words: int) -> NDArray[np.float32]:
    """A direction per word, (K, V). Words that never meet have no others: a decomposition would find but these."""
    return np.random.default_rng(0).standard_normal((num, num_words), np.float32) / np.float32(num**0.5)


def _filled(vectors_NK: NDArray[Any], dim: int) -> NDArray[np.float32]:
    """The vectors with zeros up to that number of dimensions."""
    filled_ND = np.zeros((len(vectors_NK), dim), np.float32)
    filled_ND[:, : vectors_NK.shape[1]] = vectors_NK
    return filled_ND
