"""Batches prepared ahead: in order whatever the number of readers, bounded, and no thread outlives its loop."""

import threading
import traceback
from itertools import count

import pytest

from ur4rec.training.ahead import DEPTH, ahead

READERS = [0, 1, 3]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def scaled(item, number):
    return 10 * item + number


@pytest.mark.parametrize("readers", READERS)
def test_items_come_in_order_each_prepared_with_its_number(readers):
    with ahead((number**2 for number in range(40)), scaled, readers=readers) as prepared:
        assert list(prepared) == [(number**2, 10 * number**2 + number) for number in range(40)]


def test_readers_that_overtake_each_other_change_nothing():
    done = [threading.Event() for _ in range(4)]

    def backwards(item, number):
        if item % 2 == 0:
            assert done[item + 1].wait(60)  # the next item is ready before this one
        done[item].set()
        return item

    with ahead(range(4), backwards, readers=2) as prepared:
        assert [each for _, each in prepared] == [0, 1, 2, 3]


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_are_a_bounded_number_of_items_ahead(readers):
    taken, limit = [], DEPTH * readers
    reached = threading.Event()

    def source():
        for number in count():
            taken.append(number)
            if number + 1 == limit:
                reached.set()
            yield number

    with ahead(source(), scaled, readers=readers) as prepared:
        next(prepared)
        assert reached.wait(60)
    assert limit <= len(taken) <= limit + 1


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("broken", ["items", "prepare"])
def test_an_error_comes_where_its_item_would_be_with_its_traceback(readers, broken):
    def raise_it():
        raise LookupError("no such row")

    def source():
        for number in range(9):
            if broken == "items" and number == 5:
                raise_it()
            yield number

    def prepare(item, number):
        if broken == "prepare" and number == 5:
            raise_it()
        return item

    found = []

    def read():
        with ahead(source(), prepare, readers=readers) as prepared:
            for item, _ in prepared:
                found.append(item)

    with pytest.raises(LookupError, match="no such row") as caught:
        read()
    assert "raise_it" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_an_interrupted_loop_leaves_no_thread(readers, reason):
    def read():
        with ahead(count(), scaled, readers=readers) as prepared:
            for item, _ in prepared:
                if item == 3:
                    raise reason

    with pytest.raises(reason):
        read()


@pytest.mark.parametrize("readers", READERS)
def test_a_loop_may_be_left_before_it_began(readers):
    with ahead(count(), scaled, readers=readers) as prepared:
        assert prepared
