"""Ranks and metrics against a plain-Python computation, and the traps: ties, NaN, seen targets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches
from ur4rec.errors import ConfigurationError, DataError, NonFiniteError
from ur4rec.evaluation import metrics
from ur4rec.evaluation.metrics import SmoothRanks, rank_batches, smooth_ranks, summarise, target_ranks
from ur4rec.evaluation.popularity import popularity_ranks, popularity_scores

NONE = np.zeros(0, np.int32)


def naive_rank(scores, target, seen):
    return 1 + sum(
        1 for item, score in enumerate(scores) if item != target and item not in seen and score >= scores[target]
    )


@st.composite
def ranking_problems(draw):
    num_items, num_rows = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    # few distinct scores, so that ties are common
    scores = draw(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=num_items, max_size=num_items),
                           min_size=num_rows, max_size=num_rows))  # fmt: skip
    targets = draw(st.lists(st.integers(0, num_items - 1), min_size=num_rows, max_size=num_rows))
    seen = draw(st.lists(st.sets(st.integers(0, num_items - 1)), min_size=num_rows, max_size=num_rows))
    return scores, targets, seen


@given(ranking_problems())
def test_ranks_equal_the_naive_computation(problem):
    scores, targets, seen = problem
    rows = [row for row, items in enumerate(seen) for _ in items]
    items = [item for items in seen for item in items]
    ranks = target_ranks(scores, targets, rows, items)
    assert ranks.tolist() == [naive_rank(*row) for row in zip(scores, targets, seen, strict=True)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_metrics_equal_the_naive_computation(ranks, k_list):
    summary = summarise(ranks, k_list)
    for k in k_list:
        hits = [1.0 if rank <= k else 0.0 for rank in ranks]
        gains = [1 / math.log2(rank + 1) if rank <= k else 0.0 for rank in ranks]
        assert summary[f"hit@{k}"] == pytest.approx(sum(hits) / len(ranks))
        assert summary[f"ndcg@{k}"] == pytest.approx(sum(gains) / len(ranks))
    assert summary["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))


def test_a_constant_scorer_gets_nothing():
    split = leave_one_out(synthetic(num_users=30, num_items=60))
    batches = EvaluationBatches(split.test, split.num_items, max_seq_len=5, batch_size=8)
    ranks = rank_batches(lambda batch: np.zeros((len(batch.targets_B), split.num_items)), batches)
    assert ranks.tolist() == (split.num_items - split.test.seen.lengths).tolist()  # behind every candidate
    assert summarise(ranks, [1, 5, 10])["hit@10"] == 0


@settings(max_examples=30)
@given(st.permutations(range(6)))
def test_the_order_of_the_catalogue_does_not_matter(order):
    scores = np.array([0.3, 0.3, 0.1, 0.9, 0.3, 0.2])
    rank = target_ranks([scores], [0], [0], [3])
    permuted = target_ranks([scores[list(order)]], [order.index(0)], [0], [order.index(3)])
    assert permuted.tolist() == rank.tolist() == [3]


def test_the_target_is_never_filtered():
    assert target_ranks([[0.1, 0.5]], [1], [0], [1]).tolist() == [1]
    assert target_ranks([[0.9, 0.5]], [1], [0], [1]).tolist() == [2]


def test_padding_coordinates_are_ignored():
    assert target_ranks([[0.9, 0.5]], [1], [1, 7], [0, 0]).tolist() == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 2])
def test_a_score_that_is_not_finite_is_an_error(bad, column):
    scores = np.array([[0.5, 0.6, 0.7]])
    scores[0, column] = bad
    with pytest.raises(NonFiniteError, match=f"must be finite, got {bad} for item {column} in row 0"):
        target_ranks(scores, [2], NONE, NONE)


def test_filtered_scores_may_be_anything():
    assert target_ranks([[np.nan, 0.6, -np.inf, 0.7]], [1], [0, 0], [0, 2]).tolist() == [2]


def test_scores_keep_their_precision():
    scores = np.array([[1.0, 1.0 + 1e-12]])
    assert target_ranks(scores, [1], NONE, NONE).tolist() == [1]
    assert target_ranks(scores.astype(np.float32), [1], NONE, NONE).tolist() == [2]


def test_no_target_or_no_k_is_an_error():
    with pytest.raises(DataError, match="at least one target"):
        summarise([])
    with pytest.raises(ConfigurationError, match="every k must be at least 1, got 0"):
        summarise([1], [0])


def test_popularity_ranks_are_those_of_the_reference():
    split = leave_one_out(synthetic(num_users=80, num_items=60))
    scores_I = popularity_scores(split.train, split.num_items)
    for targets in (split.validation, split.test):
        batches = EvaluationBatches(targets, split.num_items, max_seq_len=1, batch_size=9)
        score = lambda batch: np.broadcast_to(scores_I, (len(batch.targets_B), split.num_items))  # noqa: E731
        expected = rank_batches(score, batches)
        assert popularity_ranks(split.train, targets, split.num_items).tolist() == expected.tolist()


def test_ranks_come_in_the_order_of_the_targets():
    split = leave_one_out(synthetic(num_users=37, num_items=60))
    scores_UI = np.random.default_rng(0).random((37, split.num_items))

    def ranks(batch_size):
        batches = EvaluationBatches(split.test, split.num_items, max_seq_len=5, batch_size=batch_size)
        rows = iter(range(0, 10**9, batch_size))

        def score(batch):
            start = next(rows)
            return np.resize(scores_UI[start : start + batch.num_valid], (batch_size, split.num_items))

        return rank_batches(score, batches).tolist()

    expected = [
        naive_rank(scores_UI[row], split.test.items_T[row], set(split.test.seen[row].tolist())) for row in range(37)
    ]
    assert ranks(37) == ranks(8) == ranks(1) == expected


@given(ranking_problems(), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_smooth_ranks_know_no_unit_and_equal_the_naive_computation(problem, unit, shift):
    scores, targets, seen = problem
    rows = [row for row, items in enumerate(seen) for _ in items]
    items = [item for items in seen for item in items]
    found = smooth_ranks(unit * np.array(scores) + shift, targets, np.array(rows, int), np.array(items, int))
    for row_scores, target, row_seen, rank in zip(scores, targets, seen, found, strict=True):
        others = [item for item in range(len(row_scores)) if item != target and item not in row_seen]
        scale = 0.1 * float(np.std([row_scores[item] for item in [target, *others]]))
        ahead = [(row_scores[item] - row_scores[target]) / scale if scale else 0.0 for item in others]
        assert rank == pytest.approx(1 + sum(0.5 + 0.5 * math.tanh(each / 2) for each in ahead), rel=1e-6, abs=1e-6)


def test_without_smoothing_they_are_ranks(monkeypatch):
    monkeypatch.setattr(metrics, "SMOOTHING", 1e-9)
    generator = np.random.default_rng(0)
    scores_BI, targets_B = generator.normal(size=(20, 50)), generator.integers(50, size=20)
    rows_M, items_M = generator.integers(20, size=100), generator.integers(50, size=100)
    expected_B = target_ranks(scores_BI, targets_B, rows_M, items_M)
    assert 1 <= expected_B.min() < expected_B.max() <= 50
    np.testing.assert_allclose(smooth_ranks(scores_BI, targets_B, rows_M, items_M), expected_B, rtol=1e-12)


def test_a_smooth_rank_moves_before_the_rank_does():
    """The target gains on the next one, without passing it."""
    found = [smooth_ranks([[4.0, own, 0.0]], [1], NONE, NONE)[0] for own in (1.0, 3.0, 3.9, 3.999)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(2, abs=0.01)
    assert found[-1] == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_where_a_score_is_not_finite_the_target_is_the_last(broken):
    ranks_B = smooth_ranks([[broken, 1.0, 2.0, 9.0], [0.0, 1.0, 2.0, 9.0]], [1, 1], [0], [3])
    assert ranks_B[0] == 3
    assert ranks_B[1] == pytest.approx(3, abs=0.1)


def test_smooth_ranks_of_pieces_are_those_of_the_whole():
    generator = np.random.default_rng(0)
    scores_BI, targets_B = generator.normal(size=(6, 40)), generator.integers(40, size=6)
    candidates_BI = np.ones((6, 40), bool)
    ranks, pieces = SmoothRanks(6), [slice(0, 16), slice(16, 32), slice(32, 40)]
    for piece in pieces:
        ranks.add(scores_BI[:, piece], candidates_BI[:, piece])
    ranks.measure(scores_BI[np.arange(6), targets_B], ranks.moments_3B)
    for piece in pieces:
        ranks.count(scores_BI[:, piece], candidates_BI[:, piece])
    np.testing.assert_allclose(ranks.of(ranks.ahead_B), smooth_ranks(scores_BI, targets_B, NONE, NONE), rtol=1e-12)
