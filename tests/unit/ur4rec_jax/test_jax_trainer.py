"""The trainer: stages, schedules, freezing, what a frozen module costs, metrics."""

import logging
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from alternator import Cycle, Plateau
from ur4rec.data.batches import Batch, EvaluationBatches
from ur4rec.errors import ConfigurationError, NonFiniteError, UnknownNameError
from ur4rec.evaluation.metrics import rank_batches, summarise
from ur4rec_jax import JointTrainer

JOINT_LOSSES = ["separate", "fused"]
STAGES = ("pretrain_sasrec", "pretrain_retriever", "joint_finetune", "end_to_end")


def train(trainer, batches):
    for batch in batches:
        trainer.train_step(batch)


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
@pytest.mark.parametrize(("active", "frozen"), [("sasrec", "retriever"), ("retriever", "sasrec")])
def test_fifty_frozen_steps_change_no_bit(make_trainer, batch_stream, bits, same_bits, joint_loss, active, frozen):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(50))
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 3))  # both modules have moments
    trainer.set_training_stage("joint_finetune")
    if active == "retriever":
        train(trainer, batch_stream(3, 50))
    before, other = bits(trainer, frozen), bits(trainer, active)
    assert trainer.alternator.active == active
    train(trainer, batch_stream(60, 50))
    assert same_bits(bits(trainer, frozen), before)
    assert not same_bits(bits(trainer, active), other)
    assert trainer.alternator.active == frozen


@pytest.mark.parametrize("module", ["sasrec", "retriever"])
def test_pretraining_trains_one_module_alone(make_trainer, batch_stream, bits, same_bits, module):
    trainer = make_trainer()
    other = "retriever" if module == "sasrec" else "sasrec"
    before, after = bits(trainer, module), bits(trainer, other, "fusion")
    trainer.set_training_stage(f"pretrain_{module}", num_steps=5)
    train(trainer, batch_stream(0, 5))
    assert not same_bits(bits(trainer, module), before)
    assert same_bits(bits(trainer, other, "fusion"), after)


def test_a_module_trains_in_later_stages_after_it_was_frozen(make_trainer, batch_stream, bits, same_bits):
    trainer = make_trainer(use_adaptive_alternating=False)
    for stage in STAGES:
        trainer.set_training_stage(stage, num_steps=4)
        before = {name: bits(trainer, name) for name in ("sasrec", "retriever")}
        train(trainer, batch_stream(0, 4))
        changed = {name for name in before if not same_bits(bits(trainer, name), before[name])}
        assert changed == {"pretrain_sasrec": {"sasrec"}, "pretrain_retriever": {"retriever"}}.get(stage, set(before))
    after = bits(trainer)
    counts = {name: after[f"{name}/step"] for name in ("sasrec", "retriever", "fusion")}
    assert counts == {"sasrec": 10, "retriever": 10, "fusion": 8}  # optimizer state lives through all stages


def test_an_unknown_stage_lists_the_four_and_changes_nothing(make_trainer):
    trainer = make_trainer()
    trainer.set_training_stage("end_to_end")
    with pytest.raises(UnknownNameError) as error:
        trainer.set_training_stage("warmup")
    assert str(error.value) == f"unknown stage 'warmup'; expected one of {STAGES}"
    with pytest.raises(ConfigurationError, match="num_steps must be an integer of at least 1, got 0"):
        trainer.set_training_stage("joint_finetune", num_steps=0)
    assert trainer.stage == "end_to_end"


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_parity_trains_sasrec_in_even_steps_and_the_retriever_in_odd_ones(make_trainer, batch_stream, joint_loss):
    records = []
    trainer = make_trainer(joint_loss=joint_loss, use_adaptive_alternating=False, on_step=records.append)
    assert trainer.adaptive_alternating is None
    train(trainer, batch_stream(0, 11))
    trainer.set_training_stage("joint_finetune")
    assert [record.active for record in records] == ["sasrec", "retriever"] * 5 + ["sasrec"]
    assert [record.step for record in records] == list(range(1, 12))
    assert all(set(r.losses) == ({r.active} if joint_loss == "separate" else {"sasrec", "retriever"}) for r in records)


def test_the_alternator_starts_anew_on_entering_joint_finetune(make_trainer, batch_stream):
    trainer = make_trainer(rule=Cycle(2))
    train(trainer, batch_stream(0, 3))
    assert trainer.alternator.active == "retriever"
    trainer.set_training_stage("end_to_end")
    assert trainer.alternator.active == "both"
    trainer.set_training_stage("joint_finetune")
    assert trainer.adaptive_alternating is trainer.alternator
    assert trainer.alternator.get_stats()["total_steps"] == 0


def test_the_alternator_sees_the_losses_of_the_records_one_step_late(make_trainer, batch_stream):
    records = []
    trainer = make_trainer(on_step=records.append)
    assert trainer.alternator.rule == Plateau(threshold=0.01, min_steps=5)
    train(trainer, batch_stream(0, 6))
    alternator = trainer.adaptive_alternating
    trainer.set_training_stage("joint_finetune")
    assert len(records) == 6
    assert alternator.sasrec_loss_history == [record.losses["sasrec"] for record in records[:5]]
    assert alternator.retriever_loss_history == [record.losses["retriever"] for record in records[:5]]


def test_an_update_is_as_long_as_the_learning_rate_of_its_module(make_trainer, loader, bits):
    moved = {}
    for scale in (1, 2):
        trainer = make_trainer(sasrec_lr=1e-3 * scale, retriever_lr=1e-4 * scale, warmup_steps=2)
        trainer.set_training_stage("end_to_end")
        before = bits(trainer)
        trainer.train_step(loader.batch(0, 0))
        after = bits(trainer)
        for name in ("sasrec.item_embedding.weight", "retriever.item_projection.weight"):
            moved[scale, name] = np.abs(after[name] - before[name]).max()
    # AdamW's first step is as long as the rate, here half its peak in the warm-up, and weight decay adds little
    assert moved[1, "sasrec.item_embedding.weight"] == pytest.approx(5e-4, rel=0.02)
    assert moved[1, "retriever.item_projection.weight"] == pytest.approx(5e-5, rel=0.02)
    assert moved[2, "sasrec.item_embedding.weight"] == pytest.approx(1e-3, rel=0.02)


def test_an_epoch_returns_its_metrics(make_trainer, loader):
    records = []
    trainer = make_trainer(rule=Cycle(2), on_step=records.append)
    trainer.set_training_stage("joint_finetune", num_steps=100)
    first = trainer.train_epoch(loader, epoch=0)
    assert len(records) == len(loader) == first["steps"] == first["sasrec_steps"] + first["retriever_steps"]
    assert first["both_steps"] == first["nonfinite_steps"] == 0
    assert first["sasrec_loss"] == pytest.approx(np.mean([record.losses["sasrec"] for record in records]))
    assert 0 < first["total_loss"] < 10
    assert first["adaptive_switch_count"] == first["switches"] == len(loader) // 2
    second = trainer.train_epoch(loader, epoch=1)
    assert second["adaptive_switch_count"] == trainer.adaptive_alternating.get_stats()["switch_count"]
    assert second["switches"] == second["adaptive_switch_count"] - first["switches"]
    assert second["sasrec_lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * (2 * len(loader) - 6) / 95)))


def test_an_epoch_may_start_late_and_end_early(make_trainer, loader, bits, same_bits):
    trainer, other = make_trainer(), make_trainer()
    assert trainer.train_epoch(loader, epoch=2, start=1, max_steps=2)["steps"] == 2
    for start in (1, 2):
        other.train_epoch(loader, epoch=2, start=start, max_steps=1)
    assert same_bits(bits(trainer), bits(other))


def test_the_bar_shows_losses_rates_who_trains_and_switches(make_model, loader, capsys, monkeypatch):
    monkeypatch.setattr("ur4rec.training.progress.tqdm", partial(tqdm, mininterval=0))  # every step, however fast
    trainer = JointTrainer(make_model(), device="cpu", progress=True, rule=Cycle(1))
    trainer.train_epoch(loader, epoch=3)
    shown = capsys.readouterr().err
    for part in ("epoch 3", "loss=", "lr_s=", "lr_r=", "train=SAS", "train=RET", f"switch={len(loader)}"):
        assert part in shown


def test_a_frozen_catalogue_is_computed_once_a_tenure(make_trainer, batch_stream, targets, bits, same_bits):
    def run(*, cached):
        trainer, calls, ranks = make_trainer(rule=Cycle((6, 2))), [], []
        project = trainer._functions.project
        trainer._functions = trainer._functions._replace(
            project=lambda *arrays: calls.append(trainer.step) or project(*arrays)
        )
        for batch in batch_stream(0, 16):
            if not cached:
                trainer._kept_catalogue = None
            trainer.train_step(batch)
            ranks.append(trainer.rank(targets) if trainer.step % 4 == 0 else None)
        return trainer, calls, ranks

    trainer, calls, ranks = run(cached=True)
    other, all_calls, other_ranks = run(cached=False)
    assert calls == [0, 8, 16]  # before the first tenure of SASRec, before the second, and to rank after the last step
    assert len(all_calls) > len(calls)
    assert same_bits(bits(trainer), bits(other))
    for first, second in zip(ranks, other_ranks, strict=True):
        np.testing.assert_array_equal(first, second)


def without_targets(batch):
    """A batch whose loss is 0/0: not a number."""
    padding = batch.targets_BL.max()
    return Batch(np.full_like(batch.items_BL, padding), np.full_like(batch.targets_BL, padding), batch.users_B)


@pytest.mark.parametrize("loss_at_hand", [True, False])
def test_a_loss_that_is_not_finite_skips_the_update_and_is_counted(make_trainer, loader, bits, same_bits, loss_at_hand):
    trainer = make_trainer(rule=Cycle(100))
    trainer._loss_at_hand = loss_at_hand  # False is the way of an accelerator, which the host does not wait for
    train(trainer, [loader.batch(0, 0), loader.batch(0, 1)])
    before = bits(trainer)
    metrics = trainer.train_epoch([without_targets(loader.batch(0, 2))] * 2)
    assert same_bits(bits(trainer), before)
    assert metrics["nonfinite_steps"] == metrics["steps"] == 2
    assert "total_loss" not in metrics
    assert trainer.alternator.get_stats()["sasrec_skipped_steps"] == (2 if loss_at_hand else 0)
    trainer.train_step(loader.batch(0, 0))
    assert bits(trainer)["sasrec/step"] == 3


def test_too_many_in_a_row_stop_the_run_with_a_clear_error(make_trainer, loader, bits):
    trainer = make_trainer(max_nonfinite_losses=4)
    good, bad = loader.batch(0, 0), without_targets(loader.batch(0, 0))
    with pytest.raises(
        NonFiniteError, match=r"got nan in the last 4 steps \(to step 9, joint_finetune, training sasrec"
    ):
        train(trainer, [good, bad, bad, bad, good, *[bad] * 15])
    assert trainer.step == 10  # known one step late
    assert all(np.isfinite(array).all() for array in bits(trainer).values())


def test_dropout_is_a_function_of_seed_and_step(make_trainer, loader, bits, same_bits):
    def step_once(seed, offset):
        trainer = make_trainer(seed=seed)
        trainer.step = offset
        trainer.train_step(loader.batch(0, 0))
        return bits(trainer, "sasrec")

    first = step_once(0, 0)
    assert same_bits(first, step_once(0, 0))
    assert not same_bits(first, step_once(0, 1))
    assert not same_bits(first, step_once(1, 0))


@pytest.mark.parametrize("scorer", ["fused", "sasrec", "retriever"])
def test_ranks_are_those_of_the_reference(make_trainer, targets, loader, scorer):
    trainer = make_trainer()
    trainer.train_epoch(loader)
    expected = rank_batches(lambda batch: trainer.score(batch.items_BL, scorer), targets)
    np.testing.assert_array_equal(trainer.rank(targets, scorer=scorer), expected)
    assert trainer.evaluate(targets, k_list=[5, 10], scorer=scorer) == summarise(expected, [5, 10])


def test_all_scorers_rank_in_one_pass_of_each_module(make_trainer, targets, monkeypatch):
    trainer = make_trainer()
    expected = {scorer: trainer.rank(targets, scorer) for scorer in ("sasrec", "retriever", "fused")}
    calls = []
    for module in (type(trainer.model.sasrec), type(trainer.model.retriever)):
        monkeypatch.setattr(module, "score", lambda *given, score=module.score: calls.append(1) or score(*given))
    found = trainer.rank_all(targets)
    assert list(found) == ["fused", "sasrec", "retriever"]
    for scorer, ranks_T in expected.items():
        np.testing.assert_array_equal(found[scorer], ranks_T)
    assert len(calls) == 2 * len({batch.items_BL.shape for batch in targets})  # traced once for each shape


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_constant_scores_get_nothing_and_those_that_are_not_finite_are_an_error(make_model, targets, value):
    model = make_model()
    model.sasrec.item_embedding.embedding[...] = jnp.full_like(model.sasrec.item_embedding.embedding[...], value)
    trainer = JointTrainer(model, device="cpu", progress=False)
    if value == 0:
        assert trainer.evaluate(targets, k_list=[10], scorer="sasrec")["hit@10"] == 0
    else:
        with pytest.raises(NonFiniteError, match="scores must be finite"):
            trainer.rank(targets)


def test_evaluation_changes_nothing(make_trainer, batch_stream, targets, bits, same_bits):
    first, second = make_trainer(rule=Cycle(3)), make_trainer(rule=Cycle(3))
    for batch in batch_stream(0, 8):
        first.train_step(batch)
        second.train_step(batch)
        first.evaluate(targets)
    assert same_bits(bits(first), bits(second))


def test_models_from_outside_and_to_outside_are_not_consumed_by_training(make_model, make_trainer, batch_stream):
    model = make_model()
    trainer = make_trainer(model=model)
    train(trainer, batch_stream(0, 1))
    taken = jax.jit(trainer.model.score)
    scores_BI = taken(jnp.array([[1, 2]]))
    np.testing.assert_allclose(trainer.score([[1, 2]]), scores_BI, rtol=1e-5, atol=1e-5)
    train(trainer, batch_stream(1, 2))
    np.testing.assert_array_equal(taken(jnp.array([[1, 2]])), scores_BI)
    assert np.isfinite(model.sasrec.item_table()).all()
    assert not np.allclose(trainer.score([[1, 2]]), scores_BI, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fusion", "sasrec_loss", "joint_loss", "bf16"),
    [
        ("logit", "ce", "fused", False),
        ("weighted", "ce", "fused", False),
        ("logit", "bce", "separate", False),
        ("logit", "ce", "fused", True),
    ],
)
def test_every_kind_of_loss_learns(make_trainer, loader, bits, fusion, sasrec_loss, joint_loss, bf16):
    settings = {"fusion": fusion, "sasrec_loss": sasrec_loss, "joint_loss": joint_loss, "bf16": bf16}
    trainer = make_trainer(**settings, sasrec_lr=5e-3, retriever_lr=5e-3)
    trainer.set_training_stage("end_to_end", num_steps=10 * len(loader))
    losses = [trainer.train_epoch(loader, epoch)["total_loss"] for epoch in range(10)]
    assert losses[-1] < 0.97 * losses[0]
    assert {array.dtype.name for array in bits(trainer).values()} == {"float32", "int32"}


@pytest.mark.parametrize("on_device", [False, True])
def test_a_switch_is_logged_once(make_trainer, loader, caplog, on_device):
    trainer = make_trainer(rule=Cycle(2), on_device=on_device)
    with caplog.at_level(logging.INFO, logger="alternator"):
        trainer.train_epoch(loader)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"step {step}" for step in range(2, len(loader) + 1, 2)
    ]


def test_settings_and_devices_out_of_range_are_refused(make_model, make_trainer):
    with pytest.raises(ConfigurationError, match="sasrec_lr must be a finite number above 0, got 0"):
        make_trainer(sasrec_lr=0)
    with pytest.raises(ConfigurationError, match="device must be auto, cpu, cuda, cuda:N, gpu, gpu:N or tpu"):
        JointTrainer(make_model(), device="quantum")
    with pytest.raises(ConfigurationError, match="must be one of this machine, got 'cpu:99', but JAX finds only"):
        JointTrainer(make_model(), device="cpu:99")
    with pytest.raises(UnknownNameError, match="unknown scorer 'both'"):
        make_trainer().score([[1]], "both")


def test_the_device_is_the_one_asked_for(make_model):
    trainer = JointTrainer(make_model(), device="cpu:0", progress=False)
    assert trainer.device == jax.devices("cpu")[0]
    assert {device for leaf in jax.tree.leaves(trainer._state) for device in leaf.devices()} == {trainer.device}
    assert JointTrainer(make_model(), device=trainer.device).device == trainer.device


def test_an_empty_loader_cannot_be_ranked(make_trainer):
    with pytest.raises(ValueError, match="evaluation needs at least one batch"):
        make_trainer().rank(())


def test_the_last_batch_may_hold_rows_that_only_fill_up(make_trainer, split):
    trainer = make_trainer()
    whole = EvaluationBatches(split.test, split.num_items, max_seq_len=8, batch_size=len(split.test))
    parts = EvaluationBatches(split.test, split.num_items, max_seq_len=8, batch_size=7)
    np.testing.assert_array_equal(trainer.rank(whole), trainer.rank(parts))
