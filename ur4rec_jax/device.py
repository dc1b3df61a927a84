"""The device: which one, and how a batch gets there."""

import os
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from ur4rec.data.batches import Batch
from ur4rec.errors import ConfigurationError
from ur4rec.training.arrays import Sample
from ur4rec.training.sampling import Items, Sampler
from ur4rec_jax.losses import StepInputs

_KINDS = {"cuda": "gpu"}


def find_device(name: str | jax.Device) -> jax.Device:
    """The device of a name; ``auto`` is an accelerator where JAX finds one.

    Raises:
        ConfigurationError: There is no such device on this machine.
    """
    if isinstance(name, jax.Device):
        return name
    if name == "auto":
        return jax.devices()[0]
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "gpu", "cuda", "tpu") or not (number.isdigit() or number == ""):
        raise ConfigurationError(f"device must be auto, cpu, cuda, cuda:N, gpu, gpu:N or tpu, got {name!r}")
    try:
        devices = jax.devices(_KINDS.get(kind, kind))
        return devices[int(number or 0)]
    except (RuntimeError, IndexError) as error:
        raise ConfigurationError(
            f"device must be one of this machine, got {name!r}, but JAX finds only {jax.devices()}"
        ) from error


def count_threads() -> int:
    """The number of threads among which XLA divides a computation on the CPU, and with it the order of sums."""
    for name in ("PJRT_NPROC", "NPROC"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_inputs(
    batch: Batch,
    num_items: int,
    usual_targets: int | None = None,
    *,
    with_users: bool = False,
    sampler: Sampler | None = None,
    step: int = 0,
) -> StepInputs:
    """A batch with the places of its targets, as a step takes it; it moves to the device then.

    A step is compiled again for every number of places, so they are filled up to one of two: all positions, or the
    usual maximum.

    Args:
        batch: The batch.
        num_items: The padding index.
        usual_targets: The usual maximum of the number of targets; None is the number of positions.
        with_users: Whether the model has user texts.
        sampler: Draws the negatives of sampled losses.
        step: The training step of the run, for the sampler.
    """
    targets = np.asarray(batch[1], np.int32).ravel()
    found = np.flatnonzero(targets != num_items)
    length = targets.size if usual_targets is None or len(found) > usual_targets else usual_targets
    positions_N = np.zeros(length, np.int32)
    targets_N: Items = np.full(length, num_items, np.int32)
    positions_N[: len(found)], targets_N[: len(found)] = found, targets[found]
    users_B = np.asarray(batch[2], np.int32) if with_users else None
    items_BL: Items = np.asarray(batch[0], np.int32)
    sample = None
    if sampler is not None:
        items_BL, targets_N, drawn = sampler.number(items_BL, targets_N, step, padded=True)
        items_BL, targets_N = to_indices(items_BL), to_indices(targets_N)
        sample = Sample(to_indices(drawn.items_J), to_indices(drawn.candidates_C), drawn.offsets_C)
    inputs: tuple[Any, ...] = (items_BL, positions_N, targets_N, users_B, sample)
    return StepInputs(*inputs)


def to_indices(values: ArrayLike) -> NDArray[np.int32]:
    """Whole numbers."""
    return np.asarray(values, np.int32)


def send(tree: Any, device: jax.Device) -> Any:
    """Arrays of the host on the device, without waiting for them; the first CPU takes those of NumPy as they are."""
    is_host = device.platform == "cpu" and device.id == 0
    return tree if is_host else jax.device_put(tree, device)


def to_host(array: Array) -> NDArray[Any]:
    """The same array in NumPy."""
    # NumPy ends the process where XLA had no memory for the array; this raises an error.
    return np.asarray(array.block_until_ready())
