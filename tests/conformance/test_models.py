"""UR4Rec in both backends: equal weights give equal scores; with equal batches, equal loss curves and decisions."""

import numpy as np
import pytest

from alternator import Cycle, Plateau
from tests.conformance.comparisons import same_curves, same_ranking, same_scores
from tests.conformance.registry import chosen
from ur4rec.config import BLOCKS, CATALOGUE_LOSSES, FUSIONS
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import TrainBatches
from ur4rec.training.backend import BACKENDS, Model, load_backend
from ur4rec.training.scorer import BaseScorer
from ur4rec.training.trainer import BaseTrainer

MAX_SEQ_LEN = 8
SCHEDULES = {"fused": Plateau(min_steps=3, window=5), "separate": Cycle((2, 3))}


@pytest.fixture(scope="module")
def split():
    return leave_one_out(synthetic(num_users=60, num_items=60, mean_length=12))


@pytest.fixture
def make_trainer(split, request):
    """Builds trainers of small models without dropout, alike in both backends."""
    chosen_backends = chosen(request.config.getoption("--backend", default=None))
    if not set(BACKENDS) <= set(chosen_backends):
        pytest.skip(f"needs the backends {tuple(BACKENDS)} both")
    pytest.importorskip("torch").set_num_threads(1)
    vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 12)).astype(np.float32)
    sizes = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 3}

    def make(backend, *, fusion="logit", model_settings=None, **settings):
        package = load_backend(backend)
        model = package.UR4Rec(
            *(split.num_items, vectors_IT),
            fusion=fusion,
            text_embedding_dim=12,
            max_seq_len=MAX_SEQ_LEN,
            sasrec_dropout=0.0,
            retriever_dropout=0.0,
            **sizes,
            **(model_settings or {}),
        )
        return package.JointTrainer(model, device="cpu", progress=False, **settings)

    return make


def histories(split):
    """All that each user has seen, right-padded: (users, MAX_SEQ_LEN)."""
    items_BL = np.full((len(split.test.histories), MAX_SEQ_LEN), split.num_items, np.int32)
    for row_L, history in zip(items_BL, split.test.histories, strict=True):
        newest = history[-MAX_SEQ_LEN:]
        row_L[: len(newest)] = newest
    return items_BL


def sampling(catalogue_loss, loader):
    """The settings of a catalogue loss, with few negatives, so that a step leaves out most items."""
    return {
        "catalogue_loss": catalogue_loss,
        "num_negatives": 6,
        "num_in_batch": 6,
        "item_counts": loader.item_counts,
    }


def train(trainer, loader, steps):
    for step in steps:
        trainer.train_step(loader.batch(step // len(loader), step % len(loader)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_has_all_that_its_protocols_name(backend, make_trainer):
    trainer = make_trainer(backend)
    assert isinstance(trainer, BaseTrainer)
    assert isinstance(trainer.model, Model)
    assert isinstance(load_backend(backend).Scorer(trainer.model, device="cpu"), BaseScorer)
    with load_backend(backend).start_processes("cpu") as processes:
        assert (processes.rank, processes.local_rank, processes.count) == (0, 0, 1)


@pytest.mark.parametrize("direction", ["torch to jax", "jax to torch"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_weights_of_one_backend_give_the_same_scores_in_the_other(fusion, direction, split, make_trainer, tmp_path):
    source, _, target = direction.split()
    settings = {"fusion": fusion, "joint_loss": "separate", "ema_decay": 0.9}  # whose averages score
    trainers = {name: make_trainer(name, **settings) for name in (source, target)}
    loader = TrainBatches(split.train, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16, seed=0)
    if (
        source == "torch"
    ):  # in JAX the initial weights will do, which a compilation for a few steps would not change much
        train(trainers[source], loader, range(6))
    trainers[source].save_checkpoint(tmp_path / "checkpoint")
    trainers[target].load_checkpoint(tmp_path / "checkpoint")
    items_BL = histories(split)
    for scorer in ("sasrec", "retriever", "fused"):
        theirs, ours = (np.asarray(trainers[name].score(items_BL, scorer)) for name in (source, target))
        same_ranking(ours, theirs, top=20)
        same_scores(ours, theirs)


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_every_block_trains_in_one_backend_and_gives_the_same_scores_in_the_other(block, split, make_trainer, tmp_path):
    """With item embeddings that begin as the texts' and are scaled, and smoothed labels."""
    variants = {"sasrec_block": block, "sasrec_embedding_scale": True, "sasrec_item_init": "whitened"}
    torch, jax = (make_trainer(name, model_settings=variants, label_smoothing=0.1) for name in ("torch", "jax"))
    tables = [np.asarray(each) for each in (torch.model.sasrec.item_table().detach(), jax.model.sasrec.item_table())]
    np.testing.assert_array_equal(*tables)
    loader = TrainBatches(split.train, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16, seed=0)
    train(torch, loader, range(6))
    torch.save_checkpoint(tmp_path / "checkpoint")
    jax.load_checkpoint(tmp_path / "checkpoint")
    items_BL = histories(split)
    same_scores(*(np.asarray(trainer.score(items_BL, "sasrec")) for trainer in (jax, torch)))


@pytest.mark.parametrize("catalogue_loss", CATALOGUE_LOSSES)
@pytest.mark.parametrize("joint_loss", ["fused", "separate"])
def test_smoothed_losses_of_both_backends_are_equal(joint_loss, catalogue_loss, split, make_trainer, tmp_path):
    loader = TrainBatches(split.train, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16, seed=0)
    settings = {"joint_loss": joint_loss, "label_smoothing": 0.2, **sampling(catalogue_loss, loader)}
    trainers = [make_trainer(name, model_settings={"sasrec_block": "ligr"}, **settings) for name in ("torch", "jax")]
    for trainer in trainers:
        trainer.set_training_stage("end_to_end", num_steps=20)
    trainers[0].save_checkpoint(tmp_path / "checkpoint")
    trainers[1].load_checkpoint(tmp_path / "checkpoint")
    batches = list(loader)
    mine, other = (trainer.train_epoch(batches * 3, max_steps=12) for trainer in trainers)
    assert mine == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("joint_loss", "catalogue_loss", "num_steps"),
    [("fused", "full", 200), ("separate", "full", 200), ("fused", "sampled", 60), ("separate", "sampled", 60)],
)
def test_equal_weights_and_batches_give_equal_curves_and_decisions(
    joint_loss, catalogue_loss, num_steps, split, make_trainer, tmp_path
):
    records = {"torch": [], "jax": []}
    loader = TrainBatches(
        *(split.train, split.num_items),
        **{"max_seq_len": MAX_SEQ_LEN, "batch_size": 16, "seed": 0, "shifted": joint_loss == "separate"},
    )
    rule = SCHEDULES[joint_loss if catalogue_loss == "full" else "separate"]  # sampled losses are noisy: a fixed one
    settings = {"joint_loss": joint_loss, "rule": rule, "ema_decay": 0.9, **sampling(catalogue_loss, loader)}
    trainers = {name: make_trainer(name, on_step=records[name].append, **settings) for name in records}
    trainers["torch"].save_checkpoint(tmp_path / "checkpoint")
    trainers["jax"].load_checkpoint(tmp_path / "checkpoint")
    decisions = {}
    for name, trainer in trainers.items():
        decisions[name] = []
        for step in range(num_steps):
            decision = trainer.train_step(loader.batch(step // len(loader), step % len(loader)))
            decisions[name].append(decision._replace(value=0, limit=0))
    assert decisions["jax"] == decisions["torch"]
    curves = [[loss for record in records[name] for loss in record.losses.values()] for name in ("jax", "torch")]
    assert len(curves[0]) >= num_steps - 1  # the last step's losses are not read yet
    same_curves(*curves)
    jax_scores, torch_scores = (np.asarray(trainers[name].score(histories(split))) for name in ("jax", "torch"))
    difference = np.abs(jax_scores - torch_scores).max()  # of averaged weights, whose roundings have grown
    assert difference <= 1e-3 * np.abs(torch_scores).max()
    assert trainers["jax"].alternator.stats().switch_count >= 10


STRATEGIES = {
    "use_curriculum_learning": True,
    "use_memory_bank": True,
    "memory_bank_size": 40,
    "use_knowledge_distillation": True,
    "use_uncertainty_weighting": True,
    "uncertainty_lr": 0.1,
}


@pytest.mark.parametrize("catalogue_loss", CATALOGUE_LOSSES)
@pytest.mark.parametrize("joint_loss", ["fused", "separate"])
def test_with_all_strategies_on_the_components_of_the_loss_are_equal(
    joint_loss, catalogue_loss, split, make_trainer, tmp_path
):
    loader = TrainBatches(split.train, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16, seed=0)
    settings = {"joint_loss": joint_loss, **sampling(catalogue_loss, loader), **STRATEGIES}
    torch, jax = trainers = [make_trainer(name, **settings) for name in ("torch", "jax")]
    batches = list(loader)  # without its usual number of targets, so that JAX compiles the step once
    torch.set_training_stage("end_to_end", num_steps=20)
    torch.train_epoch(batches * 3, max_steps=14)
    torch.save_checkpoint(tmp_path / "torch")
    jax.load_checkpoint(tmp_path / "torch")
    for step in range(14, 17):
        mine, other = (trainer.train_epoch(batches * 3, start=step, max_steps=1) for trainer in trainers)
        assert set(mine) == set(other)
        assert {f"{name}_loss" for name in ("consistency", "contrastive", "diversity", "distillation")} <= set(mine)
        assert mine == pytest.approx(other, rel=1e-5)
    for trainer, name in zip(trainers, ("torch", "jax"), strict=True):
        trainer.save_checkpoint(tmp_path / f"{name}-later")
    load_file = pytest.importorskip("safetensors.numpy").load_file
    theirs, ours = (load_file(tmp_path / f"{name}-later" / "optimizer.safetensors") for name in ("torch", "jax"))
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
