"""The trainer with strategies on: what each step minimises, the freeze contract, the bank's owner, exact resume."""

import math

import numpy as np
import pytest

from alternator import Cycle
from tests.backends import reference
from tests.backends.harness import bits, changed, equal, kept, train
from ur4rec.schedule.stages import MODULES, curriculum_weights
from ur4rec.training.components import BANK_ITEMS, BANK_KEYS, COMPONENTS, LOG_VARIANCES

JOINT_LOSSES = ["separate", "fused"]
STRATEGIES = ("curriculum_learning", "memory_bank", "knowledge_distillation", "uncertainty_weighting")
ALL = {**{f"use_{name}": True for name in STRATEGIES}, "memory_bank_size": 20, "uncertainty_lr": 0.1}
RETRIEVERS = {"consistency", "contrastive", "diversity"}
STRICT = {**ALL, "sasrec_loss": "gbce", "num_negatives": 8, "weight_decay": 0.1}
"""All alike share compilations."""


def reported(metrics, ending):
    """The components whose metric has this ending."""
    return {name.removesuffix(ending) for name in metrics if name.endswith(ending)}


def plain_scores(backend, trainer, items_BL, positions_N):
    """The logits of both modules and of their fusion, preferences and keys, where a target is."""
    model = backend.inference(trainer.model)

    def run(items_BL):
        catalogue = model.retriever.catalogue()
        preferences_BLKd, hidden_BLd = model.retriever(items_BL, catalogue), model.sasrec(items_BL)
        preferences_NKd = preferences_BLKd.reshape(-1, *preferences_BLKd.shape[2:])[positions_N]
        retriever_NI = model.retriever.score(preferences_NKd, catalogue.keys_Id)
        hidden_Nd = hidden_BLd.reshape(-1, hidden_BLd.shape[-1])[positions_N]
        sasrec_NI = model.sasrec.score(hidden_Nd, model.sasrec.item_table())
        return sasrec_NI, retriever_NI, model.fusion(sasrec_NI, retriever_NI), preferences_NKd, catalogue.keys_Id

    return backend.call(run, items_BL)


def places(batch, num_items):
    """Where the targets of a batch are, counted over all rows, and which."""
    targets = batch.targets_BL.ravel().astype(int)
    positions_N = np.flatnonzero(targets != num_items)
    return positions_N, targets[positions_N]


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_frozen_modules_keep_every_bit_with_all_strategies_on(make_trainer, batch_stream, joint_loss):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(15), warmup_steps=1, **STRICT)
    train(trainer, batch_stream(0, 30))  # both modules have moments, and the bank has entries
    for active, frozen in (("sasrec", "retriever"), ("retriever", "sasrec")):
        assert trainer.alternator.active == active
        before, other, before_kept = bits(trainer, frozen), bits(trainer, active), kept(trainer)
        train(trainer, batch_stream(trainer.step, 15))
        assert equal(bits(trainer, frozen), before)
        assert not equal(bits(trainer, active), other)
        banks = {name for name in before_kept if name.startswith("memory_bank")}
        assert changed(before_kept, kept(trainer)) == (banks if active == "retriever" else set()) | {LOG_VARIANCES}


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_each_component_and_the_total_are_those_of_plain_numpy(
    backend, make_model, make_trainer, batch_stream, joint_loss
):
    model = make_model(sasrec_dropout=0.0, retriever_dropout=0.0)
    settings = {**ALL, "joint_loss": joint_loss, "sasrec_loss_weight": 0.5, "retriever_loss_weight": 2.0}
    trainer = make_trainer(model=model, **settings)
    trainer.set_training_stage("end_to_end", num_steps=20)
    train(trainer, batch_stream(0, 17))
    bank, saved = reference.Bank(20), kept(trainer)
    bank.entries = list(zip(saved[BANK_ITEMS], saved[BANK_KEYS], strict=True))
    (batch,) = batch_stream(17, 1)
    positions, targets = places(batch, model.config.num_items)
    found = plain_scores(backend, trainer, batch.items_BL, positions)
    sasrec, retriever, fused, preferences, keys = found
    own = {"sasrec": sasrec, "retriever": retriever, "fused": fused}
    primary = own if joint_loss == "separate" else {"fused": fused}
    expected = {
        **{name: -reference.log_softmax(s)[np.arange(len(targets)), targets].mean() for name, s in primary.items()},
        "consistency": reference.consistency_loss(preferences, batch.items_BL, positions, keys),
        "contrastive": reference.contrastive_loss(preferences, positions, 8, targets, keys, bank),
        "diversity": reference.diversity_loss(preferences),
        "distillation": sum(
            reference.distillation_loss(*pair, 4.0) for pair in [(sasrec, retriever), (retriever, sasrec)]
        ),
    }
    curriculum = curriculum_weights(17, 20, warmup_steps=0)
    weights = {**curriculum._asdict(), "sasrec": 0.5, "retriever": 2.0, "fused": 1.0, "distillation": 0.1}
    log_variances = dict(zip(COMPONENTS, saved[LOG_VARIANCES].tolist(), strict=True))
    assert any(abs(value) > 0.1 for value in log_variances.values())
    metrics = trainer.train_epoch([batch])
    assert {name: metrics[f"{name}_loss"] for name in expected} == pytest.approx(expected, rel=1e-4)
    of_modules = dict.fromkeys(MODULES, expected["fused"]) if joint_loss == "fused" else {}
    assert reported(metrics, "_loss") == {*expected, *of_modules, "total", "uncertainty"}
    assert {name: metrics[f"{name}_loss"] for name in of_modules} == pytest.approx(of_modules, rel=1e-4)
    assert reported(metrics, "_uncertainty_weight") == set(expected)
    total = reference.uncertainty_total(expected, weights, log_variances)
    assert metrics["total_loss"] == pytest.approx(total, rel=1e-4)
    after = reference.uncertainty_step(expected, weights, log_variances, 0.1 * metrics["sasrec_lr"] / 1e-3)
    assert kept(trainer)[LOG_VARIANCES] == pytest.approx([after[name] for name in COMPONENTS], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_the_epoch_reports_each_component_that_was_computed(make_trainer, loader, joint_loss):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(2), warmup_steps=0, **STRICT)
    primary = {"fused"} if joint_loss == "fused" else set(MODULES)
    expected = {
        "pretrain_sasrec": {"sasrec"},
        "pretrain_retriever": {"retriever"} | RETRIEVERS,
        "joint_finetune": {*primary, "distillation"} | RETRIEVERS,
        "end_to_end": {*primary, "fused", "distillation"} | RETRIEVERS,
    }
    for stage, components in expected.items():
        trainer.set_training_stage(stage)
        metrics = trainer.train_epoch(list(loader), max_steps=3)
        extra = set(MODULES) if joint_loss == "fused" and "fused" in components else set()
        assert reported(metrics, "_loss") == components | extra | {"total", "uncertainty"}, stage
        assert reported(metrics, "_uncertainty_weight") == components, stage
        assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_an_epoch_reports_each_component_in_the_steps_in_which_it_counts(make_trainer, loader, joint_loss):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(4), **STRICT)
    trainer.set_training_stage("joint_finetune", num_steps=20)
    own = {"fused"} if joint_loss == "fused" else set(MODULES)
    for num_steps, added in ((8, {"consistency"}), (12, RETRIEVERS)):
        metrics = trainer.train_epoch(list(loader) * 2, max_steps=num_steps)
        assert reported(metrics, "_loss") == own | set(MODULES) | added | {"total", "distillation", "uncertainty"}
        assert reported(metrics, "_uncertainty_weight") == own | added | {"distillation"}
        assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_strategy_alone_adds_its_own_components(make_trainer, loader, name):
    trainer = make_trainer(warmup_steps=0, **{f"use_{name}": True})
    trainer.set_training_stage("end_to_end")
    metrics = trainer.train_epoch(list(loader), max_steps=2)
    added = {
        "curriculum_learning": {"consistency", "diversity"},
        "memory_bank": {"contrastive"},
        "knowledge_distillation": {"distillation"},
        "uncertainty_weighting": {"uncertainty"},
    }
    assert reported(metrics, "_loss") == {"total", "sasrec", "retriever", "fused"} | added[name]


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_the_schedule_is_told_the_raw_primary_losses(make_trainer, batch_stream, joint_loss):
    records = []
    for settings in ({}, {**ALL, "warmup_steps": 0}):
        trainer = make_trainer(joint_loss=joint_loss, on_step=records.append, **settings)
        train(trainer, batch_stream(0, 1))
        trainer.flush()
    plain, everything = records
    assert everything._replace(losses={}) == plain._replace(losses={})
    assert everything.losses == pytest.approx(plain.losses, rel=1e-6)


def test_without_a_curriculum_the_banks_loss_counts_in_full_and_with_it_not_at_first(make_trainer, batch_stream):
    metrics = []
    for curriculum in (False, True):
        trainer = make_trainer(use_memory_bank=True, use_curriculum_learning=curriculum, memory_bank_size=20)
        trainer.set_training_stage("end_to_end", num_steps=10)
        train(trainer, batch_stream(0, 2))
        assert kept(trainer)["memory_bank.cursor"] == 2 * 16 % 20  # written with or without a loss
        metrics.append(trainer.train_epoch(list(batch_stream(2, 1))))
    contrastive = 0.2 * metrics[0]["contrastive_loss"]
    assert contrastive > 0
    assert metrics[0]["total_loss"] == pytest.approx(metrics[0]["fused_loss"] + contrastive, rel=1e-5)
    assert reported(metrics[1], "_loss") == {"total", "sasrec", "retriever", "fused", "consistency"}


def test_under_separate_only_the_module_that_trains_is_a_student(backend, make_model, make_trainer, batch_stream):
    model = make_model(sasrec_dropout=0.0, retriever_dropout=0.0)
    trainer = make_trainer(model=model, joint_loss="separate", rule=Cycle(50), use_knowledge_distillation=True)
    (batch,) = batch_stream(0, 1)
    sasrec, retriever, *_ = plain_scores(backend, trainer, batch.items_BL, places(batch, model.config.num_items)[0])
    before = bits(trainer)
    metrics = trainer.train_epoch([batch])
    assert metrics["distillation_loss"] == pytest.approx(reference.distillation_loss(sasrec, retriever, 4.0), rel=1e-4)
    after = bits(trainer)
    assert "sasrec.item_embedding.weight" in changed(before, after)
    moved = changed(before, after) | (after.keys() - before.keys())
    assert not {name for name in moved if name.startswith(("retriever.", "fusion."))}


@pytest.mark.parametrize("loss_at_hand", [True, False])
def test_a_skipped_step_leaves_the_bank_and_the_log_variances_alone(
    backend, make_trainer, batch_stream, monkeypatch, loss_at_hand
):
    trainer = make_trainer(warmup_steps=0, **ALL)
    trainer.set_training_stage("end_to_end")
    if not loss_at_hand:
        backend.act_like_an_accelerator(trainer)
    backend.spoil(trainer, monkeypatch, {1})
    train(trainer, batch_stream(0, 1))
    before, before_kept = bits(trainer), kept(trainer)
    train(trainer, batch_stream(1, 1))
    assert equal(bits(trainer), before)
    assert equal(kept(trainer), before_kept)
    train(trainer, batch_stream(1, 1))
    assert changed(before_kept, kept(trainer)) == set(before_kept)


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_resuming_in_the_middle_of_a_stage_is_exact(make_model, make_trainer, batch_stream, tmp_path, joint_loss):
    def make(seed=0):
        trainer = make_trainer(model=make_model(seed=seed), joint_loss=joint_loss, rule=Cycle(3), **STRICT)
        trainer.set_training_stage("joint_finetune", num_steps=30)
        return trainer

    whole, first, second = make(), make(), make(seed=5)
    train(whole, batch_stream(0, 24))
    train(first, batch_stream(0, 13))
    first.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    train(second, batch_stream(13, 11))
    assert equal(bits(second), bits(whole))
    assert equal(kept(second), kept(whole))
    assert (kept(whole)["memory_bank.items"] >= 0).all()


@pytest.mark.parametrize("fusion", ["rank", "cascade"])
def test_a_fusion_without_parameters_trains_saves_and_ranks(make_trainer, batch_stream, targets, tmp_path, fusion):
    trainers = [make_trainer(fusion=fusion, joint_loss="separate", rule=Cycle(2), **ALL) for _ in range(2)]
    for stage in ("pretrain_sasrec", "joint_finetune", "end_to_end"):
        trainers[0].set_training_stage(stage)
        train(trainers[0], batch_stream(0, 4))
    trainers[0].save_checkpoint(tmp_path / "step")
    trainers[1].load_checkpoint(tmp_path / "step")
    np.testing.assert_array_equal(trainers[1].rank(targets), trainers[0].rank(targets))
    train(trainers[1], batch_stream(4, 1))


@pytest.mark.parametrize("name", ["sampled", "gbce", "bpr"])
def test_every_sequence_loss_learns(make_trainer, loader, name):
    trainer = make_trainer(joint_loss="separate", sasrec_loss=name, sasrec_lr=5e-3, num_negatives=16, warmup_steps=0)
    trainer.set_training_stage("pretrain_sasrec")
    losses = [trainer.train_epoch(loader, epoch)["sasrec_loss"] for epoch in range(8)]
    assert losses[-1] < 0.97 * losses[0]


def test_all_strategies_learn_together_in_bf16(make_trainer, loader):
    trainer = make_trainer(bf16=True, sasrec_lr=5e-3, retriever_lr=5e-3, warmup_steps=0, **ALL)
    trainer.set_training_stage("end_to_end")
    losses = [trainer.train_epoch(loader, epoch)["fused_loss"] for epoch in range(6)]
    assert losses[-1] < 0.97 * losses[0]
