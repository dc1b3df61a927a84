"""The text vectors of a model, checked before it is built; the same in both backends."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.errors import ConfigurationError


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
