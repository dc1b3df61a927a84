"""The processes of a run in JAX, one per host: joined by `jax.distributed`, as the environment says."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from alternator.checks import one_line
from ur4rec.errors import ProcessesError
from ur4rec.training.processes import TIMEOUT, OneProcess, Processes
from ur4rec_jax.device import find_device, find_mesh

ADDRESS, COUNT, RANK = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""The variables of a run that is started by hand: where process 0 listens (host:port), how many there are, which this
is."""
_CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""The number of processes under ``srun`` and ``mpirun``, from whose other variables JAX knows the rest."""


class JaxProcesses:
    """The processes of `jax.distributed`; see `ur4rec.training.processes.Processes`."""

    def __init__(self) -> None:
        self.rank = jax.process_index()
        self.count = jax.process_count()
        self.local_rank = int(os.environ.get("SLURM_LOCALID", os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes at least."""
        return bool(np.any(multihost_utils.process_allgather(np.array(flag))))

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The array of each process, in the order of their numbers, in all of them; lengths may differ."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        sizes = np.ravel(multihost_utils.process_allgather(np.array([len(content)], np.int32)))
        padded = np.pad(content, (0, int(sizes.max()) - len(content)))
        found = np.asarray(multihost_utils.process_allgather(padded))
        return [
            np.ascontiguousarray(each[:size]).view(array.dtype).reshape(-1, *array.shape[1:])
            for each, size in zip(found.reshape(self.count, -1), sizes, strict=True)
        ]

    def wait(self) -> None:
        """Wait for all processes."""
        multihost_utils.sync_global_devices("ur4rec")

    def speaks(self) -> bool:
        """Each process is on a host, with a terminal, of its own."""
        return True


def known_processes() -> Processes:
    """The processes that this one has joined already."""
    return JaxProcesses() if jax.process_count() > 1 else OneProcess()


@contextmanager
def start_processes(device: str = "auto", timeout: float = TIMEOUT, *, mesh: str | None = None) -> Iterator[Processes]:
    """Join the processes that the environment tells of; where it tells of none there is this one alone.

    It tells by `ADDRESS`, `COUNT` and `RANK`, or it is that of ``srun`` or ``mpirun``. No computation may come before.

    Args:
        device: Where a trainer is to train, as it takes it.
        timeout: Seconds to wait for the others at the beginning.
        mesh: How a trainer is to divide the work, as it takes it: checked here, before there is one.

    Raises:
        ConfigurationError: There is no such device, or the mesh is one of another number of devices.
        ProcessesError: The others cannot be reached.
    """
    if (arguments := _arguments()) is not None:
        try:
            jax.distributed.initialize(**arguments, initialization_timeout=int(timeout))
        except (RuntimeError, ValueError) as error:
            raise ProcessesError(
                f"all processes must start within {timeout:g} s and reach the first one, but one of them did not "
                f"({one_line(str(error))}); start them with the same {ADDRESS} and {COUNT}, and {RANK} from 0"
            ) from error
    devices, _ = find_mesh(device, mesh)
    if devices is None:
        find_device(device)
    yield known_processes()


def _arguments() -> dict[str, Any] | None:
    """Those of `jax.distributed.initialize`, where it is to be called."""
    if jax.distributed.is_initialized():
        return None
    if ADDRESS in os.environ and COUNT in os.environ:
        numbers = {name: os.environ.get(name, "") for name in (COUNT, RANK)}
        for name, number in numbers.items():
            if not number.isdigit():
                raise ProcessesError(f"{name} must be a number beside {ADDRESS}, got {number!r}; set it")
        count, rank = (int(number) for number in numbers.values())
        return {"coordinator_address": os.environ[ADDRESS], "num_processes": count, "process_id": rank}
    return {} if any(int(os.environ.get(name, "1")) > 1 for name in _CLUSTERS) else None
