"""Batches prepared ahead: other threads build the next ones and send them to the device while a step runs."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from threading import Condition
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
PreparedT = TypeVar("PreparedT")

DEPTH = 2
"""Batches that each reader may be ahead."""


@contextmanager
def ahead(
    items: Iterable[ItemT], prepare: Callable[[ItemT, int], PreparedT], *, readers: int
) -> Iterator[Iterator[tuple[ItemT, PreparedT]]]:
    """Items, each with what it was prepared to, in their order; leaving the context ends the threads.

    What is yielded does not depend on the number of readers. An error of a reader is raised, with its traceback, where
    its item would have been.

    Args:
        items: What to prepare; one thread at a time asks it for the next one.
        prepare: Is given an item and its number, from 0; several readers call it at the same time.
        readers: The number of threads, each at most `DEPTH` items ahead; 0 prepares an item when it is asked for.

    Example:
        >>> with ahead("abc", lambda letter, number: letter * number, readers=2) as prepared:
        ...     list(prepared)
        [('a', ''), ('b', 'b'), ('c', 'cc')]
    """
    found = _in_threads(items, prepare, readers) if readers else _at_once(items, prepare)
    with closing(found):
        yield found


def _at_once(
    items: Iterable[ItemT], prepare: Callable[[ItemT, int], PreparedT]
) -> Generator[tuple[ItemT, PreparedT], None, None]:
    for number, item in enumerate(items):
        yield item, prepare(item, number)


def _in_threads(
    items: Iterable[ItemT], prepare: Callable[[ItemT, int], PreparedT], readers: int
) -> Generator[tuple[ItemT, PreparedT], None, None]:
    source = _InTurn(items)

    def read(number: int) -> tuple[ItemT, PreparedT] | None:
        taken = source.take(number)
        return None if taken is None else (taken[0], prepare(taken[0], number))

    pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
    try:
        submitted = (pool.submit(read, number) for number in count())
        waiting: deque[Future[tuple[ItemT, PreparedT] | None]] = deque(next(submitted) for _ in range(DEPTH * readers))
        while (found := waiting.popleft().result()) is not None:
            waiting.append(next(submitted))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


class _InTurn(Generic[ItemT]):
    """An iterable of which several threads take each the item of its number.

    Args:
        items: The iterable.
    """

    def __init__(self, items: Iterable[ItemT]) -> None:
        self._items = iter(items)
        self._next = 0
        self._changed = Condition()

    def take(self, number: int) -> tuple[ItemT] | None:
        """The item of this number; None after the last one. It waits for those before it, which have been started."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
            try:
                return (next(self._items),)
            except StopIteration:
                return None
            finally:
                self._next += 1
                self._changed.notify_all()
