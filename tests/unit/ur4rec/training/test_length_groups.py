import numpy as np
import pytest

from ur4rec.data import Sequences
from ur4rec.data.batches import TrainBatches
from ur4rec.training.length_groups import LEAST_SAVING, MOST, LengthGroups, best_groups, find_groups

NUM_ITEMS, WIDTH = 90, 30


def short_histories(num_users=2000, seed=0):
    """Lengths around 6, and one as long as a row."""
    draws = np.random.default_rng(seed)
    lengths = np.append(1 + draws.geometric(0.2, num_users - 1), WIDTH + 1)
    return Sequences.from_lists([draws.integers(0, NUM_ITEMS, length).tolist() for length in lengths])


def batches_of(sequences, **settings):
    return TrainBatches(sequences, NUM_ITEMS, **{"max_seq_len": WIDTH, "batch_size": 64, "seed": 0, **settings})


def lengths_of(batch):
    return (batch.items_BL != NUM_ITEMS).sum(1)


@pytest.mark.parametrize("settings", [{}, {"windows": False}, {"shifted": True}, {"max_seq_len": 4}])
def test_the_lengths_of_rows_are_counted(settings):
    batches = batches_of(short_histories(300), **settings)
    lengths = np.concatenate([lengths_of(batch) for batch in batches])
    expected = np.bincount(lengths[lengths > 0], minlength=batches.batch(0, 0).items_BL.shape[1] + 1)
    assert batches.length_counts.tolist() == expected.tolist()


def test_groups_hold_every_row_once_and_every_position():
    batches = batches_of(short_histories())
    groups = find_groups(batches)
    assert 1 < len(groups.shapes) <= MOST
    assert groups.width == WIDTH
    assert groups.num_positions < (1 - LEAST_SAVING) * 64 * WIDTH
    for batch in batches:
        divided = groups.divide(*batch[:2], NUM_ITEMS)
        assert sorted(np.concatenate(divided.rows).tolist()) == list(range(64))
        cut = groups.cut(batch.items_BL, divided)
        assert [each.shape for each in cut] == list(groups.shapes)
        positions = np.flatnonzero(batch.targets_BL != NUM_ITEMS)
        flat = np.concatenate([each.ravel() for each in cut])
        np.testing.assert_array_equal(flat[divided.places(positions)], batch.items_BL.ravel()[positions])
        assert (flat != NUM_ITEMS).sum() == (batch.items_BL != NUM_ITEMS).sum()


def test_hardly_a_batch_has_too_many_long_rows():
    batches = batches_of(short_histories(8000))
    groups = find_groups(batches)
    divided = [groups.divide(*batches.batch(epoch, index)[:2], NUM_ITEMS) for epoch in range(8) for index in range(125)]
    assert sum(each is None for each in divided) <= 3  # of 1000


def test_a_row_goes_into_a_wider_group_where_its_own_is_full_and_a_batch_of_too_many_is_not_divided():
    groups = LengthGroups(((2, 4), (2, 2)))
    rows = [[1, 9, 9, 9], [1, 2, 9, 9], [1, 2, 3, 9], [1, 9, 9, 9]]
    divided = groups.divide(np.array(rows), np.full((4, 4), 9), 9)
    assert [each.tolist() for each in divided.rows] == [[2, 1], [0, 3]]
    rows[0] = rows[1] = [1, 2, 3, 9]
    assert groups.divide(np.array(rows), np.full((4, 4), 9), 9) is None
    assert groups.divide(np.array(rows)[:2], np.full((2, 4), 9), 9) is None
    assert groups.divide(np.array(rows)[:, :3], np.full((4, 3), 9), 9) is None


def test_a_target_beside_padding_is_part_of_its_row():
    groups = LengthGroups(((1, 3), (1, 1)))
    items_BL, targets_BL = np.array([[1, 9, 9], [1, 9, 9]]), np.array([[9, 9, 9], [9, 9, 5]])
    assert [each.tolist() for each in groups.divide(items_BL, targets_BL, 9).rows] == [[1], [0]]


def test_rows_stay_together_where_little_is_saved():
    full = Sequences.from_lists([list(range(WIDTH + 1))] * 200 + [list(range(WIDTH - 2))] * 40)
    assert find_groups(batches_of(full)) is None
    assert find_groups(batches_of(short_histories()), is_accelerator=True) is None
    assert find_groups([]) is None
    for lengths in ([2], [2, 2, 3], [2] * 50 + [31]):
        assert (
            find_groups(batches_of(Sequences.from_lists([list(range(each)) for each in lengths]), batch_size=4)) is None
        )


@pytest.mark.parametrize("cost", [1, 16, 64])
def test_no_other_two_groups_cost_less(cost):
    counts_L = np.bincount(np.random.default_rng(1).geometric(0.3, 5000).clip(max=20), minlength=21)
    found = best_groups(counts_L, 100, cost)
    total = found.num_positions + cost * len(found.shapes)
    longer = [counts_L[width + 1 :].sum() / counts_L.sum() for width in range(21)]
    for width in range(1, 20):
        q = longer[width]
        room = min(int(np.ceil(100 * q + 4 * np.sqrt(100 * q * (1 - q)) + 2.5 * (1 - 2 * q))), 100) if q else 0
        assert total <= room * 20 + (100 - room) * width + 2 * cost
