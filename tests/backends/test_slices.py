"""A catalogue in slices: the ranks and best items of the whole one, never more scores at once than memory allows."""

import numpy as np
import pytest

from ur4rec.config import SCORERS, ModelConfig
from ur4rec.data import Sequences, Targets
from ur4rec.data.batches import EvaluationBatches
from ur4rec.errors import ConfigurationError, NonFiniteError
from ur4rec.evaluation.metrics import target_ranks
from ur4rec.training import scorer as scoring
from ur4rec.training.slices import DEFAULT_MEMORY, MIN_MEMORY, count_rows, parse_memory, slice_width

COPIES, NUM_ITEMS = 3, 60
GENERATOR = np.random.default_rng(1)
HISTORIES = Sequences.from_lists(
    [GENERATOR.integers(0, NUM_ITEMS, length).tolist() for length in (3, 1, 9, 5, 2, 7, 8)]
)
SEEN = Sequences.from_lists([[5, 59, 0], [], [17, 16], [1, 2, 3, 4], [], [30], list(range(20))])
TARGETS = Targets(
    users_T=np.arange(7, dtype=np.int32), items_T=np.array([0, 16, 59, 31, 15, 48, 44], np.int32), histories=HISTORIES,
    seen=SEEN,
)  # fmt: skip


@pytest.fixture(params=["logit", "weighted", "popularity"])
def scorer(backend, request):
    """Of a model in which items i, i + 20 and i + 40 are the same, so that their scores are equal."""
    popularity = {"item_counts": np.tile(GENERATOR.integers(0, 9, NUM_ITEMS // COPIES), COPIES)}
    fusion = {"fusion_popularity": True, **popularity} if request.param == "popularity" else {"fusion": request.param}
    vectors_IT = np.tile(GENERATOR.normal(size=(NUM_ITEMS // COPIES, 12)), (COPIES, 1))
    sizes = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 3}
    model = backend.package.UR4Rec(NUM_ITEMS, vectors_IT, text_embedding_dim=12, max_seq_len=8, **fusion, **sizes)
    if request.param == "popularity":
        backend.set_weights(model.fusion, {"weights": np.float32([1, 0.5, 0.7])})
    alter_embedding(
        backend, model, lambda table: np.concatenate([np.tile(table[: NUM_ITEMS // COPIES], (3, 1)), table[-1:]])
    )
    return backend.package.Scorer(model, device="cpu")


def alter_embedding(backend, model, alter):
    weights = backend.weights(model.sasrec)
    name = next(name for name in weights if "item_embedding" in name)
    backend.set_weights(model.sasrec, {name: alter(weights[name])})


def in_slices(monkeypatch, width):
    monkeypatch.setattr(scoring, "slice_width", lambda *arguments, **settings: width)


def batches(targets=TARGETS, rows=4):
    return EvaluationBatches(targets, NUM_ITEMS, max_seq_len=8, batch_size=rows)


@pytest.mark.parametrize("width", [16, 48])
def test_ranks_are_those_of_the_whole_catalogue_ties_included(scorer, monkeypatch, width):
    whole = scorer.rank_all(batches())
    in_slices(monkeypatch, width)
    found = scorer.rank_all(batches())
    for name in SCORERS:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    assert (found["retriever"] >= 2).sum() >= 5  # the copies of a target tie with it


def test_ranks_are_those_of_the_reference(scorer, monkeypatch):
    (batch,) = batches(rows=7)
    in_slices(monkeypatch, 16)
    found = scorer.rank_all([batch])
    for name, scores_BI in scorer.scores(batch.items_BL, batch.users_B).items():
        scores_BI = scores_BI[:, np.arange(NUM_ITEMS) % (NUM_ITEMS // COPIES)]  # copies are equal to the last bit
        expected = target_ranks(scores_BI, batch.targets_B, batch.seen_rows_M, batch.seen_items_M)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("width", [16, 48])
@pytest.mark.parametrize("by", SCORERS)
def test_the_best_items_are_those_of_the_whole_catalogue(scorer, monkeypatch, width, by):
    candidates_I = np.arange(NUM_ITEMS) % 5 != 0

    def best():
        (top,) = scorer.top(HISTORIES, 12, scorer=by, excluded=SEEN, candidates_I=candidates_I)
        return top

    whole = best()
    in_slices(monkeypatch, width)
    found = best()
    np.testing.assert_array_equal(found.items_Bk, whole.items_Bk)
    for name in SCORERS:
        np.testing.assert_allclose(found.probabilities[name], whole.probabilities[name], rtol=1e-5)


def test_places_without_a_candidate_are_empty_in_slices_too(scorer, monkeypatch):
    candidates_I = np.isin(np.arange(NUM_ITEMS), [2, 58])
    in_slices(monkeypatch, 16)
    (found,) = scorer.top(HISTORIES, 3, excluded=SEEN, candidates_I=candidates_I)
    assert {frozenset(items) for items in found.items_Bk.tolist()} == {frozenset([2, 58, -1]), frozenset([58, -1])}
    np.testing.assert_allclose(found.probabilities["fused"].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_refused_in_whichever_slice_unless_it_does_not_count(
    backend, scorer, monkeypatch, value
):
    model = scorer.model
    unread = next(item for item in range(NUM_ITEMS) if item not in HISTORIES.items_N and item not in TARGETS.items_T)

    def spoil(table):
        return np.where(np.arange(len(table))[:, None] == unread, np.float32(value), table)

    alter_embedding(backend, model, spoil)
    spoilt = backend.package.Scorer(model, device="cpu")
    in_slices(monkeypatch, 16)
    with pytest.raises(NonFiniteError, match="scores must be finite"):
        spoilt.rank(batches(), "sasrec")
    with pytest.raises(NonFiniteError, match="scores must be finite"):
        list(spoilt.top(HISTORIES, 3, scorer="sasrec"))
    assert (spoilt.rank(batches(), "retriever") >= 1).all()
    if model.config.fusion == "logit":  # under the other, one such score is in what normalises all
        seen = Sequences.from_lists([[unread]] * len(HISTORIES))
        hidden = Targets(users_T=TARGETS.users_T, items_T=TARGETS.items_T, histories=HISTORIES, seen=seen)
        assert (spoilt.rank(batches(hidden), "sasrec") >= 1).all()
        list(spoilt.top(HISTORIES, 3, scorer="sasrec", excluded=seen))


def test_no_more_scores_are_held_at_once_than_memory_allows_and_all_slices_are_one_program(backend, monkeypatch):
    """What the retriever is asked to score, which in JAX is said once when the loop over the slices is compiled."""
    num_items, shapes = 20_011, []
    texts_IT = np.eye(num_items, 4, dtype=np.float32) + 0.1
    sizes = {"sasrec_hidden_dim": 4, "sasrec_num_heads": 1, "retriever_output_dim": 4, "retriever_num_queries": 1}
    model = backend.package.UR4Rec(num_items, texts_IT, text_embedding_dim=4, max_seq_len=8, **sizes)
    scorer = backend.package.Scorer(model, device="cpu", memory="1MiB")
    retriever = backend.part("retriever").PreferenceRetriever
    score = retriever.score

    def spy(self, preferences_NKd, keys_Id):
        shapes.append((len(preferences_NKd), len(keys_Id)))
        return score(self, preferences_NKd, keys_Id)

    monkeypatch.setattr(retriever, "score", spy)
    rows = count_rows(model.config, 500, scorer.memory, max_rows=512)
    histories = Sequences.from_lists([[row] for row in range(300)])
    targets = Targets(
        users_T=np.arange(300, dtype=np.int32), items_T=np.arange(300, dtype=np.int32), histories=histories,
        seen=histories,
    )  # fmt: skip
    scorer.rank_all(EvaluationBatches(targets, num_items, max_seq_len=8, batch_size=rows))
    list(scorer.top(histories, 5, excluded=histories))
    assert len(set(shapes)) == 2  # 125 rows are ranked at once, 100 get items
    assert all(MIN_MEMORY / 40 <= rows * items <= MIN_MEMORY / 32 for rows, items in shapes)
    assert backend.name == "torch" or len(shapes) < num_items / shapes[0][1]


def test_a_fusion_that_needs_whole_rows_has_fewer_of_them():
    large = ModelConfig(num_items=10**6, fusion="rank")
    assert slice_width(large, 1, SCORERS, MIN_MEMORY) == 10**6
    assert slice_width(large, 64, ("sasrec",), MIN_MEMORY) == 512
    assert count_rows(large, 999, MIN_MEMORY, max_rows=512) == 1
    assert count_rows(large, 999, DEFAULT_MEMORY, max_rows=512) == 4


@pytest.mark.parametrize("memory", ["4 parsecs", "", -1, "1e9", 1.5, True, "1KB", MIN_MEMORY - 1])
def test_memory_that_is_none_is_refused(memory):
    with pytest.raises(ConfigurationError, match="memory must be"):
        parse_memory(memory)
