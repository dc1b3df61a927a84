"""Metrics by popularity of the target: the deciles, their intervals against a plain bootstrap, and the edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.data import leave_one_out, synthetic
from ur4rec.evaluation.intervals import metric_intervals
from ur4rec.evaluation.metrics import ndcg
from ur4rec.evaluation.popularity import by_popularity, popularity_columns, popularity_deciles
from ur4rec.runs.popularity import scorer_rows, write_popularity


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_deciles_follow_popularity_and_cold_items_are_apart(counts):
    deciles = popularity_deciles(np.array(counts))
    assert all((decile == 0) == (count == 0) for decile, count in zip(deciles, counts, strict=True))
    warm = sorted(count for count in counts if count)
    for count, decile in zip(counts, deciles, strict=True):
        if count:
            below = sum(other < count for other in warm)
            assert (decile - 1) * len(warm) <= 10 * below < decile * len(warm)


def test_of_a_hundred_items_of_different_popularity_ten_are_in_each_decile():
    counts = np.random.default_rng(0).permutation(np.arange(1, 101))
    deciles = popularity_deciles(counts)
    assert np.bincount(deciles).tolist() == [0, *[10] * 10]
    assert counts[deciles == 10].min() == 91


def naive_interval(values_T, users_T, rng, num_resamples=4000):
    """Users drawn one by one, each with all of their targets."""
    users = np.unique(users_T)
    sums, nums = (np.array([f(values_T[users_T == user]) for user in users]) for f in (np.sum, len))
    drawn = rng.integers(0, len(users), (num_resamples, len(users)))
    return np.quantile(sums[drawn].sum(1) / nums[drawn].sum(1), [0.025, 0.975])


@pytest.mark.parametrize("most_targets", [1, 6])
def test_intervals_are_those_of_a_bootstrap_over_users(most_targets):
    rng = np.random.default_rng(1)
    users_T = np.repeat(np.arange(150), rng.integers(1, most_targets + 1, 150))
    ranks_T = (1 + rng.exponential(4 + 20 * (users_T % 3 == 0))).astype(np.int64)  # users differ
    found = metric_intervals(ranks_T, users_T)
    for name, values_T in {"hit@10": ranks_T <= 10, "ndcg@10": ndcg(ranks_T, 10)}.items():
        assert found[name].estimate == pytest.approx(values_T.mean())
        assert found[name][1:] == pytest.approx(naive_interval(values_T, users_T, rng), abs=0.006)
        assert found[name].high - found[name].low > 0.03


def test_intervals_are_the_same_when_they_are_computed_again_whatever_the_order_of_the_targets():
    rng = np.random.default_rng(2)
    ranks_T, users_T = rng.integers(1, 40, 90), rng.integers(0, 30, 90)
    order = rng.permutation(90)
    assert metric_intervals(ranks_T, users_T) == metric_intervals(ranks_T[order], users_T[order])


def test_a_group_without_targets_is_listed_without_metrics(tmp_path):
    split = leave_one_out(synthetic(num_users=30, num_items=80, num_clusters=8, mean_length=8))
    counts_I = split.train.count_items(split.num_items)
    ranks_T = np.arange(1, len(split.test) + 1)
    groups = by_popularity({"fused": ranks_T, "sasrec": ranks_T[::-1]}, split.test, counts_I)
    assert sum(group.num_items for group in groups) == split.num_items
    assert sum(group.num_targets for group in groups) == len(split.test)
    assert all(bool(group.scorers) == bool(group.num_targets) for group in groups)
    cold_T = counts_I[split.test.items_T] == 0
    assert (groups[0].name, groups[0].num_targets, groups[0].most) == ("cold", cold_T.sum(), 0)
    columns = popularity_columns(groups)
    assert len(columns["decile"]) == 2 * sum(group.num_targets > 0 for group in groups)
    write_popularity(tmp_path, groups, "a title with $ and [b]")
    assert (tmp_path / "popularity.csv").read_text().splitlines()[0] == ",".join(columns)
    assert (tmp_path / "popularity.png").read_bytes().startswith(b"\x89PNG")


def test_the_rows_of_a_run_that_trained_one_module_are_its_own():
    assert scorer_rows(["popularity", "SASRec alone"]) == {"sasrec": "SASRec alone"}
    assert scorer_rows(["popularity"]) == {}
