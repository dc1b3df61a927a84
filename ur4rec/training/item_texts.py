"""The texts of items as a model takes them: vectors that stay as they are, or tokens for a text encoder.

Shapes: B rows, L positions, I items, S tokens of a text, T width, E items whose texts a step encodes.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import PRETRAINED, ModelConfig
from ur4rec.errors import ConfigurationError
from ur4rec.text.encoders import check_text_vectors
from ur4rec.text.tokens import PADDING, check_tokens
from ur4rec.training.shapes import ENCODED_TEXTS, ITEM_TOKENS, Shape, weight_shapes

PREFIX = "text_encoder."
"""How the names of a text encoder's weights begin in a model."""


class ItemTexts(NamedTuple):
    """What a model is built from; see `check_item_texts`."""

    vectors_IT: NDArray[np.float32] | None
    """One vector per item; None where the text encoder is to encode them."""
    tokens_IS: NDArray[np.int32] | None
    """The tokens of each item's text; None without a text encoder."""
    weights: Mapping[str, NDArray[np.float32]]
    """The first weights of the text encoder by their names in it; none where they are drawn."""


def check_item_texts(
    model: ModelConfig,
    vectors: ArrayLike | None,
    tokens: ArrayLike | None,
    weights: Mapping[str, ArrayLike] | None,
) -> ItemTexts:
    """The texts that a model is built from, checked.

    Args:
        model: The shape of the model.
        vectors: ``item_text_vectors``: needed without a text encoder; with one, its vectors as last encoded, if known.
        tokens: ``item_tokens``: needed with a text encoder, and for nothing else.
        weights: ``encoder_weights``: where the text encoder is pretrained, its first weights.

    Raises:
        ConfigurationError: One is missing, given for nothing, or does not fit the model.

    Example:
        >>> model = ModelConfig(num_items=2, text_embedding_dim=3)
        >>> check_item_texts(model, np.ones((2, 3)), None, None).vectors_IT.dtype
        dtype('float32')
        >>> check_item_texts(model, None, [[2, 3], [2, 3]], None)
        Traceback (most recent call last):
        ...
        alternator.errors.ConfigurationError: item_tokens must be left out with text_encoder='none', got them; give the model a text encoder (text_encoder='transformer')
    """  # noqa: E501
    kind, count, dim = model.text_encoder, model.num_items, model.text_embedding_dim
    given = {"item_tokens": tokens, "encoder_weights": weights}
    if not model.has_text_encoder:
        for name in (name for name, value in given.items() if value is not None):
            raise ConfigurationError(
                f"{name} must be left out with text_encoder={kind!r}, got them; give the model a text encoder "
                "(text_encoder='transformer')"
            )
        if vectors is None:
            raise ConfigurationError(
                f"item_text_vectors must be given with text_encoder={kind!r}, got None; give one vector per item, or "
                "item_tokens and a text encoder (text_encoder='transformer')"
            )
        return ItemTexts(check_text_vectors("item", vectors, count=count, dim=dim), None, {})
    if tokens is None:
        raise ConfigurationError(
            f"item_tokens must be given with text_encoder={kind!r}, got None; make them with "
            "ur4rec.text.tokens.fit_tokens or read_tokens"
        )
    if weights is not None and kind != PRETRAINED:
        raise ConfigurationError(
            f"encoder_weights must be left out with text_encoder={kind!r}, got them; take text_encoder='pretrained'"
        )
    if weights is None and vectors is None and kind == PRETRAINED:
        raise ConfigurationError(
            f"encoder_weights must be given with text_encoder={kind!r}, got None; read them with "
            "ur4rec.text.pretrained.read_weights, or take text_encoder='transformer'"
        )
    known = None if vectors is None else check_text_vectors("item", vectors, count=count, dim=dim)
    found = {} if weights is None else _check_encoder_weights(model, weights)
    return ItemTexts(known, check_tokens(tokens, model, count=count), found)


def encoder_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Name, in the text encoder, and shape of each of its weights that a pretrained one has.

    Example:
        >>> shapes = encoder_shapes(ModelConfig(num_items=2, text_encoder="transformer", text_encoder_trains="lora:4"))
        >>> len(shapes), shapes["embedding_norm.bias"]
        (36, (384,))
    """
    return {
        name.removeprefix(PREFIX): shape
        for name, shape in weight_shapes(model)
        if name.startswith(PREFIX) and name not in (ITEM_TOKENS, ENCODED_TEXTS) and "_adapter." not in name
    }


def trains(model: ModelConfig, name: str) -> bool:
    """Whether a weight of the text encoder can train.

    Args:
        model: The shape of the model.
        name: The weight's name in the text encoder.

    Example:
        >>> model = ModelConfig(num_items=2, text_encoder="transformer", text_encoder_trains="last:1")
        >>> [trains(model, name) for name in ("embedding_norm.bias", "blocks.0.feedforward.inner.bias")]
        [False, False]
        >>> trains(model, "blocks.1.feedforward.inner.bias")
        True
    """
    if model.lora_rank:
        return "_adapter." in name
    blocks = tuple(f"blocks.{block}." for block in model.trained_text_layers)
    return model.text_encoder_trains == "all" or name.startswith(blocks)


def token_counts(tokens_NS: ArrayLike) -> NDArray[np.int64]:
    """The number of tokens of each text up to its last one that is no padding, (N,).

    Example:
        >>> token_counts([[2, 7, 3], [2, 3, 0], [0, 0, 0]]).tolist()
        [3, 2, 0]
    """
    is_token_NS = np.asarray(tokens_NS) != PADDING
    positions_S = np.arange(1, is_token_NS.shape[1] + 1)
    counts_N: NDArray[np.int64] = (is_token_NS * positions_S).max(axis=1, initial=0)
    return counts_N


def chunks_by_length(counts_N: NDArray[np.int64], size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Texts of about the same length that are encoded together, and the number of tokens of the longest of them.

    Args:
        counts_N: The number of tokens of each text.
        size: The number of tokens of a chunk at most, padding included.

    Example:
        >>> [(chunk.tolist(), longest) for chunk, longest in chunks_by_length(np.array([2, 5, 3, 4]), size=10)]
        [([1, 3], 5), ([2, 0], 3)]
    """
    order_N = np.argsort(-counts_N, kind="stable")
    first = 0
    while first < len(order_N):
        longest = max(int(counts_N[order_N[first]]), 1)
        chunk = order_N[first : first + max(size // longest, 1)]
        yield chunk, longest
        first += len(chunk)


def items_of(num_items: int, *arrays: ArrayLike) -> NDArray[np.int64]:
    """The items of a batch, ascending and each once, without padding: the texts that a step encodes, (E,).

    Args:
        num_items: The padding index.
        *arrays: Histories, targets, drawn items.

    Example:
        >>> items_of(9, [[3, 1, 9]], [1, 4])
        array([1, 3, 4])
    """
    found_E = np.unique(np.concatenate([np.asarray(each, np.int64).ravel() for each in arrays]))
    return found_E[found_E < num_items]


def _check_encoder_weights(model: ModelConfig, weights: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[Any]] = {name: np.asarray(array) for name, array in weights.items()}
    expected = encoder_shapes(model)
    for name in (*expected, *found):
        shape, size = expected.get(name), found[name].shape if name in found else None
        if shape != size:
            raise ConfigurationError(
                f"encoder_weights must be those of the text encoder, with {name!r} of the shape {shape}, got {size}; "
                "read them with ur4rec.text.pretrained.read_weights"
            )
        if not np.isfinite(found[name]).all():
            raise ConfigurationError(f"encoder_weights must be finite, got others in {name!r}; restore the encoder")
    return {name: array.astype(np.float32) for name, array in found.items()}
