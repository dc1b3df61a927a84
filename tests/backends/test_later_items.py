"""Items that came after a model was trained: they are scored by their texts, and nothing else changes."""

import numpy as np
import pytest

from tests.backends.harness import installed, load
from ur4rec.config import SCORERS
from ur4rec.errors import ConfigurationError


@pytest.fixture(scope="module")
def saved(backend, make_trainer, make_model, loader, batch_stream, tmp_path_factory):
    """Checkpoints of trained models, by fusion."""
    paths = {}
    popular = make_model(fusion_popularity=True, item_counts=loader.item_counts)
    fusions = {
        "logit": {"fusion": "logit"},
        "rank": {"fusion": "rank"},
        "popularity": {"model": popular, "fusion_fit": "held_out"},
    }
    for fusion, given in fusions.items():
        trainer = make_trainer(joint_loss="separate", sasrec_lr=1e-2, retriever_lr=1e-2, **given)
        trainer.set_training_stage("joint_finetune", num_steps=10)
        for batch in batch_stream(0, 4):
            trainer.train_step(batch)
        if fusion == "popularity":
            trainer.set_fusion_weights((1, 0.5, 2))
        paths[fusion] = tmp_path_factory.mktemp(f"{backend.name}-{fusion}") / "step"
        trainer.save_checkpoint(paths[fusion])
    return paths


def scores(package, path, items_BL, later=None):
    model = package.load_model(path, later_items=later)
    rows_BL = np.where(items_BL < 0, model.config.num_items, items_BL)
    return package.Scorer(model, device="cpu").scores(rows_BL)


HISTORIES = np.array([[3, 1, 4, 1, -1, -1], [5, 9, 2, 6, 5, 3], [7, -1, -1, -1, -1, -1]])


def test_known_items_have_the_scores_that_they_had(backend, saved, split):
    later_CT = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    before = scores(backend.package, saved["logit"], HISTORIES)
    after = scores(backend.package, saved["logit"], HISTORIES, later_CT)
    for scorer in SCORERS:
        assert after[scorer].shape == (3, split.num_items + 5)
        np.testing.assert_allclose(after[scorer][:, : split.num_items], before[scorer], rtol=0, atol=1e-6)


def test_a_later_item_is_as_popular_as_one_that_nobody_has_used(backend, saved, split, loader):
    later_CT = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    found = scores(backend.package, saved["popularity"], HISTORIES, later_CT)
    without = found["sasrec"] + np.float32(0.5) * found["retriever"]
    popularity_I = np.append(np.log1p(loader.item_counts), np.zeros(5))
    assert popularity_I.max() > 1
    np.testing.assert_allclose(found["fused"], without + 2 * popularity_I, rtol=0, atol=1e-4)


def test_sasrec_gives_a_later_item_the_mean_and_the_retriever_what_its_text_deserves(backend, saved, split):
    model = backend.package.load_model(saved["logit"])
    texts_IT = np.asarray(backend.call(lambda: model.retriever.catalogue().keys_Id))
    assert len(texts_IT) == split.num_items
    vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 12)).astype(np.float32)
    found = scores(backend.package, saved["logit"], HISTORIES, vectors_IT[[7, 20]])
    for row in range(3):
        mean = found["sasrec"][row, : split.num_items].mean()
        np.testing.assert_allclose(found["sasrec"][row, split.num_items :], mean, atol=1e-5)
    np.testing.assert_allclose(found["retriever"][:, split.num_items :], found["retriever"][:, [7, 20]], atol=1e-5)


@pytest.mark.parametrize("fusion", ["logit", "rank", "popularity"])
def test_a_later_item_may_be_in_a_history_and_both_backends_agree(backend, saved, split, fusion):
    later_CT = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)
    histories = HISTORIES.copy()
    histories[:, 0] = split.num_items + 1
    found = [scores(load(name).package, saved[fusion], histories, later_CT) for name in installed()]
    without = scores(backend.package, saved[fusion], HISTORIES, later_CT)
    for scorer in SCORERS:
        assert np.isfinite(found[0][scorer]).all()
        assert not np.allclose(found[0][scorer], without[scorer], atol=1e-3)
        for other in found[1:]:
            np.testing.assert_allclose(other[scorer], found[0][scorer], rtol=0, atol=1e-5)


@pytest.mark.parametrize("vectors", [np.zeros((2, 11)), np.full((1, 12), np.nan), np.zeros(12)])
def test_vectors_that_do_not_fit_are_refused(backend, saved, vectors):
    with pytest.raises(ConfigurationError, match="item_text_vectors must"):
        backend.package.load_model(saved["logit"], later_items=vectors)
