"""A cluster of dask as the processes of a study; see docs/comparing.md.

Results are as if on one machine: each worker has one thread, from its start, and the same packages. dask sends the run
of a worker that is lost to another one, where it begins again: nothing of it was kept.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from importlib import metadata
from typing import Any, TypeVar

from ur4rec.compare.processes import ONE_THREAD, Processes
from ur4rec.errors import ConfigurationError
from ur4rec.training.backend import BACKENDS

T = TypeVar("T")
ANSWERS_WITHIN = 30.0
"""Seconds in which a scheduler must answer."""
_BEFORE_NUMPY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What must be set when a process starts; the rest of `ONE_THREAD` is read when a framework is first imported."""
_REMEDY = "start the workers with: dask worker ADDRESS --nthreads 1 --nworkers auto"


@contextmanager
def cluster_processes(address: str, backend: str) -> Iterator[Processes]:
    """The workers of a scheduler, as many as there are at any moment.

    Args:
        address: The scheduler's, such as ``tcp://10.0.0.1:8786``, or the path of its file.
        backend: The framework that they need.

    Raises:
        ConfigurationError: dask.distributed is not installed, no scheduler answers, or it has no workers of one thread
            each.
    """
    if importlib.util.find_spec("distributed") is None:
        raise ConfigurationError(
            "--cluster needs distributed, which is not installed; run: pip install 'adaptive-alternator[distributed]'"
        )
    from distributed import Client  # the extra is for those who have a cluster

    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**where, timeout=ANSWERS_WITHIN, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--cluster must be the address of a dask scheduler, but none answers at {address!r} ({error}); start one "
            "with: dask scheduler"
        ) from error
    try:
        _check_workers(client)
        yield _Workers(client, _versions(backend))
    finally:
        client.close()  # type: ignore[no-untyped-call]


class _Workers(Processes):
    """Workers as `Processes`."""

    def __init__(self, client: Any, versions: dict[str, str]) -> None:
        self._client = client
        self._pool: Executor = client.get_executor(pure=False)
        self._versions = versions

    def count(self) -> int:
        """The number of workers now; one at least, for work that waits for the first."""
        return max(1, len(_threads(self._client)))

    def submit(self, task: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Have a worker do it."""
        return self._pool.submit(_on_worker, self._versions, task, *arguments)


def _on_worker(versions: dict[str, str], task: Callable[..., T], *arguments: Any) -> T:
    """The task, in a process that runs it as one of this machine would."""
    from distributed import get_worker

    worker = get_worker()
    set_up_worker(f"the worker {worker.name}", worker.state.nthreads, versions)
    return task(*arguments)


def set_up_worker(name: str, num_threads: int, versions: dict[str, str]) -> None:
    """Give this process the environment of a study's processes.

    Args:
        name: What it is called in messages.
        num_threads: The number of tasks that it does at a time.
        versions: The versions of packages that it must have.

    Raises:
        ConfigurationError: It is too late for that, it does several tasks at a time, or it has other versions.
    """
    missing = {each: ONE_THREAD[each] for each in ONE_THREAD if os.environ.get(each) != ONE_THREAD[each]}
    is_late = any(each in _BEFORE_NUMPY for each in missing) or {"torch", "jax"} & set(sys.modules)
    if num_threads != 1 or (missing and is_late):
        raise ConfigurationError(
            f"a worker must do one run at a time, with one thread from its start, but {name} does not; {_REMEDY}"
        )
    os.environ.update(missing)
    for package, version in versions.items():
        if (found := _version(package)) != version:
            raise ConfigurationError(
                f"all processes of a study must have the same versions, but {name} has {package} {found} where this "
                f"one has {version}; install the same"
            )


def _check_workers(client: Any) -> None:
    """Refuse a scheduler without workers, or with some that do several tasks at a time."""
    threads = _threads(client)
    if not threads:
        raise ConfigurationError(f"--cluster must have a worker, but the scheduler has none; {_REMEDY}")
    if several := [f"{name} ({count} threads)" for name, count in threads.items() if count > 1]:
        raise ConfigurationError(f"a worker must do one run at a time, got {several[0]}; {_REMEDY}")


def _threads(client: Any) -> dict[str, int]:
    """The number of threads of each worker, by its address."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {address: worker["nthreads"] for address, worker in workers.items()}


def _versions(backend: str) -> dict[str, str]:
    return {package: _version(package) for package in ("adaptive-alternator", "numpy", *BACKENDS[backend][1])}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
