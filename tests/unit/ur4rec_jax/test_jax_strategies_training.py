"""The trainer with strategies on: the freeze contract, the bank's owner, what is reported, exact resume, the device."""

import math

import numpy as np
import pytest

from alternator import Cycle
from ur4rec.data.batches import Batch
from ur4rec.training.components import LOG_VARIANCES
from ur4rec_jax.checkpoint import _export_strategies

JOINT_LOSSES = ["separate", "fused"]
STRATEGIES = ("curriculum_learning", "memory_bank", "knowledge_distillation", "uncertainty_weighting")
ALL = {**{f"use_{name}": True for name in STRATEGIES}, "memory_bank_size": 20, "uncertainty_lr": 0.1}
RETRIEVERS = {"consistency", "contrastive", "diversity"}


def kept(trainer):
    """What the strategies keep."""
    return {name: np.copy(array) for name, array in _export_strategies(trainer._state.strategies).items()}


def changed(first, second):
    return {name for name in first if not np.array_equal(first[name], second[name])}


def train(trainer, batches):
    for batch in batches:
        trainer.train_step(batch)


def components(metrics, ending):
    return {name.removesuffix(ending) for name in metrics if name.endswith(ending)}


@pytest.fixture
def start(make_model, make_trainer):
    """A trainer with everything on, in a stage in which all components come into play; all alike share compilations."""

    def make(joint_loss, seed=0, **settings):
        trainer = make_trainer(model=make_model(seed=seed), joint_loss=joint_loss, rule=Cycle(4), **ALL, **settings)
        trainer.set_training_stage("joint_finetune", num_steps=20)
        return trainer

    return make


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_frozen_modules_keep_every_bit_and_the_bank_is_the_retrievers(start, batch_stream, bits, same_bits, joint_loss):
    trainer = start(joint_loss)
    train(trainer, batch_stream(0, 8))  # both modules have moments, and the bank has entries
    for active, frozen in (("sasrec", "retriever"), ("retriever", "sasrec")):
        assert trainer.alternator.active == active
        before, other, before_kept = bits(trainer, frozen), bits(trainer, active), kept(trainer)
        train(trainer, batch_stream(trainer.step, 4))
        assert same_bits(bits(trainer, frozen), before)
        assert not same_bits(bits(trainer, active), other)
        banks = {name for name in before_kept if name.startswith("memory_bank")}
        assert changed(before_kept, kept(trainer)) == (banks if active == "retriever" else set()) | {LOG_VARIANCES}
    before, before_kept = bits(trainer), kept(trainer)
    bad = Batch(*(np.full_like(array, 60) for array in next(batch_stream(0, 1))))
    trainer.set_training_stage("joint_finetune")
    trainer.alternator.force("retriever")
    train(trainer, [bad])  # its loss is not finite: the step has no effect
    assert same_bits(bits(trainer), before)
    assert changed(before_kept, kept(trainer)) == set()
    assert trainer._functions.compiled_steps[joint_loss == "fused"]._cache_size() == 2  # whatever the curriculum


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_resuming_in_the_middle_of_a_stage_is_exact(start, batch_stream, bits, same_bits, tmp_path, joint_loss):
    whole, first, second = start(joint_loss), start(joint_loss), start(joint_loss, seed=5)
    train(whole, batch_stream(0, 20))
    train(first, batch_stream(0, 14))
    first.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    train(second, batch_stream(14, 6))
    assert same_bits(bits(second), bits(whole))
    assert changed(kept(second), kept(whole)) == set()
    assert (kept(whole)["memory_bank.items"] >= 0).all()


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_an_epoch_reports_each_component_in_the_steps_in_which_it_counts(start, loader, joint_loss):
    trainer = start(joint_loss)
    primary = {"fused", "sasrec", "retriever"} if joint_loss == "fused" else {"sasrec", "retriever"}
    batches = list(loader)  # of one shape, for which the step is compiled already
    early, late = (trainer.train_epoch(batches * 2, start=start, max_steps=steps) for start, steps in ((0, 8), (0, 12)))
    expected = {"early": {"consistency"}, "late": RETRIEVERS}
    for metrics, added in zip((early, late), expected.values(), strict=True):
        assert components(metrics, "_loss") == primary | added | {"total", "distillation", "uncertainty"}
        own = {"fused"} if joint_loss == "fused" else primary
        assert components(metrics, "_uncertainty_weight") == own | added | {"distillation"}
        assert all(math.isfinite(value) for value in metrics.values())


def test_epochs_on_the_device_are_what_the_host_does_step_by_step(start, loader):
    host, device = start("fused"), start("fused", on_device=True)
    batches = list(loader)
    metrics = [[trainer.train_epoch(batches, epoch) for epoch in range(2)] for trainer in (host, device)]
    for mine, other in zip(*metrics, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    mine, other = kept(host), kept(device)
    np.testing.assert_array_equal(mine["memory_bank.items"], other["memory_bank.items"])
    for name, array in mine.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_the_schedule_is_told_the_raw_primary_losses(start, make_trainer, batch_stream, joint_loss):
    records = []
    plain = make_trainer(joint_loss=joint_loss, rule=Cycle(4), on_step=records.append)
    everything = start(joint_loss, on_step=records.append)
    for trainer in (plain, everything):
        train(trainer, batch_stream(0, 1))
        trainer._log.flush()
    assert records[0].losses == pytest.approx(records[1].losses, rel=1e-6)


def test_a_fusion_without_parameters_trains_saves_and_ranks(make_trainer, batch_stream, targets, tmp_path):
    trainers = [make_trainer(fusion="cascade", joint_loss="separate") for _ in range(2)]
    trainers[0].set_training_stage("end_to_end")
    train(trainers[0], batch_stream(0, 2))
    trainers[0].save_checkpoint(tmp_path / "step")
    trainers[1].load_checkpoint(tmp_path / "step")
    np.testing.assert_array_equal(trainers[1].rank(targets), trainers[0].rank(targets))
