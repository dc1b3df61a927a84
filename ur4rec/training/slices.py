"""Slices: which rows of histories and how many items are scored at once, so that scores stay within a limit of memory.

A block of scores is rows × items. A small catalogue is scored whole; of a larger one, a block is a slice of the items,
and ranks, best items and normalisers accumulate over the slices. What the fusions `rank` and `cascade` say of an item
depends on the order of all others, so they need whole rows: then there are fewer rows in their place.

Shapes: B rows, I items, s items of a slice.
"""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from alternator.checks import check_integer, cut
from ur4rec.config import FUSIONS_WITH_GRADIENTS, ModelConfig
from ur4rec.errors import ConfigurationError

DEFAULT_MEMORY, MIN_MEMORY = 2**30, 2**20
"""Bytes that scores may take at once, where nothing else is said, and at least."""
CPU_SCORES, ACCELERATOR_SCORES = 2**20, 2**25
"""Scores of a block at best, whatever the memory: on the CPU, its caches hold a block of this size."""
WHOLE = 4
"""Up to this number of blocks, a catalogue is still scored whole: slices are no faster before."""
SLICE_ROWS, MULTIPLE = 256, 16
"""The rows of a block of a large catalogue, which make good use of each item that is read; and of what its items are a
multiple: products of matrices treat what is left over in another way, so that its scores may have other last bits."""
ATTENTION_SCORES = 2**26
"""Attention weights of a block of SASRec at most, which are rows × heads × length²: fewer long histories at a time."""
_SLICED_BYTES, _WHOLE_BYTES = 32, 96
"""What is held at once per score: by all scorers, and by those that also sort whole rows."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Slice(NamedTuple):
    """Items of a catalogue. All slices are of one width, so the last may begin with items of the one before."""

    start: int
    """The first item."""
    skip: int
    """The number of items at its beginning that earlier slices had."""


def slices_of(num_items: int, width: int) -> Iterator[Slice]:
    """The slices of a catalogue.

    Example:
        >>> list(slices_of(10, 4))
        [Slice(start=0, skip=0), Slice(start=4, skip=0), Slice(start=6, skip=2)]
    """
    for first in range(0, num_items, width):
        start = min(first, num_items - width)
        yield Slice(start, first - start)


def count_rows(
    model: ModelConfig, num_rows: int, memory: int, *, device: object = "cpu", max_rows: int, blocks: int = 1
) -> int:
    """The rows that are scored together: at most ``max_rows``, and as few as give no more batches.

    Args:
        model: The shape of the model.
        num_rows: The number of histories.
        memory: Bytes that scores may take.
        device: Where they are computed.
        max_rows: The rows of a small catalogue.
        blocks: The number of blocks of a catalogue that is scored whole, `WHOLE` at most.

    Example:
        >>> sizes = [ModelConfig(num_items=num) for num in (50, 3000, 10**6)]
        >>> [count_rows(model, 10_000, DEFAULT_MEMORY, max_rows=4096) for model in sizes]
        [3334, 345, 250]
        >>> count_rows(ModelConfig(num_items=10**6, fusion="rank"), 10_000, DEFAULT_MEMORY, max_rows=4096)
        4
        >>> count_rows(ModelConfig(num_items=50, max_seq_len=500), 10_000, DEFAULT_MEMORY, max_rows=4096)
        67
    """
    max_rows = min(max_rows, ATTENTION_SCORES // (model.sasrec_num_heads * model.max_seq_len**2))
    at_once = _block(memory, device, sliced=_is_sliced(model))
    rows = at_once // model.num_items
    if _is_sliced(model):
        rows = min(blocks * at_once, memory // _SLICED_BYTES) // model.num_items
        rows = max(rows, min(SLICE_ROWS, at_once // SLICE_ROWS))
    num_batches = -(-num_rows // max(1, min(rows, max_rows)))
    return max(1, -(-num_rows // max(1, num_batches)))


def slice_width(
    model: ModelConfig, num_rows: int, scorers: Collection[str], memory: int, *, device: object = "cpu"
) -> int:
    """The items of a block of this number of rows: all, or those of a slice.

    Example:
        >>> slice_width(ModelConfig(num_items=10**6), 256, ("fused",), DEFAULT_MEMORY)
        4096
        >>> slice_width(ModelConfig(num_items=10**6, fusion="rank"), 256, ("fused",), DEFAULT_MEMORY)
        1000000
    """
    at_once, num_scores = _block(memory, device, sliced=True), num_rows * model.num_items
    is_small = num_scores <= WHOLE * at_once and num_scores * _SLICED_BYTES <= memory
    if is_small or ("fused" in scorers and not _is_sliced(model)):
        return model.num_items
    return min(model.num_items, max(1, at_once // num_rows // MULTIPLE) * MULTIPLE)


def parse_memory(given: str | int) -> int:
    """Bytes from a number of them, or a string such as ``4GB``, ``500 MB`` or ``2GiB``.

    Raises:
        ConfigurationError: It is no such string, or less than `MIN_MEMORY`.

    Example:
        >>> parse_memory("4GB"), parse_memory("2 GiB"), parse_memory(2**20)
        (4000000000, 2147483648, 1048576)
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]I?)?B?", str(given).strip().upper())
    if found is None or isinstance(given, bool):
        raise ConfigurationError(f"memory must be a number of bytes, such as 500MB or 4GB, got {cut(repr(given))}")
    return check_integer("memory", int(float(found[1]) * _UNITS[found[2] or ""]), MIN_MEMORY)


def _is_sliced(model: ModelConfig) -> bool:
    """Whether the fusion of some items needs no others but their number and sum."""
    return model.fusion in FUSIONS_WITH_GRADIENTS


def _block(memory: int, device: object, *, sliced: bool) -> int:
    """Scores that may be held at once."""
    limit = CPU_SCORES if "cpu" in str(device).lower() else ACCELERATOR_SCORES
    return min(limit, memory // _SLICED_BYTES) if sliced else min(WHOLE * limit, memory // _WHOLE_BYTES)
