"""The processes of a run in JAX."""

from collections.abc import Iterator
from contextlib import contextmanager

from ur4rec.training.processes import TIMEOUT, OneProcess, Processes


@contextmanager
def start_processes(device: str = "auto", timeout: float = TIMEOUT) -> Iterator[Processes]:
    """The processes of a run: this one."""
    yield OneProcess()
