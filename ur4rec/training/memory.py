"""Memory that ran out, in either framework or on the host, as one error: what was being made, its size, what to lower.

PyTorch raises a RuntimeError of its allocator or its subclass OutOfMemoryError, JAX a RuntimeError with the status
RESOURCE_EXHAUSTED or INTERNAL, NumPy a MemoryError. What they say is all that they share, so it is what is looked at.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from ur4rec.config import ModelConfig
from ur4rec.errors import OutOfMemoryError

_SIGNS = re.compile(r"RESOURCE_EXHAUSTED|out of memory|can't allocate|not enough memory|calculation overflowed", re.I)
_SIZE = re.compile(r"allocat(?:e|ing) ([\d.]+) ?(bytes|[KMGTPE]i?B)")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn what says that memory has run out into an `OutOfMemoryError`; every other error passes.

    Args:
        what: What is being made, with the sizes that decide.
        remedy: The settings to lower.

    Raises:
        OutOfMemoryError: Memory ran out.

    Example:
        >>> with enough_memory("a list", "its length"):
        ...     raise MemoryError("Unable to allocate 128. TiB for an array")
        Traceback (most recent call last):
        ...
        ur4rec.errors.OutOfMemoryError: there must be memory for a list, but 128 TiB was not to be had; lower its length
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _SIGNS.search(str(error)):
            raise
        raise OutOfMemoryError(
            f"there must be memory for {what}, but {_size(str(error))} was not to be had; lower {remedy}"
        ) from error


def enough_for_model(config: ModelConfig, what: str = "a model") -> AbstractContextManager[None]:
    """As `enough_memory`, for what is as large as a model."""
    return enough_memory(f"{what} of {_sizes(config)}", "a width (sasrec_hidden_dim, text_embedding_dim, ...)")


def enough_for_steps(config: ModelConfig, batch_size: object) -> AbstractContextManager[None]:
    """As `enough_memory`, for what a training step on a batch computes."""
    what = f"a training step on {batch_size} histories with a model of {_sizes(config)}"
    return enough_memory(what, "batch_size, max_seq_len or a width (sasrec_hidden_dim, text_embedding_dim, ...)")


def enough_for_scores() -> AbstractContextManager[None]:
    """As `enough_memory`, for the scores of a batch."""
    return enough_memory(
        "the scores of a batch of histories for every item",
        "the batch size of the evaluation, max_seq_len or a width (sasrec_hidden_dim, text_embedding_dim, ...)",
    )


def _sizes(config: ModelConfig) -> str:
    names = ("max_seq_len", "sasrec_hidden_dim", "retriever_output_dim", "text_embedding_dim")
    return ", ".join([f"{config.num_items} items", *(f"{name}={getattr(config, name)}" for name in names)])


def _size(message: str) -> str:
    """The size that a message tells of, in a unit that can be read.

    Example:
        >>> _size("you tried to allocate 70368744177664 bytes. Error code 12"), _size("bad_alloc")
        ('64 TiB', 'enough')
    """
    if (found := _SIZE.search(message)) is None:
        return "enough"
    number, unit = float(found[1]), found[2]
    power = 0 if unit != "bytes" else min(int(number).bit_length() // 10, len(_UNITS) - 1)
    return f"{number / 1024**power:.4g} {_UNITS[power] if power else unit}"
