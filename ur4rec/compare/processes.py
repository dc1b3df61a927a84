"""The processes that do the work of a study: of one thread each, one run at a time in each."""

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar

from ur4rec.errors import UR4RecError

T = TypeVar("T")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""Environment of the processes: a run's time and numbers depend neither on how many run beside it nor on the number of
processors. The flags of XLA alone leave the order of its sums to that number."""


class StudyInterruptedError(UR4RecError):
    """A study that was stopped; what is finished is kept."""


class Processes(ABC):
    """Does tasks, each in a process that does one at a time."""

    @abstractmethod
    def count(self) -> int:
        """The number of tasks that are done at a time, as it is now."""

    @abstractmethod
    def submit(self, task: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Have a process do it."""


class LocalProcesses(Processes):
    """Processes of this machine.

    Args:
        pool: The processes.
        num_processes: The number of them.
    """

    def __init__(self, pool: ProcessPoolExecutor, num_processes: int) -> None:
        self._pool = pool
        self._num_processes = num_processes

    def count(self) -> int:
        """The number of processes."""
        return self._num_processes

    def submit(self, task: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Have one of them do it."""
        return self._pool.submit(task, *arguments)


@contextmanager
def local_processes(num_processes: int) -> Iterator[Processes]:
    """Fresh processes of this machine."""
    with one_thread_processes(num_processes) as pool:
        yield LocalProcesses(pool, num_processes)


@contextmanager
def one_thread_processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of one thread each, gone at the end; at once if the block fails or this process is killed."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def interruptible() -> Iterator[None]:
    """Say what to do where a study was stopped, or its processes were lost.

    Raises:
        StudyInterruptedError: It was.
    """
    try:
        yield
    except (KeyboardInterrupt, BrokenProcessPool, CancelledError) as error:
        what = {KeyboardInterrupt: "stopped", BrokenProcessPool: "a process died"}.get(
            type(error), "a process was lost"
        )
        raise StudyInterruptedError(f"{what}; finished runs are kept: give the same command to continue") from error


def _end_with_parent() -> None:
    """Ctrl-C is for the parent, which ends its processes; if it was killed itself, nobody waits for what they do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
