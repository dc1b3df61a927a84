"""The best items of many histories: those of the scores, in slices, without what is excluded."""

from contextlib import nullcontext

import numpy as np
import pytest

from ur4rec.config import SCORERS
from ur4rec.data import Sequences
from ur4rec.errors import NonFiniteError
from ur4rec.training import scorer as scoring
from ur4rec.training.scorer import NO_ITEM

HISTORIES = Sequences.from_lists([[3, 1, 4], [1] * 20, [5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], [2], [7, 1], [8, 2, 8], [1]])


@pytest.fixture
def make_scorer(backend, make_model, monkeypatch):
    def make(fusion="logit"):
        model = make_model(fusion=fusion)
        monkeypatch.setattr(scoring, "MAX_ROWS", 3)  # slices of three histories
        return backend.package.Scorer(model, device="cpu")

    return make


class FixedScores:
    """Scores that are no model's."""

    def __init__(self, backend, score):
        self.top_batch, self.score = backend.part("slices").top_batch, score

    def top(self, batch, order, candidates_I, k, width):
        scores = self.score(batch.items_BL)
        return self.top_batch([scores[name] for name in order], batch, candidates_I, k)


def padded(scorer, histories):
    rows = np.full((len(histories), 8), scorer.num_items)
    for row, history in enumerate(histories):
        rows[row, : min(8, len(history))] = history[-8:]
    return rows


def expected(scorer, by, excluded, candidates_I):
    """Places and probabilities as a loop over all histories would find them."""
    scores = {name: each.copy() for name, each in scorer.scores(padded(scorer, HISTORIES)).items()}
    for scores_BI in scores.values():
        for scores_I, items in zip(scores_BI, excluded or [[]] * len(HISTORIES), strict=True):
            scores_I[items] = -np.inf
            scores_I[~candidates_I] = -np.inf
    order_BI = np.argsort(-scores[by], axis=1, kind="stable")
    weights = {name: np.exp(each - each.max(1, keepdims=True)) for name, each in scores.items()}
    return order_BI, {name: each / each.sum(1, keepdims=True) for name, each in weights.items()}


@pytest.mark.parametrize(
    ("fusion", "by", "excluded"),
    [
        ("logit", "fused", HISTORIES),
        ("logit", "sasrec", None),
        ("logit", "retriever", HISTORIES),
        ("rank", "fused", None),
    ],
)
def test_the_best_items_are_those_of_the_scores(make_scorer, fusion, by, excluded):
    scorer = make_scorer(fusion)
    candidates_I = np.arange(scorer.num_items) % 4 != 0
    order_BI, shares = expected(scorer, by, excluded, candidates_I)
    found = list(scorer.top(HISTORIES, 5, scorer=by, excluded=excluded, candidates_I=candidates_I))
    assert [len(each.items_Bk) for each in found] == [3, 3, 1]
    items_Bk = np.concatenate([each.items_Bk for each in found])
    np.testing.assert_array_equal(items_Bk, order_BI[:, :5])
    for name in SCORERS:
        found_Bk = np.concatenate([each.probabilities[name] for each in found])
        np.testing.assert_allclose(found_Bk, np.take_along_axis(shares[name], items_Bk, 1), rtol=2e-4, atol=1e-7)


def test_places_without_a_candidate_are_empty(make_scorer):
    scorer = make_scorer()
    candidates_I = np.zeros(scorer.num_items, bool)
    candidates_I[[1, 4, 6]] = True
    found = list(scorer.top(HISTORIES, 4, excluded=HISTORIES, candidates_I=candidates_I))
    items_Bk = np.concatenate([each.items_Bk for each in found])
    assert [set(items) - {NO_ITEM} for items in items_Bk.tolist()] == [
        {6},
        {4, 6},
        {1, 4},
        {1, 4, 6},
        {4, 6},
        {1, 4, 6},
        {4, 6},
    ]
    for each in found:
        np.testing.assert_allclose(each.probabilities["fused"].sum(1), 1, rtol=1e-5)
        assert not each.probabilities["sasrec"][each.items_Bk == NO_ITEM].any()
    (nothing,) = scorer.top(Sequences.from_lists([[1]]), 2, candidates_I=np.zeros(scorer.num_items, bool))
    assert nothing.items_Bk.tolist() == [[NO_ITEM, NO_ITEM]]
    assert nothing.probabilities["fused"].tolist() == [[0, 0]]
    (all_items,) = scorer.top(Sequences.from_lists([[1]]), 10**6)
    assert sorted(all_items.items_Bk[0].tolist()) == list(range(scorer.num_items))


def test_equal_scores_come_in_the_order_of_items(backend, make_scorer, monkeypatch):
    scorer = make_scorer()
    scores_I = np.zeros(scorer.num_items, np.float32)
    scores_I[[50, 7, 30]] = 1

    def score(items_BL):
        return {name: backend.array(np.tile(scores_I, (len(items_BL), 1))) for name in SCORERS}

    monkeypatch.setattr(scorer, "_scoring", lambda scorers: nullcontext(FixedScores(backend, score)))
    for k, places in ((2, [7, 30]), (5, [7, 30, 50, 0, 1])):
        for each in scorer.top(HISTORIES, k):
            assert each.items_Bk.tolist() == [places] * len(each.items_Bk)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_unless_they_do_not_count(backend, make_scorer, monkeypatch, value):
    scorer = make_scorer()

    def score(items_BL):
        scores_BI = np.zeros((len(items_BL), scorer.num_items), np.float32)
        scores_BI[0, 5] = value
        return {name: backend.array(scores_BI.copy()) for name in SCORERS}

    monkeypatch.setattr(scorer, "_scoring", lambda scorers: nullcontext(FixedScores(backend, score)))
    with pytest.raises(NonFiniteError, match="scores must be finite"):
        list(scorer.top(HISTORIES, 3))
    list(scorer.top(HISTORIES, 3, excluded=Sequences.from_lists([[5]] * len(HISTORIES))))
