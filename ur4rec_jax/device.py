"""The device: which one, and how a batch gets there."""

import os
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.data.batches import Batch
from ur4rec.errors import ConfigurationError
from ur4rec.training.arrays import Sample
from ur4rec.training.item_texts import items_of
from ur4rec.training.length_groups import LengthGroups
from ur4rec.training.mesh import Mesh, parse_mesh
from ur4rec.training.sampling import Items, Sampler
from ur4rec_jax.losses import RowGroup, StepInputs
from ur4rec_jax.text_groups import TextGroups

_KINDS = {"cuda": "gpu"}


def find_device(name: str | jax.Device) -> jax.Device:
    """The device of a name, of this process's; ``auto`` is an accelerator where JAX finds one.

    Raises:
        ConfigurationError: There is no such device on this machine.
    """
    if isinstance(name, jax.Device):
        return name
    if name == "auto":
        return jax.local_devices()[0]
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "gpu", "cuda", "tpu") or not (number.isdigit() or number == ""):
        raise ConfigurationError(f"device must be auto, cpu, cuda, cuda:N, gpu, gpu:N or tpu, got {name!r}")
    try:
        devices = jax.local_devices(backend=_KINDS.get(kind, kind))
        return devices[int(number or 0)]
    except (RuntimeError, IndexError) as error:
        raise ConfigurationError(
            f"device must be one of this machine, got {name!r}, but JAX finds only {jax.local_devices()}"
        ) from error


def find_devices(name: str | jax.Device) -> list[jax.Device]:
    """All devices of the kind of a name, of all processes: those of a mesh.

    Raises:
        ConfigurationError: There are none, or the name is that of a single device.
    """
    if isinstance(name, jax.Device) or ":" in name:
        raise ConfigurationError(
            f"a mesh takes all devices of a kind, got the device {str(name)!r}; give auto, cpu, gpu or tpu, and hide "
            "devices from JAX that it must not take (CUDA_VISIBLE_DEVICES)"
        )
    return jax.devices(find_device(name).client.platform if name != "auto" else None)


def find_mesh(name: str | jax.Device, mesh: str | Mesh | None) -> tuple[list[jax.Device] | None, Mesh]:
    """The devices of a mesh and how they are laid out; no mesh is one device, but of several processes all devices.

    Raises:
        ConfigurationError: As for `find_devices`, or the mesh has another number of devices.
    """
    if mesh is None and jax.process_count() == 1:
        return None, Mesh()
    devices = find_devices(name)
    return devices, parse_mesh(mesh, len(devices))


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
    num_parts: int = 1,
    texts: TextGroups | None = None,
    groups: LengthGroups | None = None,
) -> StepInputs:
    """A batch with the places of its targets, as a step takes it; it moves to the device then.

    A step is compiled again for every number of places, so they are filled up to one of two: all positions, or the
    usual maximum. Each part of a batch has a list of its own, all of one length, and rows of padding make parts equal.

    Args:
        batch: The batch.
        num_items: The padding index.
        usual_targets: The usual maximum of the number of targets of a part; None is the number of positions.
        with_users: Whether the model has user texts.
        sampler: Draws the negatives of sampled losses.
        step: The training step of the run, for the sampler.
        num_parts: The number of parts that batches are cut into.
        texts: Divides the texts that a step may encode, in a model with a text encoder.
        groups: Divides the rows by their lengths, if they are to be and it can; not of a batch with unusually many
            targets, so that shapes stay few.
    """
    missing = -len(batch[0]) % num_parts
    items_BL: Items
    items_BL, targets_BL = (_more_rows(each, missing, num_items) for each in batch[:2])
    targets_PR = targets_BL.reshape(num_parts, -1)
    found = [np.flatnonzero(targets_R != num_items) for targets_R in targets_PR]
    length, divided = targets_PR.shape[1], None
    if usual_targets is not None and max(map(len, found)) <= usual_targets:
        length = usual_targets
        divided = None if groups is None else groups.divide(items_BL, targets_BL, num_items)
    positions_PN = np.zeros((num_parts, length), np.int32)
    targets_PN: Items = np.full((num_parts, length), num_items, np.int32)
    for part, places in enumerate(found):
        positions_PN[part, : len(places)], targets_PN[part, : len(places)] = places, targets_PR[part, places]
    targets_N = targets_PN.ravel()
    users_B = _more_rows(batch[2], missing, -1) if with_users else None
    sample, items = None, [items_BL, targets_N]
    if sampler is not None:
        num_positions = items_BL.size if groups is None or divided is None else groups.num_positions
        items_BL, targets_N, drawn = sampler.number(items_BL, targets_N, step, num_positions=num_positions)
        items_BL, targets_N = to_indices(items_BL), to_indices(targets_N)
        sample = Sample(to_indices(drawn.items_J), to_indices(drawn.candidates_C), drawn.offsets_C)
        items = [to_indices(drawn.items_J)]
    texts_E = None if texts is None else texts.divide(items_of(num_items, *items))
    found_all: tuple[Any, ...] = (items_BL, positions_PN.ravel(), targets_N, users_B, sample, None, texts_E)
    inputs = StepInputs(*found_all)
    if groups is None or divided is None:
        return inputs
    cut = zip(groups.cut(items_BL, divided), divided.rows, strict=True)
    by_length: Any = tuple(RowGroup(each, None if users_B is None else users_B[rows_R]) for each, rows_R in cut)
    places_N: Any = to_indices(divided.places(positions_PN.ravel()))
    return inputs._replace(groups=by_length, places_N=places_N)


def _more_rows(rows: ArrayLike, count: int, filling: int) -> NDArray[np.int32]:
    rows = to_indices(rows)
    return np.concatenate([rows, np.full((count, *rows.shape[1:]), filling, np.int32)]) if count else rows


def to_indices(values: ArrayLike) -> NDArray[np.int32]:
    """Whole numbers."""
    return np.asarray(values, np.int32)


def send(tree: Any, device: jax.Device) -> Any:
    """Arrays of the host on the device, without waiting for them; the first CPU takes those of NumPy as they are."""
    is_host = device.platform == "cpu" and device.id == 0
    return tree if is_host else jax.device_put(tree, device)
