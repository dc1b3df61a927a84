"""First item embeddings made of the text vectors, the same in both backends: a cheap way to give SASRec the texts.

It is what a model that reads texts while it trains has to beat (WhitenRec, arXiv 2402.10602; principal components of
language models' embeddings are used likewise, e.g. by LLM2Rec and LLMInit).

Shapes: I items, n of a block, T width of a text vector, d width of an embedding, k principal components.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ur4rec.config import NORMAL_INIT, PCA_INIT, ModelConfig
from ur4rec.errors import ConfigurationError

STD = 0.02
"""Standard deviation of first embeddings, drawn or made of texts."""
SAMPLE = 2**17
"""The number of items at most, evenly spaced over the catalogue, whose texts say where the components point."""
_BLOCK = 2**14
"""Items that are computed at once."""
_ROUNDING = 1e-12
"""A component with no more than this part of the texts' mean squared length as its variance is rounding."""


def item_embeddings(
    model: ModelConfig, vectors_IT: NDArray[np.float32] | None, seed: int
) -> NDArray[np.float32] | None:
    """The first embedding of each item, (I, d), by ``sasrec_item_init``; None where the backend draws all of them.

    The text vectors, centred, are projected on their first d principal components; an item whose vector is zeros has no
    text. With ``pca`` the components keep their proportions, with ``whitened`` each has the same variance, and with
    both the standard deviation of all these numbers is `STD`. What texts do not give is drawn, normal with `STD`: items
    without a text, and the columns that are left where the texts have fewer components.

    Args:
        model: The shape of the model.
        vectors_IT: One text vector per item; None with a text encoder.
        seed: Seed of what is drawn.

    Raises:
        ConfigurationError: No two texts differ.

    Example:
        >>> model = ModelConfig(num_items=4, text_embedding_dim=3, sasrec_hidden_dim=4, sasrec_item_init="whitened")
        >>> texts_IT = np.array([[3, 1, 0], [1, 1, 0], [-1, 1, 0], [0, 0, 0]], np.float32)
        >>> table_Id = item_embeddings(model, texts_IT, seed=0)
        >>> table_Id[:3, 0].round(4)
        array([ 0.0245,  0.    , -0.0245], dtype=float32)
    """
    if model.sasrec_item_init == NORMAL_INIT:
        return None
    assert vectors_IT is not None
    table_Id = np.random.default_rng(seed).standard_normal((model.num_items, model.sasrec_hidden_dim), np.float32)
    table_Id *= np.float32(STD)
    mean_T, components_Tk, variances_k = _principal_components(model, vectors_IT)
    if model.sasrec_item_init == PCA_INIT:
        variances_k = np.full_like(variances_k, variances_k.mean())
    scaled_Tk = components_Tk * (STD / np.sqrt(variances_k))
    for here, centred_nT, has_text_n in _centred(vectors_IT, mean_T):
        table_Id[here, : len(variances_k)][has_text_n] = centred_nT @ scaled_Tk
    return table_Id


def _principal_components(
    model: ModelConfig, vectors_IT: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The mean of the texts, their first components and the variance of each, the largest first."""
    step = -(-len(vectors_IT) // SAMPLE)
    sample_IT, width = vectors_IT[::step], vectors_IT.shape[1]
    total_T, count = np.zeros(width), 0
    for _, vectors_nT, _ in _centred(sample_IT, np.zeros(width)):
        total_T, count = total_T + vectors_nT.sum(axis=0), count + len(vectors_nT)
    mean_T, squares_TT = total_T / max(count, 1), np.zeros((width, width))
    for _, centred_nT, _ in _centred(sample_IT, mean_T):
        squares_TT += centred_nT.T @ centred_nT
    variances_T, components_TT = np.linalg.eigh(squares_TT / max(count, 1))
    order = np.argsort(-variances_T, kind="stable")[: model.sasrec_hidden_dim]
    order = order[variances_T[order] > _ROUNDING * (variances_T.sum() + mean_T @ mean_T)]
    if not len(order):
        raise ConfigurationError(
            f"sasrec_item_init={model.sasrec_item_init!r} needs item_text_vectors that differ, got {count} equal "
            f"ones besides zeros; give texts of the items, or take sasrec_item_init={NORMAL_INIT!r}"
        )
    components_Tk = components_TT[:, order]
    largest_k = np.abs(components_Tk).argmax(axis=0)  # a component's sign is arbitrary, and libraries differ in it
    signs_k = np.sign(components_Tk[largest_k, np.arange(len(order))])
    return mean_T, components_Tk * signs_k, variances_T[order]


def _centred(
    vectors_IT: NDArray[np.float32], mean_T: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.bool_]]]:
    """Block by block which items it is of, the centred vectors of those with a text, and which of them have one."""
    for start in range(0, len(vectors_IT), _BLOCK):
        here = slice(start, start + _BLOCK)
        has_text_n: NDArray[np.bool_] = np.any(vectors_IT[here] != 0, axis=1)
        yield here, vectors_IT[here][has_text_n] - mean_T, has_text_n
