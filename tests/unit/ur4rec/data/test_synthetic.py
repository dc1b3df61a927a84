"""The planted structure is there: transitions beat texts, texts beat popularity, both together beat each."""

import numpy as np
import pytest

from ur4rec.data import describe, leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.metrics import rank_batches, summarise
from ur4rec.evaluation.popularity import popularity_ranks, popularity_scores
from ur4rec.text.encoders import encode_items


@pytest.fixture(scope="module")
def quality(tmp_path_factory):
    """Test NDCG@10 of four simple scorers."""
    data = synthetic()
    split, num_items = leave_one_out(data), data.num_items
    transitions_II = np.zeros((num_items + 1, num_items))
    for row in split.train:
        np.add.at(transitions_II, (row[:-1], row[1:]), 1)
    vectors_ID = encode_items(data.texts, encoder="tfidf", dim=64, cache_dir=tmp_path_factory.mktemp("cache"))
    padded_ID = np.vstack([vectors_ID, np.zeros(64)])
    spread_I = 1e-6 * popularity_scores(split.train, num_items)  # breaks ties

    def transition(batch):
        lengths = (batch.items_BL < num_items).sum(axis=1)
        last = batch.items_BL[np.arange(len(lengths)), np.maximum(lengths - 1, 0)]
        return np.log1p(transitions_II[last]) + spread_I

    def text(batch):
        return padded_ID[batch.items_BL].sum(axis=1) @ vectors_ID.T + spread_I

    def ndcg(score):
        batches = EvaluationBatches(split.test, num_items, max_seq_len=20, batch_size=128)
        return summarise(rank_batches(score, batches), [10])["ndcg@10"]

    return {
        "popularity": summarise(popularity_ranks(split.train, split.test, num_items), [10])["ndcg@10"],
        "text": ndcg(text),
        "transition": ndcg(transition),
        "both": ndcg(lambda batch: transition(batch) + 0.5 * text(batch)),
    }


def test_each_part_of_the_structure_can_be_found(quality):
    assert quality["popularity"] < 0.05
    assert quality["text"] > 3 * quality["popularity"]
    assert quality["transition"] > 2 * quality["text"]
    assert quality["both"] > 1.05 * quality["transition"]


def test_the_default_data_never_changes():
    assert synthetic().hash == "7f24db1c2f554514f3df98eb971ab27188dec62455cbae756723ad584405f356"


def test_size_and_repeats():
    facts = describe(synthetic())
    assert (facts["num_users"], facts["num_items"]) == (600, 300)
    assert facts["sequence_length_mean"] == pytest.approx(20, abs=1)
    assert (facts["repeats"], facts["users_below_3"], facts["tied_last_two"]) == (0, 0, 0)
    assert describe(synthetic(repeat=0.3))["repeats"] == pytest.approx(0.3, abs=0.05)


def test_titles_are_distinct_and_texts_name_the_cluster():
    data = synthetic()
    assert len(set(data.titles)) == data.num_items
    assert len({text.rpartition(": ")[2] for text in data.texts}) == 25


def test_another_seed_gives_other_data():
    assert synthetic(num_users=50).hash != synthetic(num_users=50, seed=1).hash


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_users": 0}, "num_users must be an integer of at least 1, got 0"),
        ({"num_clusters": 1}, "num_clusters must be in 2 .. num_items // 2 = 150, got 1"),
        ({"num_clusters": 151}, "num_clusters must be in 2"),
        ({"mean_length": 5}, "mean_length must be in 6 .. num_items // 2 = 150, got 5"),
        ({"follow": -0.1}, "follow must be at least 0 and at most 1, got -0.1"),
        ({"repeat": 1.5}, "repeat must be at least 0 and at most 1, got 1.5"),
        ({"follow": 0.6, "stay": 0.6}, "follow \\+ stay must be at most 1, got 0.6 \\+ 0.6"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        synthetic(**settings)
