"""The shares of the parts of a batch make the mean over the whole of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.data.batches import Batch
from ur4rec.training.parts import cut_batch

NUM_ITEMS = 9
MASKS = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=7)


def batch_of(is_target_BL):
    targets_BL = np.where(is_target_BL, np.arange(is_target_BL.size).reshape(is_target_BL.shape) % NUM_ITEMS, NUM_ITEMS)
    return Batch(np.zeros_like(targets_BL), targets_BL, np.arange(len(targets_BL)))


@given(MASKS.map(np.array), st.integers(1, 5))
def test_means_of_parts_by_their_shares_are_the_mean_of_all(is_target_BL, num_parts):
    batch = batch_of(is_target_BL)
    losses_BL = np.random.default_rng(0).random(is_target_BL.shape)
    parts = [cut_batch(batch, NUM_ITEMS, part, num_parts) for part in range(num_parts)]
    own = [losses_BL[each.rows][each.batch.targets_BL != NUM_ITEMS] for each in parts]
    if not is_target_BL.any():
        assert all(np.isnan(each.target_share) for each in parts)
        return
    found = np.mean([each.target_share * losses.mean() for each, losses in zip(parts, own, strict=True)])
    assert found == pytest.approx(losses_BL[is_target_BL].mean())
    by_row = np.where(is_target_BL.any(1), losses_BL[:, 0], 0.0)
    rows = [by_row[each.rows].sum() / (is_target_BL[each.rows].any(1)).sum() for each in parts]
    mean = np.mean([each.row_share * row for each, row in zip(parts, rows, strict=True)])
    assert mean == pytest.approx(by_row.sum() / is_target_BL.any(1).sum())


@given(MASKS.map(np.array), st.integers(1, 5))
def test_parts_that_count_have_all_targets_once_and_all_say_where(is_target_BL, num_parts):
    batch = batch_of(is_target_BL)
    parts = [cut_batch(batch, NUM_ITEMS, part, num_parts) for part in range(num_parts)]
    targets = [each.batch.targets_BL[each.batch.targets_BL != NUM_ITEMS].tolist() for each in parts]
    expected = batch.targets_BL[is_target_BL].tolist()
    assert [target for each, own in zip(parts, targets, strict=True) if each.counts for target in own] == expected
    for each, own in zip(parts, targets, strict=True):
        assert each.targets_N[each.targets].tolist() == own
        assert each.targets_N.tolist() == expected
        assert 1 <= len(each.batch.items_BL) <= each.size
