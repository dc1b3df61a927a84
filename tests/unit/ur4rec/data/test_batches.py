"""Batches: every target once, right padding, constant shapes, order from (seed, epoch), evaluation coordinates."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.data import Sequences, Targets, leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches, permuted
from ur4rec.errors import ConfigurationError, DataError

NUM_ITEMS = 9
rows = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=14), min_size=1, max_size=8)


def make(rows, *, max_seq_len=4, batch_size=3, seed=0, windows=True, shifted=False):
    return TrainBatches(
        Sequences.from_lists(rows),
        NUM_ITEMS,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        seed=seed,
        windows=windows,
        shifted=shifted,
    )


def real_positions(batch):
    """(user, input, target) of every position that has a target."""
    row, column = np.nonzero(batch.targets_BL != NUM_ITEMS)
    return list(zip(batch.users_B[row], batch.items_BL[row, column], batch.targets_BL[row, column], strict=True))


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_an_order_that_is_computed_is_a_permutation(count, seed):
    keys = np.random.Philox(seed).random_raw(6)
    order = permuted(np.arange(count), count, keys)
    assert sorted(order.tolist()) == list(range(count))
    places = np.arange(count)[:: max(1, count // 7)]
    assert permuted(places, count, keys).tolist() == order[places].tolist()


def test_the_order_of_more_windows_than_are_held_is_computed(monkeypatch):
    monkeypatch.setattr("ur4rec.data.batches.MAX_DRAWN", 10)
    rows = [list(range(9)) for _ in range(30)]
    epochs = [
        [position for batch in make(rows, seed=seed, batch_size=7) for position in real_positions(batch)]
        for seed in (0, 0, 1)
    ]
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    assert (
        sorted(epochs[0]) == sorted(epochs[2]) == [(user, *pair) for user in range(30) for pair in pairwise(range(9))]
    )
    batches = make(rows, batch_size=7, shifted=True)
    assert batches.usual_targets == 7 * 4
    assert batches.num_targets <= 30 * 8
    with ThreadPoolExecutor(4) as pool:  # each epoch is drawn again and again
        pairs = [(epoch, index) for index in range(len(batches)) for epoch in range(3)]
        found = list(pool.map(lambda pair: batches.batch(*pair), pairs))
    alone = make(rows, batch_size=7, shifted=True)
    for (epoch, index), batch in zip(pairs, found, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(alone.batch(epoch, index), batch, strict=True))


@given(
    rows.filter(lambda rows: any(len(row) > 1 for row in rows)), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3)
)
def test_every_target_comes_once_an_epoch(rows, max_seq_len, batch_size, epoch):
    batches = make(rows, max_seq_len=max_seq_len, batch_size=batch_size)
    batches.set_epoch(epoch)
    found = sorted(position for batch in batches for position in real_positions(batch))
    expected = sorted((user, *pair) for user, row in enumerate(rows) for pair in pairwise(row))
    assert found == expected
    assert batches.num_targets == len(expected)


@given(rows.filter(lambda rows: any(len(row) > 1 for row in rows)), st.integers(1, 6))
def test_without_windows_only_the_end_of_each_sequence_comes(rows, max_seq_len):
    batches = make(rows, max_seq_len=max_seq_len, windows=False)
    found = sorted(position for batch in batches for position in real_positions(batch))
    ends = [row[-max_seq_len - 1 :] for row in rows]
    assert found == sorted((user, *pair) for user, row in enumerate(ends) for pair in pairwise(row))


@given(rows.filter(lambda rows: any(len(row) > 1 for row in rows)), st.integers(1, 6))
def test_rows_are_consecutive_and_padded_on_the_right(rows, max_seq_len):
    for batch in make(rows, max_seq_len=max_seq_len):
        for items, targets, user in zip(*batch, strict=True):
            length = int((items != NUM_ITEMS).sum())
            assert (items[:length] < NUM_ITEMS).all()
            assert (targets[:length] < NUM_ITEMS).all()
            assert (targets[length:] == NUM_ITEMS).all()
            assert targets[: max(length - 1, 0)].tolist() == items[1:length].tolist()
            assert (length == 0) == (user == -1)


def test_shapes_and_types_are_constant():
    batches = make([[0, 1, 2, 3, 4]] * 6 + [[0, 1, 2]], batch_size=3)
    assert len(batches) == 3
    for batch in batches:
        assert [array.shape for array in batch] == [(3, 4), (3, 4), (3,)]
        assert {array.dtype for array in batch} == {np.dtype(np.int32)}
        assert all(array.flags.c_contiguous for array in batch)
    last = batches.batch(0, 2)
    assert last.users_B[1:].tolist() == [-1, -1]
    assert (last.items_BL[1:] == NUM_ITEMS).all()
    assert (last.targets_BL[1:] == NUM_ITEMS).all()


@pytest.mark.parametrize(("longest", "width"), [(2, 1), (6, 5), (9, 8), (30, 8)])
def test_batches_are_as_wide_as_the_longest_sequence_needs(longest, width):
    rows = [[0, 1], [item % NUM_ITEMS for item in range(longest)]]
    for shifted in (False, True):
        batches = make(rows, max_seq_len=8, shifted=shifted)
        assert {array.shape for batch in batches for array in batch[:2]} == {(3, width)}
        long = make(rows, max_seq_len=60, shifted=shifted)
        assert {array.shape for batch in long for array in batch[:2]} == {(3, longest - 1)}


def test_windows_are_aligned_to_the_end_and_overlap_in_one_item():
    batch = make([[0, 1, 2, 3, 4, 5, 6]], max_seq_len=4, batch_size=2).batch(0, 0)
    by_first = sorted(zip(batch.items_BL.tolist(), batch.targets_BL.tolist(), strict=True))
    assert by_first == [([0, 1, 9, 9], [1, 2, 9, 9]), ([2, 3, 4, 5], [3, 4, 5, 6])]


def windows_of(batches, epoch):
    """Every window of an epoch as (user, its items with the last target, how many of them are targets), sorted."""
    batches.set_epoch(epoch)
    return sorted(
        (user, (*items[items < NUM_ITEMS].tolist(), int(targets[targets < NUM_ITEMS][-1])), (targets < NUM_ITEMS).sum())
        for batch in batches
        for items, targets, user in zip(*batch, strict=True)
        if user >= 0
    )


def shifted_windows(sequence, count, shift, max_seq_len):
    """Cut by hand, from the end: the first window has fewer targets by the shift, but a row's whole context."""
    end, cuts = len(sequence), []
    for index in range(count):
        cut = max(len(sequence) - (index + 1) * max_seq_len + shift, 1)
        cuts.append((tuple(sequence[max(end - max_seq_len - 1, 0) : end]), end - cut))
        end = cut
    return sorted(cuts)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > 1), st.integers(1, 6))
def test_shifted_windows_are_cut_elsewhere_and_their_number_stays(sizes, max_seq_len):
    sequences = [[item % NUM_ITEMS for item in range(size)] for size in sizes]
    plain = make(sequences, max_seq_len=max_seq_len)
    batches = make(sequences, max_seq_len=max_seq_len, shifted=True)
    assert (len(batches), batches.num_rows) == (len(plain), plain.num_rows)
    for epoch in range(3):
        found = windows_of(batches, epoch)
        for user, sequence in enumerate(sequences):
            count = -(-max(len(sequence) - 1, 0) // max_seq_len)
            mine = sorted(window[1:] for window in found if window[0] == user)
            possible = [
                shifted_windows(sequence, count, shift, max_seq_len)
                for shift in (range(max_seq_len) if count > 1 else [0])
            ]
            assert mine in possible


def test_shifts_are_a_function_of_seed_and_epoch_alone():
    sequences = [[item % NUM_ITEMS for item in range(23)]] * 20
    first, second = make(sequences, shifted=True), make(sequences, shifted=True)
    windows_of(first, 4)
    assert windows_of(first, 2) == windows_of(second, 2)
    assert windows_of(first, 2) != windows_of(first, 3)
    assert windows_of(first, 2) != windows_of(make(sequences, seed=1, shifted=True), 2)
    # pinned: a resumed run may have another NumPy
    batch = make(sequences[:2], seed=5, batch_size=12, shifted=True).batch(4, 0)
    assert (batch.targets_BL < NUM_ITEMS).sum(1).tolist() == [4, 1, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4]


def test_shifted_windows_miss_only_the_first_targets_and_not_for_long():
    batches = make([[item % NUM_ITEMS for item in range(41)]], max_seq_len=4, shifted=True)
    seen = [sum(window[2] for window in windows_of(batches, epoch)) for epoch in range(40)]
    assert set(seen) == {37, 38, 39, 40}
    assert batches.num_targets == seen[0]


def users(batches, epoch):
    batches.set_epoch(epoch)
    return [user for batch in batches for user in batch.users_B.tolist()]


def test_order_is_a_function_of_seed_and_epoch_alone():
    rows = [[0, 1]] * 50
    first, second = make(rows, seed=1), make(rows, seed=1)
    users(first, 3)  # other epochs before do not matter
    assert users(first, 2) == users(second, 2)
    assert users(first, 2) != users(first, 3)
    assert users(first, 2) != users(make(rows, seed=2), 2)
    assert sorted(users(first, 2))[1:] == sorted(users(first, 7))[1:]
    # pinned: a resumed run may have another NumPy
    assert [make([[0, 1]] * 6, seed=5, batch_size=6).batch(4, 0).users_B.tolist()] == [[0, 1, 4, 2, 5, 3]]


def test_any_batch_can_be_had_directly():
    batches = make([[item, 0] for item in range(8)], batch_size=3)
    batches.set_epoch(5)
    for index, batch in enumerate(batches):
        for left, right in zip(batch, batches.batch(5, index), strict=True):
            np.testing.assert_array_equal(left, right)
    with pytest.raises(IndexError, match=r"index must be in 0..2, got 3"):
        batches.batch(5, 3)


def test_two_iterations_at_once_do_not_disturb_each_other():
    batches = make([[0, 1]] * 9)
    batches.set_epoch(0)
    early = iter(batches)
    first = next(early).users_B.tolist()
    batches.set_epoch(1)
    late = [batch.users_B.tolist() for batch in batches]
    rest = [batch.users_B.tolist() for batch in early]
    batches.set_epoch(0)
    assert [first, *rest] == [batch.users_B.tolist() for batch in batches] != late


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seq_len": 0}, "max_seq_len must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"seed": -1}, r"seed must be in 0 .. 2\*\*63 - 1, got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make([[0, 1]], **settings)


def test_training_without_any_target_is_refused():
    with pytest.raises(DataError, match="a sequence of at least 2 items, found none among 2"):
        make([[0], []])
    with pytest.raises(ConfigurationError, match="epoch must be at least 0, got -1"):
        make([[0, 1]]).set_epoch(-1)


@given(
    st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=19), min_size=1, max_size=8),
    st.integers(1, 18),
    st.integers(1, 4),
)
def test_evaluation_feeds_the_last_items_and_names_the_seen(histories, max_seq_len, batch_size):
    seen = [sorted(set(history) - {0}) for history in histories]
    targets = Targets(
        users_T=np.arange(len(histories), dtype=np.int32),
        items_T=np.zeros(len(histories), np.int32),
        histories=Sequences.from_lists(histories),
        seen=Sequences.from_lists(seen),
    )
    batches = EvaluationBatches(targets, NUM_ITEMS, max_seq_len=max_seq_len, batch_size=batch_size)
    shapes, row = set(), 0
    for batch in batches:
        shapes.add((batch.targets_B.shape, batch.seen_rows_M.shape, batch.seen_items_M.shape))
        width = batch.items_BL.shape[1]
        longest = max(min(len(history), max_seq_len) for history in histories[row : row + batch_size])
        assert width == min(max_seq_len, max(8, 2 ** math.ceil(math.log2(longest))))
        pairs = set(zip(batch.seen_rows_M[: batch.num_seen], batch.seen_items_M[: batch.num_seen], strict=True))
        assert (batch.seen_rows_M[batch.num_seen :] == batch_size).all()
        assert len(pairs) == batch.num_seen
        for place in range(batch.num_valid):
            fed = histories[row][-max_seq_len:]
            assert batch.items_BL[place].tolist() == fed + [NUM_ITEMS] * (width - len(fed))
            assert batch.users_B[place] == row
            assert {item for owner, item in pairs if owner == place} == set(seen[row])
            row += 1
        assert (batch.items_BL[batch.num_valid :] == NUM_ITEMS).all()
        assert (batch.users_B[batch.num_valid :] == -1).all()
    assert row == len(histories)
    assert len(shapes) == 1


def test_evaluation_batches_of_a_split():
    split = leave_one_out(synthetic(num_users=21, num_items=60))
    batches = EvaluationBatches(split.validation, split.num_items, max_seq_len=10, batch_size=8)
    assert [batch.num_valid for batch in batches] == [8, 8, 5]
    assert np.concatenate([b.targets_B[: b.num_valid] for b in batches]).tolist() == split.validation.items_T.tolist()
    with pytest.raises(IndexError, match=r"index must be in 0..2, got -1"):
        batches.batch(-1)
