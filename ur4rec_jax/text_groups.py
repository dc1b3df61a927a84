"""Texts of about one length are encoded together, in few shapes: a compiler makes a function for each of them.

Shapes: N texts, S tokens of a text, I items, C items that are encoded at once, E items whose texts a step encodes, G
groups of them.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from ur4rec.training.item_texts import token_counts

TOKENS = 2**14
"""Tokens that are encoded at once at most, where nothing trains: what is held beside weights and vectors is theirs."""
LEAST = 8
"""The number of texts of a step for which it is compiled at least."""
SPREAD = 3
"""Standard deviations of a draw from all texts by which those of a step may be longer."""

Groups: TypeAlias = tuple[tuple[int, int], ...]
"""Of each group of a step's texts their number, and the number of tokens that are read of each."""


class Texts(NamedTuple):
    """Texts that are encoded together, without what would be padding in all of them."""

    items_C: NDArray[np.int32] | Array
    """The items; those that only fill up are the padding, whose vector stays 0."""
    num_tokens: int
    """The number of tokens that are read of each."""


class TextGroups:
    """Three groups of texts at most, with which the least padding is read.

    Args:
        tokens_JS: The tokens of each item's text, and last of the padding.

    Example:
        >>> groups = TextGroups(np.array([[2, 5, 0, 0], [2, 0, 0, 0], [2, 6, 7, 8], [2, 6, 0, 0], [0, 0, 0, 0]]))
        >>> [(texts.items_C.tolist(), texts.num_tokens) for texts in groups.all()]
        [([1], 1), ([0, 3], 2), ([2], 4)]
        >>> items_E = groups.divide(np.array([0, 2]))
        >>> items_E.tolist(), groups.of(len(items_E))
        ([4, 0, 4, 2], ((1, 1), (2, 2), (1, 4)))
    """

    def __init__(self, tokens_JS: ArrayLike) -> None:
        counts_J = np.maximum(token_counts(tokens_JS), 1)
        self._padding = len(counts_J) - 1
        self._lengths_G = best_lengths(counts_J[:-1])
        self._group_J = np.searchsorted(self._lengths_G, counts_J)
        self._sizes_G = np.bincount(self._group_J[:-1], minlength=len(self._lengths_G))

    def all(self, items_N: NDArray[np.integer] | None = None) -> Iterator[Texts]:
        """The texts of some items, or of all, of which so few are encoded together that memory is bounded."""
        items_N = np.arange(self._padding) if items_N is None else items_N
        for group, length in enumerate(self._lengths_G.tolist()):
            own = items_N[self._group_J[items_N] == group]
            size = max(min(TOKENS // length, len(own)), 1)
            for first in range(0, len(own), size):
                yield Texts(self._filled(own[first : first + size], size), length)

    def divide(self, items_E: NDArray[np.integer]) -> NDArray[np.int32]:
        """The items of a step group by group, with padding, so that few numbers of them occur.

        The part of each group is about that among all items, with some more room among the longer ones: texts beyond it
        are read with longer texts, and if the longest are too many, all parts are larger.
        """
        own = [items_E[self._group_J[items_E] == group] for group in range(len(self._lengths_G))]
        number = fill_up(len(items_E))
        while (divided := self._divide(own, self._parts(number))) is None:
            number = fill_up(number + 1)
        return divided

    def of(self, number: int) -> Groups:
        """The groups of what `divide` has returned, by its length."""
        return tuple(zip(self._parts(number), self._lengths_G.tolist(), strict=True))

    def _parts(self, number: int) -> list[int]:
        """The number of texts of each group, for a number of all; together that, or all items."""
        longer_G = self._sizes_G[::-1].cumsum()[::-1]  # of this group and those of longer texts
        share_G = longer_G / self._padding
        room_G = np.ceil(number * share_G + SPREAD * np.sqrt(number * share_G * (1 - share_G)))
        room_G = np.minimum(np.minimum(room_G, number), longer_G)
        room_G = np.maximum.accumulate(room_G[::-1])[::-1].astype(int)
        parts: list[int] = (room_G - np.append(room_G[1:], 0)).tolist()
        return parts

    def _divide(self, own: list[NDArray[np.integer]], parts: list[int]) -> NDArray[np.int32] | None:
        found, left = [], own[0][:0]
        for items, part in zip(own, parts, strict=True):
            together = np.concatenate([left, items])
            found.append(self._filled(together[:part], part))
            left = together[part:]
        return None if len(left) else np.concatenate(found)

    def _filled(self, items: NDArray[np.integer], size: int) -> NDArray[np.int32]:
        return np.append(items, np.full(size - len(items), self._padding)).astype(np.int32)


def fill_up(number: int) -> int:
    """The next of few numbers: four for each power of two.

    Example:
        >>> [fill_up(number) for number in (3, 17, 33, 40, 1110)]
        [8, 20, 40, 40, 1280]
    """
    unit = 1 << max(max(number - 1, 1).bit_length() - 3, 0)
    return max(-(-number // unit) * unit, LEAST)


def best_lengths(counts_N: NDArray[np.integer]) -> NDArray[np.integer]:
    """The three lengths, or fewer, to which texts are filled up with the least padding, (G,); last the longest text's.

    Args:
        counts_N: The number of tokens of each text, at least 1.

    Example:
        >>> best_lengths(np.array([3, 3, 4, 9, 10, 30])).tolist()
        [4, 10, 30]
        >>> best_lengths(np.array([5, 5])).tolist()
        [5]
    """
    longest = int(counts_N.max())
    lengths = np.arange(longest + 1)
    up_to = np.bincount(counts_N, minlength=longest + 1).cumsum()
    first, second = lengths[:, None], lengths[None, :]
    tokens = up_to[:, None] * first + (up_to - up_to[:, None]) * second + (up_to[-1] - up_to) * longest
    best = np.unravel_index(np.argmin(np.where(first <= second, tokens, tokens.max() + 1)), tokens.shape)
    chosen = np.unique([*best, longest])
    occurring: NDArray[np.integer] = chosen[np.diff(up_to[chosen], prepend=0) > 0]
    return occurring
