"""Interactions and splits: canonical order, stable ties, nothing lost, nothing from the future."""

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from ur4rec.data import (
    as_given,
    build_interactions,
    describe,
    global_temporal,
    leave_one_out,
    make_split,
    sample_users,
    synthetic,
)
from ur4rec.data.describe import describe_split, explain_duplicates, explain_repeats
from ur4rec.data.splits import check_trainable, with_validation
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


def check_targets(targets, naive, repeats):
    """Targets against a naive list of (user, history, item), before the protocol leaves any out."""
    expected = [each for each in naive if repeats == "allow" or each[2] not in each[1]]
    assert targets.num_excluded == len(naive) - len(expected)
    assert targets.users_T.tolist() == [user for user, _, _ in expected]
    assert [row.tolist() for row in targets.histories] == [history for _, history, _ in expected]
    assert targets.items_T.tolist() == [item for _, _, item in expected]
    assert targets.is_repeated.tolist() == [item in history for _, history, item in expected]
    seen = [sorted(set(history)) if repeats == "exclude" else [] for _, history, _ in expected]
    assert [row.tolist() for row in targets.seen.distinct(99)] == seen


@given(
    events.filter(lambda rows: any(len(row) >= 3 for row in naive_sequences(rows))),
    st.sampled_from(["auto", "allow", "exclude"]),
)
def test_leave_one_out(rows, repeats):
    sequences = naive_sequences(rows)
    users = [user for user, row in enumerate(sequences) if len(row) >= 3]
    naive = [[(user, sequences[user][:-back], sequences[user][-back]) for user in users] for back in (2, 1)]
    share = np.mean([item in history for targets in naive for _, history, item in targets])
    if repeats == "exclude" and any(all(item in history for _, history, item in targets) for targets in naive):
        with pytest.raises(DataError, match="needs a target that is new to its user where repeats are excluded, found"):
            leave_one_out(build(rows), repeats=repeats)
        return
    split = leave_one_out(build(rows), repeats=repeats)
    assert split.repeats == (repeats if repeats != "auto" else "allow" if share >= 0.1 else "exclude")
    assert split.repeated_share == pytest.approx(share)
    assert [row.tolist() for row in split.train] == [row[:-2] if len(row) >= 3 else row for row in sequences]
    check_targets(split.validation, naive[0], split.repeats)
    check_targets(split.test, naive[1], split.repeats)
    whole = with_validation(build(rows), split)
    assert [row.tolist() for row in whole.train] == [row[:-1] if len(row) >= 3 else row for row in sequences]
    assert (whole.test, whole.validation) == (split.test, split.validation)
    assert len({whole.hash, split.hash}) == 2


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
    rows = [*rows, (9, 6, 0), *((9, 7 + time, time) for time in range(7))]  # hardly ever is a period without a target
    interactions = build(rows)
    try:
        split = global_temporal(interactions, q, repeats="allow")
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
    cut = interactions.timestamps_N[int(q * len(interactions))]
    whole = with_validation(interactions, split)
    for user, row in enumerate(whole.train):
        before = sum(time < cut for time in times[user])
        assert row.tolist() == interactions.sequences[user][:before].tolist()
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
    whole = with_validation(build(rows), split)
    assert [row.tolist() for row in whole.train] == [[0, 1, 2], [1, 2, 0], [0]]  # user 2 did not validate


def repeating(num_repeating, num_users=50):
    """Users with items of their own, the last of which is a repeat for some."""
    return [
        (user, 5 * user + (0 if place == 4 and user < num_repeating else place), place)
        for user in range(num_users)
        for place in range(5)
    ]


@pytest.mark.parametrize(("num_repeating", "repeats"), [(0, "exclude"), (9, "exclude"), (10, "allow"), (50, "allow")])
def test_a_tenth_of_repeated_targets_decides(num_repeating, repeats):
    split = make_split(build(repeating(num_repeating)))  # 50 validation targets are new, of 50 test targets some
    assert split.repeats == repeats
    assert split.repeated_share == pytest.approx(num_repeating / 100)
    assert (len(split.validation), split.validation.num_excluded) == (50, 0)
    left_out = num_repeating if repeats == "exclude" else 0
    assert (len(split.test), split.test.num_excluded) == (50 - left_out, left_out)
    said = explain_repeats(split)
    assert said.startswith(f"{num_repeating / 100:.1%} of the targets repeat an item of their history (auto: allowed")
    assert f"{num_repeating} targets are left out" in said if left_out else "left out" not in said
    facts = describe_split(split)
    assert (facts["repeats_allowed"], facts["targets_left_out"]) == (repeats == "allow", left_out)


def test_targets_that_all_repeat_are_no_test_of_new_ones():
    with pytest.raises(DataError, match=r"tiny: test needs a target that is new .*, found none among 50; allow"):
        make_split(build(repeating(50)), repeats="exclude")


@pytest.mark.parametrize("method", ["leave-one-out", "temporal"])
def test_protocols_and_methods_are_told_apart_by_the_hash(method):
    data = synthetic(num_users=60, num_items=60, repeat=0.1)
    splits = [make_split(data, method, repeats) for repeats in ("auto", "allow", "exclude")]
    assert splits[0].hash in {splits[1].hash, splits[2].hash}
    assert splits[1].hash != splits[2].hash
    assert (splits[1].train.items_N == splits[2].train.items_N).all()


def test_what_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match="unknown split 'random'; expected one of"):
        make_split(synthetic(num_users=20, num_items=50), "random")
    with pytest.raises(ConfigurationError, match="unknown repeats 'never'; expected one of"):
        make_split(synthetic(num_users=20, num_items=50), repeats="never")


def naive_given(rows, parts):
    """Each user's (part, item) in the order that files for training, validation and test have."""
    names = list(dict.fromkeys(item for _, item, _ in rows))
    sequences = {user: [] for user in dict.fromkeys(user for user, _, _ in rows)}
    for (user, item, time), part in zip(rows, parts, strict=True):
        sequences[user].append((part % 3, time, part, names.index(item)))
    ordered = [sorted(each, key=lambda row: row[:2]) for each in sequences.values()]
    return [[(part, item) for _, _, part, item in each] for each in ordered]


@given(events, st.data(), st.sampled_from(["allow", "exclude"]))
def test_a_given_split_is_kept(rows, data, repeats):
    parts = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    rows, parts = [*rows, (9, 6, 0), (9, 7, 1), (9, 8, 2)], [*parts, 0, 1, 2]  # each part has a target that is new
    order = sorted(range(len(rows)), key=lambda row: (parts[row] % 3, rows[row][2]))  # as data that came split is read
    rows, parts = [rows[row] for row in order], [parts[row] for row in order]
    interactions = build(rows, parts=np.array(parts))
    split = make_split(interactions, repeats=repeats)
    assert split.name == "given"
    sequences = naive_given(rows, parts)
    assert [row.tolist() for row in split.train] == [[item for part, item in row if part == 0] for row in sequences]
    whole = with_validation(interactions, split)
    assert [row.tolist() for row in whole.train] == [[item for part, item in row if part <= 1] for row in sequences]
    for part, targets in ((1, split.validation), (2, split.test)):
        naive = [
            (user, [item for _, item in row[:place]], row[place][1])
            for user, row in enumerate(sequences)
            for place in range(len(row))
            if row[place][0] == part
        ]
        check_targets(targets, [each for each in naive if each[1]], repeats)
        assert targets.num_unfed == sum(not history for _, history, _ in naive)


def test_a_given_split_by_hand():
    """The test file has a time before the validation's: the parts come first. Context is fed, but no target."""
    rows = [(0, 0, 5), (0, 1, 6), (0, 2, 9), (0, 3, 7), (0, 4, 8), (1, 0, 1), (1, 1, 2), (2, 2, 3)]
    interactions = build(rows, parts=np.array([0, 0, 1, 2, 2, 3, 2, 2]))
    assert [row.tolist() for row in interactions.sequences] == [[0, 1, 2, 3, 4], [0, 1], [2]]
    split = as_given(interactions)
    assert [row.tolist() for row in split.train] == [[0, 1], [], []]
    assert (split.test.users_T.tolist(), split.test.items_T.tolist()) == ([0, 0, 1], [3, 4, 1])
    assert [row.tolist() for row in split.test.histories] == [[0, 1, 2], [0, 1, 2, 3], [0]]
    assert [row.tolist() for row in split.test.seen] == [[0, 1, 2], [0, 1, 2, 3], [0]]
    assert split.test.num_unfed == 1  # user 2 has nothing before it
    assert "1 targets without a history are left out" in explain_repeats(split)
    assert sample_users(interactions, 3).parts_N.tolist() == interactions.parts_N.tolist()


def test_parts_are_in_the_hash_only_where_there_are_any():
    rows = [(0, 0, 1), (0, 1, 2), (0, 2, 3)]
    whole, given_, other = build(rows), *(build(rows, parts=np.array(parts)) for parts in ([0, 1, 2], [0, 2, 1]))
    assert len({whole.hash, given_.hash, other.hash}) == 3


def test_data_that_came_split_is_not_split_again_and_other_data_has_no_split():
    whole = build([(0, 0, 1), (0, 1, 2), (0, 2, 3)])
    parted = build([(0, 0, 1), (0, 1, 2), (0, 2, 3)], parts=np.array([0, 1, 2]))
    for method in ("leave-one-out", "temporal"):
        with pytest.raises(DataError, match=f"data that came split must keep its split, got {method}; choose given"):
            make_split(parted, method)
    with pytest.raises(DataError, match=r"needs data that came split, .* got one without; choose leave-one-out"):
        make_split(whole, "given")
    for parts in ([0, 0, 2], [0, 1, 1], [1, 2, 2]):
        with pytest.raises(DataError, match=r"needs a (validation|test) row with an earlier row of its user, found no"):
            make_split(build([(0, 0, 1), (0, 1, 2), (0, 2, 3)], parts=np.array(parts)))


@given(events, st.booleans())
def test_rows_that_repeat_another_one_are_counted_and_dropped_on_demand(rows, deduplicate):
    interactions = build(rows, deduplicate=deduplicate)
    kept = list(dict.fromkeys(rows)) if deduplicate else rows
    assert interactions.num_duplicates == describe(interactions)["duplicates"] == len(rows) - len(set(rows))
    assert [row.tolist() for row in interactions.sequences] == naive_sequences(kept)
    assert interactions.hash == build(kept).hash


def test_rows_are_duplicates_within_a_part_and_before_rare_items_are_dropped():
    rows = [(0, 0, 1), (0, 0, 1), (0, 0, 2), (0, 1, 3), (0, 1, 3)]
    assert build(rows, parts=np.array([0, 1, 0, 0, 2])).num_duplicates == 0
    assert build(rows, deduplicate=True, min_item_interactions=2).item_ids == ["i0"]
    assert build(rows, min_item_interactions=2).item_ids == ["i0", "i1"]
    assert explain_duplicates(build(rows), False).startswith("2 rows repeat another one (user, item and time): each co")
    assert explain_duplicates(build(rows, deduplicate=True), True).endswith("left out")


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
    assert facts["duplicates"] == 1
    assert facts["tied_last_two"] == 0.5  # user 0 of users 0 and 1; user 2 has one event
    assert facts["users_below_3"] == 2


def test_data_on_which_nothing_can_be_trained_is_refused():
    short = build([(user, item, item) for user in range(3) for item in range(3)])
    with pytest.raises(
        DataError, match=r"x: some user must have at least 2 training .* of 3 users none has; look which"
    ):
        check_trainable(leave_one_out(short), "x")
    one = build([(user, 0, time) for user in range(3) for time in range(9)])
    with pytest.raises(DataError, match="x: must have at least 2 items, got 1; look which column is the item's"):
        check_trainable(make_split(one), "x")
    check_trainable(leave_one_out(build([(0, item, item) for item in range(4)])), "x")
