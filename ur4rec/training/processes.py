"""Several processes that train one model together: what a run asks of them, in either framework.

Each process builds the same global batches and trains on its part of the rows; losses, decisions, metrics and files
are those of one process.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ur4rec.errors import ProcessesError

T = TypeVar("T")

TIMEOUT = 600.0
"""Seconds that a process waits for the others in a step, before it takes one of them for lost."""


class Processes(Protocol):
    """The processes of a run, seen from one of them. All of them make the same calls in the same order."""

    rank: int
    """The number of this process, from 0; process 0 alone writes files and shows progress."""
    local_rank: int
    """The number of this process among those of its machine, from 0."""
    count: int
    """The number of processes."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes at least."""

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The array of each process, in the order of their numbers, in all of them; lengths may differ."""

    def wait(self) -> None:
        """Wait for all processes, however long they take: for what one of them makes for the others."""

    def speaks(self) -> bool:
        """Whether this process is the first that asks: the one that says what has ended them all."""


class OneProcess:
    """A run of one process.

    Example:
        >>> OneProcess().gather(np.arange(2))
        [array([0, 1])]
    """

    rank = 0
    local_rank = 0
    count = 1

    def any(self, flag: bool) -> bool:
        """The flag."""
        return flag

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The array."""
        return [array]

    def wait(self) -> None:
        """There is nobody to wait for."""

    def speaks(self) -> bool:
        """It does."""
        return True


ONE_PROCESS = OneProcess()
"""This process alone."""


def check_equal(processes: Processes, what: str, value: str) -> None:
    """Refuse processes that disagree.

    Args:
        processes: All of them call this.
        what: What must be equal, for the message.
        value: What it is here.

    Raises:
        ProcessesError: In every process, with the first two values that differ.

    Example:
        >>> check_equal(OneProcess(), "the seed", "3")
    """
    found = [bytes(each).decode() for each in processes.gather(np.frombuffer(value.encode(), np.uint8))]
    for rank, other in enumerate(found):
        if other != found[0]:
            raise ProcessesError(
                f"{what} must be equal in all processes, got {found[0]!r} in process 0 and {other!r} in process "
                f"{rank}; start them with the same command, files and versions"
            )


def first_on_machine(processes: Processes, make: Callable[[], T]) -> T:
    """What ``make`` returns, in all processes; the first one of a machine is done before the others of it begin.

    For what is kept in a cache: the others find it there.

    Example:
        >>> first_on_machine(OneProcess(), lambda: "made")
        'made'
    """
    if processes.local_rank:
        processes.wait()
        return make()
    made = make()
    processes.wait()
    return made


def part_of(num_rows: int, part: int, num_parts: int) -> slice:
    """The rows of one part of a batch: parts are consecutive and of one size, and the last ones may be empty.

    Example:
        >>> [part_of(5, part, 4) for part in range(4)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 5, None)]
    """
    size = -(-num_rows // num_parts)
    return slice(min(part * size, num_rows), min((part + 1) * size, num_rows))


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What `Processes.gather` returned, as one array."""
    return np.concatenate(parts)
