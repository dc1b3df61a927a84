"""The processes of a run in PyTorch: started by ``torchrun``, joined by `torch.distributed`."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from alternator import AlternatorError
from alternator.checks import one_line
from ur4rec.errors import ConfigurationError, ProcessesError
from ur4rec.training.mesh import Mesh, parse_mesh
from ur4rec.training.processes import TIMEOUT, OneProcess, Processes
from ur4rec_torch.device import find_device

_PATIENCE = timedelta(days=30)
"""How long to wait for what is not to end by a timeout."""
_BEAT = 0.5
"""Seconds between two signs of life of a process."""
_GRACE = 4.0
"""Seconds in which a process that lives has given a sign, and has noticed that another does not answer."""
_SIGNS = re.compile(r"gloo|nccl|connection (?:closed|reset|refused)|broken pipe|timed out|timeout|TCPStore", re.I)
"""What an error says that comes from the connections between processes."""


class TorchProcesses:
    """The processes of the default group of `torch.distributed`; see `ur4rec.training.processes.Processes`.

    Args:
        store: What they share beside the group, alive as long as ``torchrun`` is.
        timeout: Seconds to wait for the others in a step.
    """

    def __init__(self, store: Store, timeout: float) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._store = store
        self._timeout = timeout
        self._patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._pulse = _Pulse(store, self.rank)
        self._lost = False

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes at least."""
        flags = torch.tensor(flag, dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The array of each process, in the order of their numbers, in all of them; lengths may differ."""
        content = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).reshape(-1).copy())
        sizes = [torch.zeros((), dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor(len(content)))
        longest = max(map(int, sizes))
        found = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(found, torch.nn.functional.pad(content, (0, longest - len(content))))
        return [
            each[: int(size)].numpy().view(array.dtype).reshape(-1, *array.shape[1:])
            for each, size in zip(found, sizes, strict=True)
        ]

    def wait(self) -> None:
        """Wait for all processes, however long they take."""
        dist.barrier(self._patient)

    def speaks(self) -> bool:
        """Whether this process is the first that asks; one that was left alone leaves it to whoever left it."""
        try:
            if self._lost and self._others("ended"):
                return False
            return bool(self._store.add("speaks", 1) == 1)
        except RuntimeError:  # the store is gone, with the process that kept it
            return self._lost

    def leave(self) -> None:
        """Close the connections, at the end of a run."""
        self._pulse.stop()
        dist.destroy_process_group()

    def end(self, error: Exception) -> ProcessesError | None:
        """Let the other processes know that this one ends; returns what to raise in place of an error of theirs.

        That is where the error comes from the connections to the others: one of them has ended, or does not answer.
        """
        self._lost = _is_of_connections(error)
        with _undisturbed():
            try:
                self._store.set(f"{'lost' if self._lost else 'ended'}/{self.rank}", "")
                if not self._lost:
                    return None
                missing = self._others("ended") or self._find_silent()
            except RuntimeError:  # without torchrun, process 0 keeps the store
                if not self._lost:
                    return None
                missing = [0]
        names = ", ".join(map(str, missing)) or "unknown"
        return ProcessesError(
            f"all {self.count} processes must answer within {self._timeout:g} s, but process {names} has ended or "
            f"hangs; see what it said last, then continue with --resume ({one_line(str(error))})"
        )

    def _find_silent(self) -> list[int]:
        """The processes whose heart does not beat; if all do, those that have not noticed that one is missing."""
        before = self._pulse.read(self.count)
        time.sleep(_GRACE)
        after = self._pulse.read(self.count)
        silent = [rank for rank in range(self.count) if before[rank] == after[rank]]
        noticed = {self.rank, *self._others("lost"), *self._others("ended")}
        return [rank for rank in silent or range(self.count) if rank not in noticed]

    def _others(self, word: str) -> list[int]:
        """The other processes that have left this word."""
        others = (rank for rank in range(self.count) if rank != self.rank)
        return [rank for rank in others if self._store.check([f"{word}/{rank}"])]


class _Pulse:
    """A count in the store that grows as long as this process lives: connections do not tell who has died.

    Args:
        store: What the processes share; used from a thread of its own.
        rank: The number of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def read(self, count: int) -> list[int]:
        """The count of each process."""
        return [self._store.add(f"pulse/{rank}", 0) for rank in range(count)]

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store is gone, and with it whoever would read this
            while not self._stopped.wait(_BEAT):
                self._store.add(f"pulse/{self._rank}", 1)


@contextmanager
def start_processes(device: str = "auto", timeout: float = TIMEOUT, *, mesh: str | None = None) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` has started, as its environment says; without it there is this one alone.

    They talk through gloo on CPUs and through NCCL on CUDA, where each takes the device of its number on its machine.

    Args:
        device: Where a trainer is to train, as it takes it.
        timeout: Seconds that a process waits for the others in a step: then it takes one of them for lost.
        mesh: How a trainer is to divide the work, as it takes it: checked here, before there is one.

    Raises:
        ConfigurationError: There is no such device, it is one that all would take, or the mesh is one of another number
            of processes.
        ProcessesError: The others cannot be reached, or one of them has ended or does not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        find_device(device)
        parse_mesh(mesh, 1)
        yield OneProcess()
        return
    processes = _join(device, timeout)
    try:
        parse_mesh(mesh, processes.count)
        yield processes
    except Exception as error:
        if (lost := processes.end(error)) is None:
            raise
        raise lost from error
    processes.leave()


def _join(device: str, timeout: float) -> TorchProcesses:
    place = find_device(device)
    if place.index is not None:
        raise ConfigurationError(
            f"device must be auto, cpu or cuda for several processes, each of which takes its own, got {device!r}"
        )
    on_cuda = place.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    wait = timedelta(seconds=timeout)
    try:
        store, rank, count = next(rendezvous("env://", timeout=wait))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=count,
            timeout=wait,
        )
        return TorchProcesses(PrefixStore("ur4rec", store), timeout)
    except (RuntimeError, ValueError) as error:
        raise ProcessesError(
            f"all processes must start within {timeout:g} s and reach each other, but one of them did not "
            f"({one_line(str(error))}); start them with torchrun"
        ) from error


def _is_of_connections(error: BaseException) -> bool:
    if isinstance(error, AlternatorError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or bool(_SIGNS.search(str(error)))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Finish, although ``torchrun`` ends all processes as soon as one has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def device_mesh(mesh: Mesh, device: torch.device) -> DeviceMesh:
    """The mesh of `torch.distributed`, of the axes ``data`` and ``items``."""
    return _device_mesh(mesh, device.type, dist.group.WORLD)


@lru_cache(maxsize=8)
def _device_mesh(mesh: Mesh, kind: str, group: dist.ProcessGroup | None) -> DeviceMesh:
    """One for all trainers of the group: each mesh has connections and threads of its own, which are never closed."""
    return init_device_mesh(kind, (mesh.data, mesh.items), mesh_dim_names=("data", "items"))
