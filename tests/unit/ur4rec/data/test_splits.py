"""Interactions and splits: canonical order, stable ties, nothing lost, nothing from the future."""

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from ur4rec.data import build_interactions, describe, global_temporal, leave_one_out, synthetic
from ur4rec.errors import ConfigurationError, DataError


def build(rows, **settings):
    """Rows of (user, item, time)."""
    users, items, times = zip(*rows, strict=True)
    return build_interactions(
        users=[f"u{user}" for user in users],
        items=[f"i{item}" for item in items],
        timestamps=np.array(times),
        titles={},
        texts={},
        name="tiny",
        source="test",
        **settings,
    )


events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=40)


def naive_sequences(rows):
    """Each user's items by time, ties in file order, with canonical items; users in order of first appearance."""
    items = list(dict.fromkeys(item for _, item, _ in rows))
    sequences = {user: [] for user in dict.fromkeys(user for user, _, _ in rows)}
    for user, item, time in rows:
        sequences[user].append((time, items.index(item)))
    return [[item for _, item in sorted(events, key=lambda event: event[0])] for events in sequences.values()]


@given(events)
def test_sequences_are_sorted_by_time_and_ties_keep_file_order(rows):
    interactions = build(rows)
    assert [row.tolist() for row in interactions.sequences] == naive_sequences(rows)
    assert (np.diff(interactions.timestamps_N) >= 0).all()
    assert len(interactions) == len(rows)
    assert interactions.users_N.dtype == interactions.items_N.dtype == np.int32


def test_names_do_not_change_the_hash_and_order_does():
    rows = [(0, 0, 5), (1, 1, 5), (0, 1, 6), (1, 0, 7)]
    renamed = [(9 - user, 70 + item, time) for user, item, time in rows]
    assert build(rows).hash == build(renamed).hash
    swapped = [(0, 0, 5), (1, 1, 5), (1, 0, 6), (0, 1, 7)]
    assert build(rows).hash != build(swapped).hash
    later = [(user, item, time + 100) for user, item, time in rows]
    assert build(rows).hash == build(later).hash


def test_rare_items_are_dropped_once_before_numbering():
    rows = [(0, 7, 1), (0, 8, 2), (1, 8, 3), (1, 9, 4), (2, 9, 5), (3, 7, 6), (3, 5, 7)]
    interactions = build(rows, min_item_interactions=2)
    assert interactions.item_ids == ["i7", "i8", "i9"]
    assert interactions.user_ids == ["u0", "u1", "u2", "u3"]
    assert len(interactions) == 6
    with pytest.raises(DataError, match=r"no interaction is left of 7 with min_item_interactions=3"):
        build(rows, min_item_interactions=3)


def test_users_who_lose_everything_are_gone():
    interactions = build([(0, 1, 1), (1, 2, 2), (2, 2, 3)], min_item_interactions=2)
    assert interactions.user_ids == ["u1", "u2"]
    assert interactions.num_items == 1


@given(events.filter(lambda rows: any(len(row) >= 3 for row in naive_sequences(rows))))
def test_leave_one_out(rows):
    sequences = naive_sequences(rows)
    split = leave_one_out(build(rows))
    users = [user for user, row in enumerate(sequences) if len(row) >= 3]
    assert [row.tolist() for row in split.train] == [row[:-2] if len(row) >= 3 else row for row in sequences]
    for targets, back in ((split.validation, 2), (split.test, 1)):
        assert targets.users_T.tolist() == users
        assert targets.items_T.tolist() == [sequences[user][-back] for user in users]
        histories = [sequences[user][:-back] for user in users]
        assert [row.tolist() for row in targets.histories] == histories
        assert [row.tolist() for row in targets.seen] == [
            sorted(set(history) - {sequences[user][-back]}) for user, history in zip(users, histories, strict=True)
        ]


def test_leave_one_out_needs_three_interactions():
    with pytest.raises(DataError, match="a user with at least 3 interactions, found none"):
        leave_one_out(build([(0, 1, 1), (0, 2, 2), (1, 1, 3)]))


def test_tied_timestamps_do_not_make_the_split_depend_on_luck():
    rows = [(0, item, 100) for item in (4, 2, 9, 1, 7)]
    split = leave_one_out(build(rows))
    assert build(rows).item_ids == ["i4", "i2", "i9", "i1", "i7"]
    assert (split.validation.items_T.tolist(), split.test.items_T.tolist()) == ([3], [4])


@given(events, st.sampled_from([0.5, 0.8, 0.9]))
def test_global_temporal_trains_on_nothing_from_the_future(rows, q):
    interactions = build(rows)
    try:
        split = global_temporal(interactions, q)
    except DataError:
        reject()
    times = {}
    for user, time in zip(interactions.users_N.tolist(), interactions.timestamps_N.tolist(), strict=True):
        times.setdefault(user, []).append(time)
    num_trained = split.train.lengths.tolist()
    last_trained = max((times[user][count - 1] for user, count in enumerate(num_trained) if count), default=-1)
    for targets in (split.validation, split.test):
        for user, target, history in zip(targets.users_T, targets.items_T, targets.histories, strict=True):
            sequence = interactions.sequences[user].tolist()
            assert len(history) >= 1
            assert sequence[: len(history) + 1] == [*history.tolist(), target]
            assert times[user][len(history)] > last_trained
    test_times = [times[u][len(h)] for u, h in zip(split.test.users_T, split.test.histories, strict=True)]
    validation_times = [
        times[u][len(h)] for u, h in zip(split.validation.users_T, split.validation.histories, strict=True)
    ]
    assert max(validation_times) < min(test_times)
    assert [len(h) + 1 for h in split.test.histories] == [len(times[u]) for u in split.test.users_T]


def test_global_temporal_by_hand():
    rows = [
        (0, 0, 0),
        (1, 1, 1),
        (0, 1, 2),
        (1, 2, 3),
        (0, 2, 4),
        (2, 0, 5),
        (1, 0, 6),
        (0, 3, 7),
        (1, 3, 8),
        (2, 1, 9),
    ]
    split = global_temporal(build(rows), q=0.7)  # test from 7, validation from 4
    assert [row.tolist() for row in split.train] == [[0, 1], [1, 2], []]
    assert split.validation.users_T.tolist() == [0, 1]
    assert split.validation.items_T.tolist() == [2, 0]
    assert split.test.users_T.tolist() == [0, 1, 2]
    assert split.test.items_T.tolist() == [3, 3, 1]
    assert [row.tolist() for row in split.test.histories] == [[0, 1, 2], [1, 2, 0], [0]]


def test_global_temporal_refuses_a_period_without_targets():
    with pytest.raises(DataError, match="the validation period holds no target: choose another q, or leave-one-out"):
        global_temporal(build([(0, 0, 0), (0, 1, 0), (0, 2, 0)]))


@pytest.mark.parametrize("q", [0, 1, -0.5, 1.5])
def test_global_temporal_refuses_a_bad_q(q):
    with pytest.raises(ConfigurationError, match=r"q must be inside \(0, 1\)"):
        global_temporal(synthetic(num_users=20, num_items=50), q)


def test_split_hashes_tell_splits_apart():
    data, other = synthetic(num_users=40, num_items=60), synthetic(num_users=40, num_items=60, seed=1)
    hashes = {leave_one_out(data).hash, global_temporal(data).hash, global_temporal(data, 0.8).hash}
    assert len(hashes) == 3
    assert leave_one_out(other).hash not in hashes
    assert leave_one_out(data).hash == leave_one_out(synthetic(num_users=40, num_items=60)).hash


def test_describe_counts():
    facts = describe(build([(0, 0, 1), (0, 1, 2), (0, 1, 2), (1, 0, 3), (1, 1, 4), (2, 0, 9)]))
    assert facts["num_users"] == 3
    assert facts["num_items"] == 2
    assert facts["num_interactions"] == 6
    assert facts["density"] == 1.0
    assert facts["sequence_length_mean"] == 2.0
    assert (facts["sequence_length_min"], facts["sequence_length_max"]) == (1.0, 3.0)
    assert facts["repeats"] == pytest.approx(1 / 6)
    assert facts["tied_last_two"] == 0.5  # user 0 of users 0 and 1; user 2 has one event
    assert facts["users_below_3"] == 2
