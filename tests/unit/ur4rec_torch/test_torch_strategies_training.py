"""The trainer with strategies on: what each step minimises, the freeze contract, the bank's owner, exact resume."""

import math

import numpy as np
import pytest
import torch

from alternator import Cycle
from tests import strategy_reference as reference
from tests.unit.ur4rec_torch.frozen_bits import bits, equal, train
from ur4rec.schedule.curriculum import curriculum_weights
from ur4rec.training.components import LOG_VARIANCES
from ur4rec_torch import trainer as trainer_module
from ur4rec_torch.device import to_device

JOINT_LOSSES = ["separate", "fused"]
STRATEGIES = ("curriculum_learning", "memory_bank", "knowledge_distillation", "uncertainty_weighting")
ALL = {**{f"use_{name}": True for name in STRATEGIES}, "memory_bank_size": 20, "uncertainty_lr": 0.1}
RETRIEVERS = {"consistency", "contrastive", "diversity"}


def kept(trainer):
    """What the strategies keep."""
    return {name: tensor.clone() for name, tensor in trainer._strategies.state_dict().items()}


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
@pytest.mark.parametrize(("active", "frozen"), [("sasrec", "retriever"), ("retriever", "sasrec")])
def test_frozen_modules_keep_every_bit_with_all_strategies_on(make_trainer, batch_stream, joint_loss, active, frozen):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(20), weight_decay=0.1, warmup_steps=1, **ALL)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 3))
    trainer.set_training_stage("joint_finetune")
    train(trainer, batch_stream(3, 21 if active == "retriever" else 1))
    assert trainer.alternator.active == active
    before, other, before_kept = bits(trainer, frozen), bits(trainer, active), kept(trainer)
    train(trainer, batch_stream(30, 15))
    assert equal(bits(trainer, frozen), before)
    assert not equal(bits(trainer, active), other)
    after_kept = kept(trainer)
    moved = {name for name in before_kept if not torch.equal(after_kept[name], before_kept[name])}
    banks = {name for name in before_kept if name.startswith("memory_bank")}
    assert moved & banks == (banks if active == "retriever" else set())
    assert LOG_VARIANCES in moved


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_each_component_and_the_total_are_those_of_plain_numpy(make_model, make_trainer, batch_stream, joint_loss):
    model = make_model(sasrec_dropout=0.0, retriever_dropout=0.0)
    settings = {**ALL, "joint_loss": joint_loss, "sasrec_loss_weight": 0.5, "retriever_loss_weight": 2.0}
    trainer = make_trainer(model=model, **settings)
    trainer.set_training_stage("end_to_end", num_steps=20)
    train(trainer, batch_stream(0, 17))
    bank = reference.Bank(20)
    bank_state = trainer._strategies.bank.state_dict()
    bank.entries = list(zip(*(array.numpy().copy() for array in list(bank_state.values())[:2]), strict=True))
    (batch,) = batch_stream(17, 1)
    inputs = to_device(batch, model.config.num_items, trainer.device)
    with torch.no_grad():
        catalogue = model.retriever.catalogue()
        preferences = model.retriever(inputs.items_BL, catalogue).flatten(0, 1)[inputs.positions_N]
        retriever = model.retriever.score(preferences, catalogue.keys_Id)
        hidden = model.sasrec(inputs.items_BL).flatten(0, 1)[inputs.positions_N]
        sasrec = model.sasrec.score(hidden, model.sasrec.item_table())
        fused = model.fusion(sasrec, retriever)
    arrays = [array.numpy() for array in (sasrec, retriever, fused, preferences, catalogue.keys_Id)]
    sasrec, retriever, fused, preferences, keys = arrays
    items, positions, targets = (array.numpy() for array in inputs[:3])
    own = {"sasrec": sasrec, "retriever": retriever, "fused": fused}
    chosen = own if joint_loss == "separate" else {"fused": fused}
    expected = {
        **{name: -reference.log_softmax(s)[np.arange(len(targets)), targets].mean() for name, s in chosen.items()},
        "consistency": reference.consistency_loss(preferences, items, positions, keys),
        "contrastive": reference.contrastive_loss(preferences, positions, items.shape[1], targets, keys, bank),
        "diversity": reference.diversity_loss(preferences),
        "distillation": sum(
            reference.distillation_loss(*pair, 4.0) for pair in [(sasrec, retriever), (retriever, sasrec)]
        ),
    }
    curriculum = curriculum_weights(17, 20, warmup_steps=0)
    weights = {**curriculum._asdict(), "sasrec": 0.5, "retriever": 2.0, "fused": 1.0, "distillation": 0.1}
    log_variances = {name: value.item() for name, value in trainer._strategies.uncertainty.log_variances.items()}
    losses = trainer._losses(inputs, ("sasrec", "retriever"))
    assert {name: loss.item() for name, (loss, _) in losses.components.items()} == pytest.approx(expected, rel=1e-4)
    assert {name: weight for name, (_, weight) in losses.components.items()} == {n: weights[n] for n in expected}
    total = reference.uncertainty_total(expected, weights, log_variances)
    assert losses.total.item() == pytest.approx(total, rel=1e-4)
    assert any(abs(value) > 0.1 for value in log_variances.values())


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_the_epoch_reports_each_component_that_was_computed(make_trainer, loader, joint_loss):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(2), warmup_steps=0, **ALL)
    primary = {"fused"} if joint_loss == "fused" else {"sasrec", "retriever"}
    expected = {
        "pretrain_sasrec": {"sasrec"},
        "pretrain_retriever": {"retriever"} | RETRIEVERS,
        "joint_finetune": {*primary, "distillation"} | RETRIEVERS,
        "end_to_end": {*primary, "fused", "distillation"} | RETRIEVERS,
    }
    for stage, components in expected.items():
        trainer.set_training_stage(stage)
        metrics = trainer.train_epoch(loader, max_steps=3)
        extra = {"sasrec", "retriever"} if joint_loss == "fused" and "fused" in components else set()
        found = {name.removesuffix("_loss") for name in metrics if name.endswith("_loss")}
        assert found == components | extra | {"total", "uncertainty"}, stage
        weights = {name.removesuffix("_uncertainty_weight") for name in metrics if name.endswith("_uncertainty_weight")}
        assert weights == components, stage
        assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_strategy_alone_adds_its_own_components(make_trainer, loader, name):
    trainer = make_trainer(warmup_steps=0, **{f"use_{name}": True})
    trainer.set_training_stage("end_to_end")
    metrics = trainer.train_epoch(loader, max_steps=2)
    added = {
        "curriculum_learning": {"consistency", "diversity"},
        "memory_bank": {"contrastive"},
        "knowledge_distillation": {"distillation"},
        "uncertainty_weighting": {"uncertainty"},
    }
    found = {key.removesuffix("_loss") for key in metrics if key.endswith("_loss")}
    assert found == {"total", "sasrec", "retriever", "fused"} | added[name]


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_the_schedule_is_told_the_raw_primary_losses(make_trainer, batch_stream, joint_loss):
    records = {"plain": [], "all": []}
    for name, settings in (("plain", {}), ("all", {**ALL, "warmup_steps": 0})):
        trainer = make_trainer(joint_loss=joint_loss, on_step=records[name].append, **settings)
        train(trainer, batch_stream(0, 1))
        trainer._log.flush()
    (plain,), (told,) = records["plain"], records["all"]
    assert told._replace(losses={}) == plain._replace(losses={})
    assert told.losses == pytest.approx(plain.losses, rel=1e-6)


def test_without_a_curriculum_the_banks_loss_counts_in_full_and_with_it_not_at_first(make_trainer, batch_stream):
    components = []
    for curriculum in (False, True):
        trainer = make_trainer(use_memory_bank=True, use_curriculum_learning=curriculum, memory_bank_size=20)
        trainer.set_training_stage("end_to_end", num_steps=10)
        train(trainer, batch_stream(0, 2))
        assert kept(trainer)["memory_bank.cursor"] == 2 * 16 % 20  # written with or without a loss
        (batch,) = batch_stream(2, 1)
        inputs = to_device(batch, trainer.model.config.num_items, trainer.device)
        components.append(trainer._losses(inputs, ("sasrec", "retriever")).components)
    assert components[0]["contrastive"].weight == 0.2
    assert set(components[1]) == {"fused", "consistency"}


def test_under_separate_only_the_module_that_trains_is_a_student(make_trainer, batch_stream):
    trainer = make_trainer(joint_loss="separate", rule=Cycle(50), use_knowledge_distillation=True)
    (batch,) = batch_stream(0, 1)
    trainer._alternating.train()
    inputs = to_device(batch, trainer.model.config.num_items, trainer.device)
    losses = trainer._losses(inputs, ("sasrec",))
    losses.components["distillation"].loss.backward()
    assert all(parameter.grad is None for parameter in trainer.model.retriever.parameters())
    assert trainer.model.sasrec.item_embedding.weight.grad.abs().sum() > 0
    assert trainer.model.fusion.weights.grad is None


@pytest.mark.parametrize("loss_at_hand", [True, False])
def test_a_skipped_step_leaves_the_bank_and_the_log_variances_alone(make_trainer, loader, monkeypatch, loss_at_hand):
    trainer = make_trainer(warmup_steps=0, **ALL)
    trainer.set_training_stage("end_to_end")
    trainer._loss_at_hand = loss_at_hand
    train(trainer, [loader.batch(0, 0)])
    before = kept(trainer)
    compute = trainer_module.fused_loss

    def poisoned(*arguments, **options):
        losses = compute(*arguments, **options)
        fused = losses.components["fused"]
        return losses._replace(components={"fused": fused._replace(loss=fused.loss * math.nan)})

    monkeypatch.setattr(trainer_module, "fused_loss", poisoned)
    train(trainer, [loader.batch(0, 1)])
    assert equal(kept(trainer), before)
    monkeypatch.undo()
    train(trainer, [loader.batch(0, 1)])
    assert not any(equal({name: kept(trainer)[name]}, {name: before[name]}) for name in before)


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_resuming_in_the_middle_of_a_stage_is_exact(make_model, make_trainer, batch_stream, tmp_path, joint_loss):
    settings = {"joint_loss": joint_loss, "rule": Cycle(3), "sasrec_loss": "gbce", "num_negatives": 8, **ALL}

    def make(seed=0):
        trainer = make_trainer(model=make_model(seed=seed), **settings)
        trainer.set_training_stage("joint_finetune", num_steps=30)
        return trainer

    whole, first, second = make(), make(), make(seed=5)
    train(whole, batch_stream(0, 24))
    train(first, batch_stream(0, 13))
    first.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    train(second, batch_stream(13, 11))
    assert equal(kept(second), kept(whole))
    for module in ("sasrec", "retriever", "fusion"):
        if joint_loss == "fused" or module != "fusion":
            assert equal(bits(second, module), bits(whole, module))
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
