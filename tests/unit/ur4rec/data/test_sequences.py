"""Sequences against plain lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.data import Sequences, interactions

rows = st.lists(st.lists(st.integers(0, 50), max_size=6), max_size=6)


def as_lists(sequences):
    return [row.tolist() for row in sequences]


@given(rows)
def test_rows_come_back(rows):
    sequences = Sequences.from_lists(rows)
    assert as_lists(sequences) == rows
    assert len(sequences) == len(rows)
    assert sequences.lengths.tolist() == [len(row) for row in rows]
    assert sequences.rows.tolist() == [index for index, row in enumerate(rows) for _ in row]
    assert sequences.positions.tolist() == [position for row in rows for position in range(len(row))]


@given(rows, st.data())
def test_heads_and_tails(rows, data):
    lengths = data.draw(st.lists(st.integers(-1, 8), min_size=len(rows), max_size=len(rows)))
    kept = [max(length, 0) for length in lengths]
    sequences = Sequences.from_lists(rows)
    heads, tails = sequences.heads(np.array(lengths, np.int64)), sequences.tails(np.array(lengths, np.int64))
    assert as_lists(heads) == [row[:length] for row, length in zip(rows, kept, strict=True)]
    assert as_lists(tails) == [row[max(len(row) - length, 0) :] for row, length in zip(rows, kept, strict=True)]


@given(rows.filter(bool), st.data())
def test_take(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = Sequences.from_lists(rows).take(np.array(chosen, np.int64))
    assert as_lists(taken) == [rows[index] for index in chosen]


@given(rows.filter(bool), st.data())
def test_rows_may_lie_anywhere(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    sequences = Sequences.from_lists(rows).take(np.array(chosen, np.int64))
    expected = [rows[index] for index in chosen]
    assert sequences.flat.tolist() == [item for row in expected for item in row]
    assert as_lists(sequences.distinct(51)) == [sorted(set(row)) for row in expected]
    assert sequences.count_items(51).tolist() == [sum(row.count(item) for row in expected) for item in range(51)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactions, "CHUNK", 4)
        parts = list(sequences.chunks())
        assert sequences.count_items(51).sum() == len(sequences.flat)
    assert [row for _, part in parts for row in as_lists(part)] == expected
    assert [first for first, _ in parts] == np.cumsum([0, *(len(part) for _, part in parts)])[:-1].tolist()
    assert all(len(part) == 1 or part.lengths.sum() <= 4 for _, part in parts)


def test_parts_of_rows_are_views():
    sequences = Sequences.from_lists([[1, 2, 3], [4, 5]])
    for part in (sequences.heads(1), sequences.tails(2), sequences.take(np.array([1, 0]))):
        assert part.items_N is sequences.items_N


def test_indexing_gives_a_view_and_knows_its_bounds():
    sequences = Sequences.from_lists([[1, 2], [3]])
    assert np.shares_memory(sequences[0], sequences.items_N)
    assert sequences[-1].tolist() == [3]
    with pytest.raises(IndexError, match=r"row must be in 0..1, got 2"):
        sequences[2]
