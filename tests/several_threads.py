"""Several processes of a run, as threads of this one: for what is divided among them but runs no framework in parts."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

TIMEOUT = 60.0
"""Seconds after which threads that wait for one that has failed are ended."""


class ThreadProcesses:
    """One of several threads; see `ur4rec.training.processes.Processes`."""

    def __init__(self, rank, shared, barrier):
        self.rank = self.local_rank = rank
        self.count = len(shared)
        self._shared, self._barrier = shared, barrier

    def _exchange(self, value):
        self._shared[self.rank] = value
        self._barrier.wait(TIMEOUT)
        found = list(self._shared)
        self._barrier.wait(TIMEOUT)
        return found

    def any(self, flag):
        return any(self._exchange(flag))

    def gather(self, array):
        return self._exchange(array)

    def wait(self):
        self._exchange(None)

    def speaks(self):
        return self.rank == 0


def run_in_threads(count, call):
    """What ``call`` returns for the processes of each thread."""
    shared, barrier = [None] * count, Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        started = [pool.submit(call, ThreadProcesses(rank, shared, barrier)) for rank in range(count)]
        return [each.result(TIMEOUT) for each in started]
