"""Losses on drawn negatives: against the full softmax, in expectation, and whole training runs."""

import numpy as np
import pytest

from alternator import Cycle
from tests.backends.harness import bits, equal, snapshot, train
from tests.backends.reference import log_softmax, normalise, smoothed_cross_entropy
from ur4rec.config import TrainerConfig
from ur4rec.errors import ConfigurationError
from ur4rec.training.arrays import Sample
from ur4rec.training.sampling import Sampler

NUM_ITEMS = 30


def sampled(backend, targets_N, items_C, offsets_C, smoothing=0.0):
    """The loss of states and a table whose last row is padding."""
    part = backend.part("sampled_loss")
    items_J, targets_N = backend.array(np.arange(NUM_ITEMS + 1)), backend.array(targets_N)
    sample = Sample(items_J, backend.array(items_C), backend.array(offsets_C.astype(np.float32)))

    def loss(hidden_Nd, table_Jd):
        scores_NS = part.sasrec_scores(hidden_Nd, table_Jd, targets_N, sample)
        return part.sampled_cross_entropy(scores_NS, targets_N, sample, smoothing)

    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_every_item_once_it_is_the_full_softmax(backend, smoothing):
    random = np.random.default_rng(0)
    hidden_Nd, table_Jd = random.normal(size=(9, 4)), random.normal(size=(NUM_ITEMS + 1, 4))
    targets_N = random.integers(0, NUM_ITEMS, 9)
    loss = sampled(backend, targets_N, random.permutation(NUM_ITEMS), np.zeros(NUM_ITEMS), smoothing)
    value, (by_hidden, by_table) = backend.value_and_gradients(loss, hidden_Nd, table_Jd)
    logits_NI = hidden_Nd @ table_Jd[:-1].T
    assert value == pytest.approx(smoothed_cross_entropy(logits_NI, targets_N, smoothing), rel=1e-5)
    wanted_NI = (1 - smoothing) * np.eye(NUM_ITEMS)[targets_N] + smoothing / NUM_ITEMS
    slopes_NI = (np.exp(log_softmax(logits_NI)) - wanted_NI) / 9
    np.testing.assert_allclose(by_hidden, slopes_NI @ table_Jd[:-1], atol=1e-5)
    np.testing.assert_allclose(by_table[:-1], slopes_NI.T @ hidden_Nd, atol=1e-5)


def test_smoothing_gives_its_share_to_the_candidates_that_are_not_the_target(backend):
    """The mean logit of the target and of all draws but those that are it."""
    random = np.random.default_rng(1)
    hidden_Nd, table_Jd = random.normal(size=(5, 4)), random.normal(size=(NUM_ITEMS + 1, 4))
    items_C, offsets_C, targets_N = np.array([3, 8, 8, 1]), np.array([-0.5, 0.2, 0.2, 0.1]), np.array([3, 8, 0, 1, 9])
    values = [
        backend.value_and_gradients(sampled(backend, targets_N, items_C, offsets_C, each), hidden_Nd, table_Jd)[0]
        for each in (0.0, 0.25)
    ]
    logits_NI, moved = hidden_Nd @ table_Jd.T, []
    for logits_I, target in zip(logits_NI, targets_N, strict=True):
        candidates = [target, *(item for item in items_C if item != target)]
        moved.append(0.25 * (logits_I[target] - logits_I[candidates].mean()))
    assert values[1] - values[0] == pytest.approx(np.mean(moved), rel=1e-4)


def test_many_draws_approach_the_full_softmax():
    random = np.random.default_rng(0)
    counts_I, scores_I = np.arange(1, NUM_ITEMS + 1), random.normal(size=NUM_ITEMS)
    sampler = Sampler(TrainerConfig(num_negatives=20_000, num_in_batch=20_000), NUM_ITEMS, counts_I)
    items_C = sampler.draw(np.repeat(np.arange(NUM_ITEMS), counts_I), step=0)
    estimate = np.exp(scores_I[items_C] + sampler.offsets(items_C)).sum()
    assert estimate == pytest.approx(np.exp(scores_I).sum(), rel=0.05)


def test_the_backend_numbers_the_items_of_a_step(loader):
    batch = loader.batch(0, 0)
    sampler = Sampler(TrainerConfig(num_negatives=5, num_in_batch=5), loader.num_items, loader.item_counts)
    items_BL, targets, sample = sampler.number(
        batch.items_BL, batch.targets_BL.ravel(), 3, num_positions=batch.items_BL.size
    )
    np.testing.assert_array_equal(sample.items_J[items_BL], batch.items_BL)
    np.testing.assert_array_equal(sample.items_J[targets], batch.targets_BL.ravel())
    assert (sample.items_J[sample.candidates_C] < loader.num_items).all()


def test_only_the_rows_of_a_step_move(backend, make_trainer, loader):
    counts = loader.item_counts
    trainer = make_trainer(catalogue_loss="sampled", num_negatives=1, num_in_batch=1, item_counts=counts)
    before = backend.weights(trainer.model)["sasrec.item_embedding.weight"].copy()
    trainer.set_training_stage("pretrain_sasrec")
    batch = loader.batch(0, 0)
    trainer.train_step(batch)
    trainer.train_step(batch)  # the first one's learning rate is 0
    after = backend.weights(trainer.model)["sasrec.item_embedding.weight"]
    used = np.unique(np.concatenate([batch.items_BL.ravel(), batch.targets_BL.ravel()]))
    moved = np.flatnonzero((before != after).any(axis=1))
    assert len(moved)
    assert len(np.setdiff1d(moved, used)) <= 4


def test_without_counts_it_is_refused(make_trainer):
    with pytest.raises(ConfigurationError, match="needs item_counts"):
        make_trainer(catalogue_loss="sampled")


def test_auto_samples_a_large_catalogue_where_it_may(make_trainer, loader, monkeypatch, caplog):
    counts = loader.item_counts
    assert make_trainer(item_counts=counts).config.catalogue_loss == "full"
    assert not caplog.records
    monkeypatch.setattr("ur4rec.config.LARGE_CATALOGUE", loader.num_items - 1)
    monkeypatch.setattr("ur4rec.training.trainer.LARGE_CATALOGUE", loader.num_items - 1)
    caplog.set_level("INFO", logger="ur4rec")
    assert make_trainer(item_counts=counts).config.catalogue_loss == "sampled"
    assert "losses are sampled, 256 + 256 negatives of a step" in caplog.text
    assert make_trainer().config.catalogue_loss == "full"
    assert "catalogue_loss=sampled does not, but needs" in caplog.text
    assert make_trainer(item_counts=counts, joint_loss="separate", sasrec_loss="bpr").config.catalogue_loss == "full"
    caplog.clear()
    assert make_trainer(item_counts=counts, catalogue_loss="full").config.catalogue_loss == "full"
    assert not caplog.records


FEW = {"catalogue_loss": "sampled", "num_negatives": 5, "num_in_batch": 5}
JOINT_LOSSES = ["separate", "fused"]


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_frozen_modules_keep_every_bit(make_trainer, batch_stream, loader, joint_loss):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(4), item_counts=loader.item_counts, **FEW)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 3))  # both modules have moments
    trainer.set_training_stage("joint_finetune")
    for first, (active, frozen) in enumerate([("sasrec", "retriever"), ("retriever", "sasrec")]):
        before, other = bits(trainer, frozen), bits(trainer, active)
        assert trainer.alternator.active == active
        train(trainer, batch_stream(3 + 4 * first, 4))
        assert equal(bits(trainer, frozen), before)
        assert not equal(bits(trainer, active), other)


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    make_model, make_trainer, batch_stream, loader, tmp_path, joint_loss
):
    def make(seed):
        settings = {"joint_loss": joint_loss, "rule": Cycle(3), "item_counts": loader.item_counts, **FEW}
        trainer = make_trainer(model=make_model(seed=seed), **settings)
        trainer.set_training_stage("joint_finetune", num_steps=20)
        return trainer

    whole, first, second = make(0), make(0), make(5)
    train(whole, batch_stream(0, 12))
    train(first, batch_stream(0, 7))
    first.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    train(second, batch_stream(7, 5))
    assert equal(snapshot(second), snapshot(whole))


def test_the_retrievers_loss_with_every_item_once_is_its_full_softmax(backend, make_model):
    random = np.random.default_rng(0)
    retriever = make_model().retriever
    keys_Id, preferences_NKd = (normalise(random.normal(size=shape)) for shape in ((NUM_ITEMS, 8), (9, 3, 8)))
    targets_N = random.integers(0, NUM_ITEMS, 9)
    targets = backend.array(targets_N)
    candidates, offsets = random.permutation(NUM_ITEMS), np.zeros(NUM_ITEMS, np.float32)
    sample = Sample(*map(backend.array, (np.arange(NUM_ITEMS + 1), candidates, offsets)))
    part = backend.part("sampled_loss")

    def loss(preferences_NKd, keys_Id):
        scores_NS = part.retriever_scores(retriever, preferences_NKd, keys_Id, targets, sample)
        return part.sampled_cross_entropy(scores_NS, targets, sample)

    def full(preferences_NKd, keys_Id):
        queries = retriever.scale(preferences_NKd)
        return backend.part("catalogue_loss").catalogue_cross_entropy(targets, retriever=(queries, keys_Id))

    found, expected = (backend.value_and_gradients(f, preferences_NKd, keys_Id) for f in (loss, full))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=False)


def test_the_fused_loss_with_every_item_once_is_its_full_softmax(make_trainer, loader, monkeypatch):
    everything = np.arange(loader.num_items)
    monkeypatch.setattr(Sampler, "draw", lambda self, targets_N, step: everything)
    monkeypatch.setattr(Sampler, "offsets", lambda self, items_C: np.zeros(len(items_C), np.float32))
    losses = {}
    for name in ("full", "sampled"):
        records = []
        settings = {"rule": Cycle(2), "item_counts": loader.item_counts, "on_step": records.append}
        trainer = make_trainer(joint_loss="fused", catalogue_loss=name, **settings)
        train(trainer, [loader.batch(0, 0)])
        trainer.flush()
        losses[name] = [loss for record in records for loss in record.losses.values()]
    assert losses["sampled"] == pytest.approx(losses["full"], rel=1e-5)
    assert len(losses["full"]) == 2
