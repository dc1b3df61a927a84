"""The device: which one, how a batch gets there, and random numbers that are functions of (seed, step)."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ur4rec.data.batches import Batch
from ur4rec.errors import ConfigurationError
from ur4rec.training.arrays import Sample
from ur4rec.training.item_texts import chunks_by_length, items_of
from ur4rec.training.length_groups import LengthGroups
from ur4rec.training.parts import BatchPart
from ur4rec.training.sampling import Items, Sampler
from ur4rec_torch.losses import RowGroup, StepInputs

CPU_CHUNK, ACCELERATOR_CHUNK = 1 << 11, 1 << 15
"""Tokens that a training step encodes at once: fewer are less padding, more keep an accelerator busy."""


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name; ``auto`` is a CUDA device where there is one.

    Raises:
        ConfigurationError: There is no such device on this machine.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not available:
        raise ConfigurationError(f"device must be one of this machine, got {name!r}, but CUDA finds none; use cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigurationError(
            f"device must be one of this machine, got {name!r}, but CUDA finds {count}; number them from 0"
        )
    return device


def count_threads() -> int:
    """The number of threads among which PyTorch divides a computation on the CPU, and with it the order of sums."""
    return torch.get_num_threads()


def to_device(
    batch: Batch,
    num_items: int,
    device: torch.device,
    *,
    with_users: bool = False,
    sampler: Sampler | None = None,
    step: int = 0,
    part: BatchPart | None = None,
    token_counts_I: NDArray[np.int64] | None = None,
    groups: LengthGroups | None = None,
) -> StepInputs:
    """A batch on the device. Where the targets are is found on the host, so that nothing waits for the device.

    Args:
        batch: The batch.
        num_items: The padding index.
        device: Where to.
        with_users: Whether the model has user texts.
        sampler: Draws the negatives of sampled losses.
        step: The training step of the run, for the sampler.
        part: Of which part of a batch this is the batch; None is a whole one.
        token_counts_I: Where the step may train a text encoder, the number of tokens of each item's text.
        groups: Divides the rows by their lengths, if they are to be and it can.
    """
    divided = None if groups is None else groups.divide(np.asarray(batch[0]), np.asarray(batch[1]), num_items)
    all_targets = np.asarray(batch[1]).ravel()
    positions_N = np.flatnonzero(all_targets != num_items)
    items_BL: Items = np.asarray(batch[0], np.int64)
    targets_N: Items = all_targets[positions_N].astype(np.int64)
    sample, texts = None, [items_BL, targets_N]
    if sampler is not None:
        drawn_C = sampler.draw(targets_N if part is None else part.targets_N, step)
        items_BL, targets_N, found = sampler.number(items_BL, targets_N, step, items_C=drawn_C)
        texts = [np.asarray(found.items_J, np.int64)]
        sample = Sample(*(send(array, device) for array in found if array is not None))
        if part is not None:
            sample = sample._replace(batch_items_J=send(part.items_with(drawn_C), device))
    users_B = send(np.asarray(batch[2], np.int64), device) if with_users else None
    items, positions, targets = (send(array, device) for array in (items_BL, positions_N, targets_N))
    inputs = StepInputs(items, positions, targets, users_B, sample, part)
    if groups is not None and divided is not None:
        by_length = tuple(
            RowGroup(
                send(items_RL, device),
                send(np.asarray(batch[2], np.int64)[rows_R], device) if with_users else None,
            )
            for items_RL, rows_R in zip(groups.cut(items_BL, divided), divided.rows, strict=True)
        )
        inputs = inputs._replace(groups=by_length, places_N=send(divided.places(positions_N), device))
    if token_counts_I is None:
        return inputs
    texts_E, chunks = find_texts(texts, token_counts_I, device)
    return inputs._replace(texts_E=texts_E, text_chunks=chunks)


def find_texts(
    items: Iterable[Items], token_counts_I: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """The items whose texts a step encodes, on the device, and the chunks that are encoded at once.

    Args:
        items: The items of the step, on the host.
        token_counts_I: The number of tokens of each item's text.
        device: Where to.
    """
    items_E = items_of(len(token_counts_I), *items)
    size = CPU_CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK
    chunks = list(chunks_by_length(token_counts_I[items_E], size))
    order_E = np.concatenate([np.zeros(0, np.int64), *(chunk for chunk, _ in chunks)])
    return send(items_E[order_E], device), tuple((len(chunk), longest) for chunk, longest in chunks)


def to_indices(values: ArrayLike, device: torch.device) -> Tensor:
    """Whole numbers on the device."""
    return send(np.asarray(values, np.int64), device)


def to_host(tensor: Tensor) -> NDArray[Any]:
    """The array of a tensor, without its gradient."""
    return np.asarray(tensor.detach().cpu().contiguous())


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; to CUDA it is copied from pinned memory, and nothing waits for that."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Random numbers of a step: the same whenever it is run. The caller's own random state is left as it was."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        value = int.from_bytes(digest, "little")
        torch.default_generator.manual_seed(value)  # torch.manual_seed costs 0.2 ms: it also visits other devices
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
