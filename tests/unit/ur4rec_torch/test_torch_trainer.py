"""The trainer: stages, schedules, freezing, what a frozen module costs, metrics."""

import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from tqdm import tqdm

from alternator import Cycle, Plateau
from tests.unit.ur4rec_torch.frozen_bits import bits, equal, train
from ur4rec.config import check_joint_loss
from ur4rec.data.batches import EvaluationBatches
from ur4rec.errors import ConfigurationError, NonFiniteError, UnknownNameError
from ur4rec.evaluation.metrics import rank_batches, summarise
from ur4rec_torch import JointTrainer
from ur4rec_torch import trainer as trainer_module

JOINT_LOSSES = ["separate", "fused"]
STAGES = ("pretrain_sasrec", "pretrain_retriever", "joint_finetune", "end_to_end")


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
@pytest.mark.parametrize(("active", "frozen"), [("sasrec", "retriever"), ("retriever", "sasrec")])
def test_fifty_frozen_steps_change_no_bit(make_trainer, batch_stream, joint_loss, active, frozen):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(50), weight_decay=0.1, clip_norm=0.1)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 3))  # both modules have moments
    trainer.set_training_stage("joint_finetune")
    if active == "retriever":
        train(trainer, batch_stream(3, 50))
    before, other = bits(trainer, frozen), bits(trainer, active)
    assert trainer.alternator.active == active
    train(trainer, batch_stream(60, 50))
    assert equal(bits(trainer, frozen), before)
    assert not equal(bits(trainer, active), other)
    assert trainer.alternator.active == frozen


@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
@pytest.mark.parametrize("module", ["sasrec", "retriever"])
def test_pretraining_trains_one_module_alone(make_trainer, batch_stream, joint_loss, module):
    trainer = make_trainer(joint_loss=joint_loss)
    other = "retriever" if module == "sasrec" else "sasrec"
    before = {name: bits(trainer, name) for name in (module, other, "fusion")}
    trainer.set_training_stage(f"pretrain_{module}", num_steps=5)
    train(trainer, batch_stream(0, 5))
    assert not equal(bits(trainer, module), before[module])
    assert equal(bits(trainer, other), before[other])
    assert equal(bits(trainer, "fusion"), before["fusion"])


def test_a_module_trains_in_later_stages_after_it_was_frozen(make_trainer, batch_stream):
    trainer = make_trainer(use_adaptive_alternating=False)
    for stage in STAGES:
        trainer.set_training_stage(stage, num_steps=4)
        before = {name: bits(trainer, name) for name in ("sasrec", "retriever")}
        train(trainer, batch_stream(0, 4))
        changed = {name for name in before if not equal(bits(trainer, name), before[name])}
        assert changed == {"pretrain_sasrec": {"sasrec"}, "pretrain_retriever": {"retriever"}}.get(stage, set(before))
    steps = {name: optimizer.state for name, optimizer in trainer._optimizers.items()}
    counts = {name: {int(entry["step"]) for entry in state.values()} for name, state in steps.items()}
    assert counts == {"sasrec": {10}, "retriever": {10}, "fusion": {8}}  # optimizer state lives through all stages


def test_what_the_user_froze_stays_frozen_in_every_stage(make_model, make_trainer, batch_stream):
    model = make_model()
    model.sasrec.position_embedding.weight.requires_grad_(False)
    trainer = make_trainer(model=model)
    before = model.sasrec.position_embedding.weight.clone()
    for stage in STAGES:
        trainer.set_training_stage(stage)
        train(trainer, batch_stream(0, 3))
        assert not model.sasrec.position_embedding.weight.requires_grad
    assert torch.equal(model.sasrec.position_embedding.weight, before)


def test_an_unknown_stage_lists_the_four_and_changes_nothing(make_trainer):
    trainer = make_trainer()
    trainer.set_training_stage("end_to_end")
    with pytest.raises(UnknownNameError) as error:
        trainer.set_training_stage("warmup")
    assert str(error.value) == f"unknown stage 'warmup'; expected one of {STAGES}"
    assert trainer.stage == "end_to_end"
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
    train(trainer, batch_stream(0, 10))
    stats = trainer.alternator.get_stats()
    assert stats["sasrec_training_ratio"] == stats["retriever_training_ratio"] == 0.5


def test_the_schedule_starts_anew_on_entering_joint_finetune(make_trainer, batch_stream):
    trainer = make_trainer(rule=Cycle(3))
    assert trainer.adaptive_alternating is trainer.alternator
    trainer.set_training_stage("joint_finetune")
    train(trainer, batch_stream(0, 4))
    assert trainer.adaptive_alternating.get_stats()["total_steps"] == 4
    trainer.set_training_stage("end_to_end")
    assert trainer.alternator.active == "both"
    trainer.set_training_stage("joint_finetune")
    assert trainer.adaptive_alternating is trainer.alternator
    assert trainer.alternator.get_stats()["total_steps"] == 0
    assert trainer.alternator.active == "sasrec"


def test_the_original_rule_is_the_default_and_is_fed_raw_losses(make_trainer, batch_stream):
    records = []
    trainer = make_trainer(
        adaptive_switch_threshold=0.02,
        adaptive_min_steps=3,
        joint_loss="separate",
        sasrec_loss_weight=7.0,
        on_step=records.append,
    )
    assert trainer.alternator.rule == Plateau(threshold=0.02, min_steps=3)
    train(trainer, batch_stream(0, 8))
    trainer.set_training_stage("joint_finetune")
    assert all(set(record.losses) == {"sasrec"} for record in records)
    assert all(record.losses["sasrec"] < 5 for record in records)  # log 60 is 4.1: not weighted by 7


def test_the_alternator_sees_the_losses_of_the_records_one_step_late(make_trainer, batch_stream):
    records = []
    trainer = make_trainer(on_step=records.append)
    train(trainer, batch_stream(0, 6))
    alternator = trainer.adaptive_alternating
    trainer._log.flush()
    assert alternator.sasrec_loss_history == [record.losses["sasrec"] for record in records[:5]]
    assert alternator.retriever_loss_history == [record.losses["retriever"] for record in records[:5]]


def test_the_learning_rate_is_a_function_of_progress_whoever_is_active(make_trainer, batch_stream):
    trainer = make_trainer(rule=Cycle((1, 3)), sasrec_lr=1e-2, retriever_lr=1e-3, warmup=0.25)
    trainer.set_training_stage("joint_finetune", num_steps=8)
    seen = []
    for batch in batch_stream(0, 8):
        trainer.train_step(batch)
        seen.append({name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer._optimizers.items()})
    factors = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert [rates["sasrec"] for rates in seen] == pytest.approx([1e-2 * factor for factor in factors])
    assert [rates["retriever"] for rates in seen] == pytest.approx([1e-3 * factor for factor in factors])


def test_without_a_length_the_learning_rate_is_constant_after_the_warm_up(make_trainer, batch_stream):
    trainer = make_trainer(warmup_steps=2, sasrec_lr=1e-2)
    trainer.set_training_stage("pretrain_sasrec")
    seen = []
    for batch in batch_stream(0, 4):
        trainer.train_step(batch)
        seen.append(trainer._optimizers["sasrec"].param_groups[0]["lr"])
    assert seen == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])


def test_an_epoch_returns_its_metrics(make_trainer, loader):
    records = []
    trainer = make_trainer(rule=Cycle(2), on_step=records.append)
    trainer.set_training_stage("joint_finetune", num_steps=100)
    first = trainer.train_epoch(loader, epoch=0)
    assert len(records) == len(loader) == first["steps"] == first["sasrec_steps"] + first["retriever_steps"]
    assert first["both_steps"] == first["nonfinite_steps"] == 0
    assert first["sasrec_loss"] == pytest.approx(np.mean([record.losses["sasrec"] for record in records]))
    assert first["retriever_loss"] == pytest.approx(np.mean([record.losses["retriever"] for record in records]))
    assert 0 < first["total_loss"] < 10
    assert first["adaptive_switch_count"] == first["switches"] == len(loader) // 2
    second = trainer.train_epoch(loader, epoch=1)
    assert second["adaptive_switch_count"] == trainer.adaptive_alternating.get_stats()["switch_count"]
    assert second["switches"] == second["adaptive_switch_count"] - first["switches"]
    assert second["sasrec_lr"] == trainer._optimizers["sasrec"].param_groups[0]["lr"]


def test_an_epoch_may_start_late_and_end_early(make_trainer, loader):
    records = []
    trainer = make_trainer(on_step=records.append)
    assert trainer.train_epoch(loader, epoch=2, start=1, max_steps=2)["steps"] == 2
    other = make_trainer()
    for index in (1, 2):
        other.train_step(loader.batch(2, index))
    assert equal(bits(trainer, "sasrec"), bits(other, "sasrec"))


def test_the_bar_shows_losses_rates_who_trains_and_switches(make_model, loader, capsys, monkeypatch):
    monkeypatch.setattr("ur4rec.training.progress.tqdm", partial(tqdm, mininterval=0))  # every step, however fast
    trainer = JointTrainer(make_model(), device="cpu", progress=True, rule=Cycle(1))
    trainer.train_epoch(loader, epoch=3)
    shown = capsys.readouterr().err
    for part in ("epoch 3", "loss=", "lr_s=", "lr_r=", "train=SAS", "train=RET", f"switch={len(loader)}"):
        assert part in shown


@pytest.mark.parametrize(
    ("stage", "active", "joint_loss", "forwards"),
    [
        ("pretrain_sasrec", None, "fused", (1, 0)),
        ("pretrain_retriever", None, "fused", (0, 1)),
        ("joint_finetune", "sasrec", "separate", (1, 0)),
        ("joint_finetune", "retriever", "separate", (0, 1)),
        ("joint_finetune", "sasrec", "fused", (1, 1)),
        ("end_to_end", None, "separate", (1, 1)),
    ],
)
def test_a_frozen_module_costs_no_backward_and_no_needless_forward(
    make_trainer, batch_stream, stage, active, joint_loss, forwards
):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(100))
    trainer.set_training_stage(stage)
    if active is not None:
        trainer._alternating.force(active)
    ran, had_gradients = [], []

    def watch(name, output):
        ran.append(name)
        if output.requires_grad:
            output.register_hook(lambda gradient: had_gradients.append(name))

    for name in ("sasrec", "retriever"):
        module = getattr(trainer.model, name)
        module.register_forward_hook(lambda _module, _inputs, output, name=name: watch(name, output))
    train(trainer, batch_stream(0, 1))
    assert (ran.count("sasrec"), ran.count("retriever")) == forwards
    pretrained = stage.removeprefix("pretrain_")
    trained = {active} if active else {pretrained} & {"sasrec", "retriever"} or {"sasrec", "retriever"}
    assert set(had_gradients) == trained


def test_a_frozen_catalogue_is_computed_once_a_tenure_and_changes_nothing(make_trainer, batch_stream, targets):
    def run(*, cached):
        trainer = make_trainer(rule=Cycle((6, 2)))
        calls, compute = [], trainer.model.retriever.catalogue
        trainer.model.retriever.catalogue = lambda **options: (
            calls.append(trainer.alternator.active) or compute(**options)
        )
        ranks = []
        for batch in batch_stream(0, 16):
            if not cached:
                trainer._kept_catalogue = None
            trainer.train_step(batch)
            ranks.append(trainer.rank(targets) if trainer.step % 4 == 0 else None)
        return trainer, calls, ranks

    trainer, calls, ranks = run(cached=True)
    other, all_calls, other_ranks = run(cached=False)
    assert calls.count("retriever") == 4  # in each of its own steps
    assert calls.count("sasrec") == 3  # once after each of the retriever's tenures, and once before them
    assert len(all_calls) > len(calls)
    assert equal(trainer.model.state_dict(), other.model.state_dict())
    for first, second in zip(ranks, other_ranks, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_change_of_the_weights_from_outside_reaches_the_kept_catalogue(
    make_trainer, make_model, batch_stream, targets
):
    trainer, other = make_trainer(rule=Cycle(100)), make_model(seed=9)
    train(trainer, batch_stream(0, 1))
    trainer.rank(targets)
    trainer.model.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(trainer.score([[1, 2]]), other.eval().score(torch.tensor([[1, 2]])).detach().numpy())


def nan_at(monkeypatch, steps, trainer):
    """Make the loss NaN in some steps."""
    compute = trainer_module.fused_loss

    def poisoned(*arguments, **options):
        losses = compute(*arguments, **options)
        return losses._replace(total=losses.total * math.nan) if trainer.step in steps else losses

    monkeypatch.setattr(trainer_module, "fused_loss", poisoned)


@pytest.mark.parametrize("loss_at_hand", [True, False])
def test_a_loss_that_is_not_finite_skips_the_update_and_is_counted(make_trainer, loader, monkeypatch, loss_at_hand):
    trainer = make_trainer(rule=Cycle(100))
    trainer._loss_at_hand = loss_at_hand  # False is the way of an accelerator, which the host does not wait for
    nan_at(monkeypatch, {2, 3}, trainer)
    for index in range(2):
        trainer.train_step(loader.batch(0, index))
    before = {name: bits(trainer, name) for name in ("sasrec", "retriever", "fusion")}
    metrics = trainer.train_epoch(loader, start=2, max_steps=2)
    assert all(equal(bits(trainer, name), before[name]) for name in before)
    assert metrics["nonfinite_steps"] == metrics["steps"] == 2
    assert "total_loss" not in metrics
    assert trainer.alternator.get_stats()["sasrec_skipped_steps"] == (2 if loss_at_hand else 0)
    trainer.train_step(loader.batch(0, 0))
    assert not equal(bits(trainer, "sasrec"), before["sasrec"])
    assert {int(entry["step"]) for entry in trainer._optimizers["sasrec"].state.values()} == {3}


def test_too_many_in_a_row_stop_the_run_with_a_clear_error(make_trainer, batch_stream, monkeypatch):
    trainer = make_trainer(max_nonfinite_losses=4)
    nan_at(monkeypatch, {1, 2, 3, *range(5, 20)}, trainer)
    with pytest.raises(
        NonFiniteError, match=r"got nan in the last 4 steps \(to step 9, joint_finetune, training sasrec"
    ):
        train(trainer, batch_stream(0, 20))
    assert trainer.step == 10  # known one step late
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_dropout_is_a_function_of_seed_and_step_and_leaves_the_callers_randomness_alone(make_trainer, loader):
    def step_once(seed, offset, disturb):
        trainer = make_trainer(seed=seed)
        trainer.step = offset
        torch.manual_seed(disturb)
        drawn = torch.rand(1)
        torch.manual_seed(disturb)
        trainer.train_step(loader.batch(0, 0))
        assert torch.equal(torch.rand(1), drawn)
        return bits(trainer, "sasrec")

    first = step_once(0, 0, 1)
    assert equal(first, step_once(0, 0, 2))
    assert not equal(first, step_once(0, 1, 1))
    assert not equal(first, step_once(1, 0, 1))


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
    assert len(calls) == 2 * len(list(targets))


def test_a_constant_scorer_gets_nothing(make_trainer, targets):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.sasrec.item_embedding.weight.zero_()
    assert trainer.evaluate(targets, k_list=[10], scorer="sasrec")["hit@10"] == 0


def test_scores_that_are_not_finite_are_an_error(make_trainer, targets):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.sasrec.item_embedding.weight[3] = torch.nan
    with pytest.raises(NonFiniteError, match="scores must be finite"):
        trainer.rank(targets)


def test_evaluation_changes_neither_modes_nor_training(make_trainer, batch_stream, targets):
    first, second = make_trainer(rule=Cycle(3)), make_trainer(rule=Cycle(3))
    for batch in batch_stream(0, 8):
        first.train_step(batch)
        second.train_step(batch)
        first.evaluate(targets)
        second.model.eval()
    assert equal(first.model.state_dict(), second.model.state_dict())
    active, frozen = first.alternator.active, {"sasrec": "retriever", "retriever": "sasrec"}[first.alternator.active]
    assert getattr(first.model, active).training
    assert not getattr(first.model, frozen).training


@pytest.mark.parametrize("sasrec_loss", ["ce", "bce"])
@pytest.mark.parametrize("fusion", ["logit", "weighted"])
@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_every_combination_learns(make_trainer, loader, sasrec_loss, fusion, joint_loss):
    trainer = make_trainer(
        fusion=fusion, sasrec_loss=sasrec_loss, joint_loss=joint_loss, sasrec_lr=5e-3, retriever_lr=5e-3
    )
    trainer.set_training_stage("end_to_end", num_steps=10 * len(loader))
    losses = [trainer.train_epoch(loader, epoch)["total_loss"] for epoch in range(10)]
    assert losses[-1] < 0.97 * losses[0]


def test_bf16_trains(make_trainer, loader):
    trainer = make_trainer(bf16=True, sasrec_lr=5e-3, retriever_lr=5e-3)
    trainer.set_training_stage("end_to_end")
    losses = [trainer.train_epoch(loader, epoch)["total_loss"] for epoch in range(6)]
    assert losses[-1] < 0.97 * losses[0]
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_a_switch_is_logged_once(make_trainer, batch_stream, caplog):
    with caplog.at_level(logging.INFO, logger="alternator"):
        train(make_trainer(rule=Cycle(2)), batch_stream(0, 4))
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 2", "step 4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint_loss": "both"}, r"unknown joint_loss 'both'; expected one of \('separate', 'fused'\)"),
        ({"sasrec_loss": "hinge"}, r"unknown sasrec_loss 'hinge'; expected one of \('ce', 'sampled'"),
        ({"sasrec_lr": 0}, "sasrec_lr must be a finite number above 0, got 0"),
        ({"max_nonfinite_losses": 0}, "max_nonfinite_losses must be an integer of at least 1, got 0"),
        ({"rule": Cycle(2), "use_adaptive_alternating": False}, "rule must be left out when use_adaptive_alternating"),
    ],
)
def test_settings_out_of_range_are_refused(make_trainer, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(**settings)


def test_fused_needs_a_fusion_that_passes_gradients():
    check_joint_loss("fused", "weighted")
    check_joint_loss("separate", "rank")
    with pytest.raises(
        ConfigurationError, match=r"joint_loss='fused' needs a fusion that passes gradients.*got 'rank'"
    ):
        check_joint_loss("fused", "rank")


def test_a_device_that_is_not_there_is_refused(make_model):
    with pytest.raises(ConfigurationError, match="device must be auto, cpu, cuda or cuda:N, got 'quantum'"):
        JointTrainer(make_model(), device="quantum")


def test_an_empty_loader_cannot_be_ranked(make_trainer):
    with pytest.raises(ValueError, match="evaluation needs at least one batch"):
        make_trainer().rank(())


def test_the_last_batch_may_hold_rows_that_only_fill_up(make_trainer, split):
    trainer = make_trainer()
    whole = EvaluationBatches(split.test, split.num_items, max_seq_len=8, batch_size=len(split.test))
    parts = EvaluationBatches(split.test, split.num_items, max_seq_len=8, batch_size=7)
    np.testing.assert_array_equal(trainer.rank(whole), trainer.rank(parts))
