"""The trainer: stages, schedules, freezing, what a frozen module costs, metrics."""

import logging
import math
from functools import partial

import numpy as np
import pytest
from tqdm import tqdm

from alternator import Cycle, Plateau
from tests.backends.harness import bits, changed, equal, train, updates
from ur4rec.config import check_joint_loss
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches
from ur4rec.errors import ConfigurationError, NonFiniteError, UnknownNameError
from ur4rec.evaluation.metrics import rank_batches, summarise, target_ranks
from ur4rec.schedule.stages import MODULES

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
@pytest.mark.parametrize("module", MODULES)
def test_pretraining_trains_one_module_alone(make_trainer, batch_stream, joint_loss, module):
    trainer = make_trainer(joint_loss=joint_loss)
    other = "retriever" if module == "sasrec" else "sasrec"
    before, others = bits(trainer, module), bits(trainer, other, "fusion")
    trainer.set_training_stage(f"pretrain_{module}", num_steps=5)
    train(trainer, batch_stream(0, 5))
    assert not equal(bits(trainer, module), before)
    assert equal(bits(trainer, other, "fusion"), others)


def test_a_module_trains_in_later_stages_after_it_was_frozen(make_trainer, batch_stream):
    trainer = make_trainer(use_adaptive_alternating=False)
    for stage in STAGES:
        trainer.set_training_stage(stage, num_steps=4)
        before = {name: bits(trainer, name) for name in MODULES}
        train(trainer, batch_stream(0, 4))
        trained = {name for name in before if not equal(bits(trainer, name), before[name])}
        assert trained == {"pretrain_sasrec": {"sasrec"}, "pretrain_retriever": {"retriever"}}.get(stage, set(before))
    # optimizer state lives through all stages
    assert updates(trainer) == {"sasrec": {10}, "retriever": {10}, "fusion": {8}}


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
    assert all(set(r.losses) == ({r.active} if joint_loss == "separate" else set(MODULES)) for r in records)
    train(trainer, batch_stream(0, 10))
    stats = trainer.alternator.get_stats()
    assert stats["sasrec_training_ratio"] == stats["retriever_training_ratio"] == 0.5


def test_the_schedule_starts_anew_on_entering_joint_finetune(make_trainer, batch_stream):
    trainer = make_trainer(rule=Cycle(3))
    assert trainer.adaptive_alternating is trainer.alternator
    trainer.set_training_stage("joint_finetune")
    train(trainer, batch_stream(0, 4))
    assert trainer.adaptive_alternating.get_stats()["total_steps"] == 4
    assert trainer.alternator.active == "retriever"
    trainer.set_training_stage("end_to_end")
    assert trainer.alternator.active == "both"
    trainer.set_training_stage("joint_finetune")
    assert trainer.adaptive_alternating is trainer.alternator
    assert trainer.alternator.get_stats()["total_steps"] == 0
    assert trainer.alternator.active == "sasrec"


def test_the_original_rule_is_the_default_and_is_fed_raw_losses(make_trainer, batch_stream):
    records = []
    settings = {"adaptive_switch_threshold": 0.02, "adaptive_min_steps": 3}
    trainer = make_trainer(joint_loss="separate", sasrec_loss_weight=7.0, on_step=records.append, **settings)
    assert trainer.alternator.rule == Plateau(threshold=0.02, min_steps=3)
    train(trainer, batch_stream(0, 8))
    trainer.set_training_stage("joint_finetune")
    assert all(set(record.losses) == {"sasrec"} for record in records)
    assert all(record.losses["sasrec"] < 5 for record in records)  # log 60 is 4.1: not weighted by 7


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


def rates_of_steps(trainer, loader, num_steps):
    """The learning rates that epochs of one step report."""
    batches = list(loader)
    epochs = [trainer.train_epoch(batches * 2, start=step, max_steps=1) for step in range(num_steps)]
    return {name: [metrics[f"{name}_lr"] for metrics in epochs] for name in MODULES}


def test_the_learning_rate_is_a_function_of_progress_whoever_is_active(make_trainer, loader):
    trainer = make_trainer(rule=Cycle((1, 3)), sasrec_lr=1e-2, retriever_lr=1e-3, warmup=0.25)
    trainer.set_training_stage("joint_finetune", num_steps=8)
    rates = rates_of_steps(trainer, loader, 8)
    factors = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates["sasrec"] == pytest.approx([1e-2 * factor for factor in factors])
    assert rates["retriever"] == pytest.approx([1e-3 * factor for factor in factors])


def test_without_a_length_the_learning_rate_is_constant_after_the_warm_up(make_trainer, loader):
    trainer = make_trainer(warmup_steps=2, sasrec_lr=1e-2)
    trainer.set_training_stage("pretrain_sasrec")
    assert rates_of_steps(trainer, loader, 4)["sasrec"] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])


def test_an_update_is_as_long_as_the_learning_rate_of_its_module(make_trainer, loader):
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


def test_joint_stages_have_a_share_of_the_rates_and_no_other_stage_has(make_trainer, batch_stream):
    """As if the rates themselves had been lower there, to the bit: a quarter has the same digits."""
    found = []
    for scale, peak in ((0.25, 1.0), (1.0, 0.25)):
        found.append([])
        for stage in STAGES:
            trainer = make_trainer(sasrec_lr=1e-2 * peak, retriever_lr=1e-3 * peak, joint_lr_scale=scale)
            trainer.set_training_stage(stage, num_steps=8)
            train(trainer, batch_stream(0, 3))
            found[-1].append(bits(trainer))
    assert [equal(*pair) for pair in zip(*found, strict=True)] == [False, False, True, True]


def test_an_epoch_returns_its_metrics(make_trainer, loader):
    records = []
    trainer = make_trainer(rule=Cycle(2), on_step=records.append)
    trainer.set_training_stage("joint_finetune", num_steps=100)
    first = trainer.train_epoch(loader, epoch=0)
    assert len(records) == len(loader) == first["steps"] == first["sasrec_steps"] + first["retriever_steps"]
    assert first["both_steps"] == first["nonfinite_steps"] == 0
    for name in MODULES:
        assert first[f"{name}_loss"] == pytest.approx(np.mean([record.losses[name] for record in records]))
    assert 0 < first["total_loss"] < 10
    assert first["adaptive_switch_count"] == first["switches"] == len(loader) // 2
    second = trainer.train_epoch(loader, epoch=1)
    assert second["adaptive_switch_count"] == trainer.adaptive_alternating.get_stats()["switch_count"]
    assert second["switches"] == second["adaptive_switch_count"] - first["switches"]
    assert second["sasrec_lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * (2 * len(loader) - 6) / 95)))


def test_an_epoch_may_start_late_and_end_early(make_trainer, loader):
    trainer, other, steps = (make_trainer() for _ in range(3))
    batches = list(loader)
    assert trainer.train_epoch(batches, epoch=2, start=1, max_steps=2)["steps"] == 2
    for start in (1, 2):
        other.train_epoch(batches, epoch=2, start=start, max_steps=1)
    train(steps, batches[1:3])
    assert equal(bits(trainer), bits(other))
    assert equal(bits(trainer), bits(steps))


def test_the_bar_shows_losses_rates_who_trains_and_switches(make_trainer, loader, capsys, monkeypatch):
    monkeypatch.setattr("ur4rec.training.step_log.tqdm", partial(tqdm, mininterval=0))  # every step, however fast
    trainer = make_trainer(progress=True, rule=Cycle(1))
    trainer.train_epoch(loader, epoch=3)
    shown = capsys.readouterr().err
    for part in ("epoch 3", "loss=", "lr_s=", "lr_r=", "train=SAS", "train=RET", f"switch={len(loader)}"):
        assert part in shown


def test_a_frozen_catalogue_is_computed_once_a_tenure_and_changes_nothing(backend, make_trainer, batch_stream, targets):
    def run(*, cached):
        trainer = make_trainer(rule=Cycle((6, 2)))
        computed, ranks = backend.watch_catalogue(trainer), []
        for batch in batch_stream(0, 16):
            if not cached:
                backend.forget_catalogue(trainer)
            trainer.train_step(batch)
            ranks.append(trainer.rank(targets) if trainer.step % 4 == 0 else None)
        return bits(trainer), computed, ranks

    found, computed, ranks = run(cached=True)
    expected, all_computed, all_ranks = run(cached=False)
    # before the first tenure of SASRec, before the second, and to rank after the last step
    assert computed == [0, 8, 16]
    assert len(all_computed) > len(computed)
    assert equal(found, expected)
    for first, second in zip(ranks, all_ranks, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("loss_at_hand", [True, False])
def test_a_loss_that_is_not_finite_skips_the_update_and_is_counted(
    backend, make_trainer, loader, monkeypatch, loss_at_hand
):
    trainer = make_trainer(rule=Cycle(100))
    if not loss_at_hand:
        backend.act_like_an_accelerator(trainer)
    backend.spoil(trainer, monkeypatch, {2, 3})
    batches = list(loader)
    train(trainer, batches[:2])
    before = bits(trainer)
    metrics = trainer.train_epoch(batches, start=2, max_steps=2)
    assert equal(bits(trainer), before)
    assert metrics["nonfinite_steps"] == metrics["steps"] == 2
    assert "total_loss" not in metrics
    assert trainer.alternator.get_stats()["sasrec_skipped_steps"] == (2 if loss_at_hand else 0)
    trainer.train_step(batches[0])
    assert changed(before, bits(trainer)) >= {"sasrec.item_embedding.weight", "fusion.weights"}
    assert updates(trainer, "sasrec") == {"sasrec": {3}}


def test_too_many_in_a_row_stop_the_run_with_a_clear_error(backend, make_trainer, batch_stream, monkeypatch):
    trainer = make_trainer(max_nonfinite_losses=4)
    backend.spoil(trainer, monkeypatch, {1, 2, 3, *range(5, 20)})
    with pytest.raises(
        NonFiniteError, match=r"got nan in the last 4 steps \(to step 9, joint_finetune, training sasrec"
    ):
        train(trainer, batch_stream(0, 20))
    assert trainer.step == 10  # known one step late
    assert all(np.isfinite(array).all() for array in backend.weights(trainer.model).values())


def test_dropout_is_a_function_of_seed_and_step(make_trainer, loader):
    def step_once(seed, offset):
        trainer = make_trainer(seed=seed)
        trainer.step = offset
        trainer.train_step(loader.batch(0, 0))
        return bits(trainer, "sasrec")

    first = step_once(0, 0)
    assert equal(first, step_once(0, 0))
    assert not equal(first, step_once(0, 1))
    assert not equal(first, step_once(1, 0))


@pytest.mark.parametrize("scorer", ["fused", "sasrec", "retriever"])
def test_ranks_are_those_of_the_reference(make_trainer, targets, loader, scorer):
    trainer = make_trainer()
    trainer.train_epoch(loader)
    expected = rank_batches(lambda batch: trainer.score(batch.items_BL, scorer), targets)
    np.testing.assert_array_equal(trainer.rank(targets, scorer=scorer), expected)
    assert trainer.evaluate(targets, k_list=[5, 10], scorer=scorer) == summarise(expected, [5, 10])


@pytest.mark.parametrize(
    ("spoilt", "is_finite"), [(None, True), ((1, 4), True), ((3, 5), True), ((0, 2), False), ((1, 3), False)]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_is_ranked_as_by_the_reference(backend, spoilt, is_finite, bad):
    scores_BI = np.random.default_rng(0).integers(4, size=(4, 6)).astype(np.float32)  # with ties
    rows, items = np.array([0, 0, 1, 1, 2, 4, 4], np.int32), np.array([1, 1, 3, 4, 2, 0, 0], np.int32)
    targets_B = np.array([0, 3, 2, 0], np.int32)  # that of row 1 is among the seen items; row 3 only fills up
    batch = EvaluationBatch(scores_BI, targets_B, rows, items, 3, 5)
    expected = target_ranks(scores_BI[:3], targets_B[:3], rows[:5], items[:5])
    if spoilt is not None:
        scores_BI[spoilt] = bad
    ranks, finite = backend.part("slices").rank_batch(backend.array(scores_BI), batch)
    assert bool(finite) == is_finite
    if is_finite:
        assert np.asarray(ranks)[:3].tolist() == expected.tolist()


def test_all_scorers_rank_in_one_pass_of_each_module(backend, make_trainer, targets, monkeypatch):
    trainer = make_trainer(clip_norm=0.9)  # for which nothing is compiled yet
    expected = {scorer: trainer.rank(targets, scorer) for scorer in ("sasrec", "retriever", "fused")}
    calls, model = [], trainer.model
    for module in (type(model.sasrec), type(model.retriever)):
        monkeypatch.setattr(module, "score", lambda *given, score=module.score: calls.append(1) or score(*given))
    found = trainer.rank_all(targets)
    assert list(found) == ["fused", "sasrec", "retriever"]
    for scorer, ranks_T in expected.items():
        np.testing.assert_array_equal(found[scorer], ranks_T)
    assert len(calls) == 2 * backend.num_scorings(targets)


def trainer_with_items(backend, make_model, make_trainer, value):
    """A trainer of a model whose item vectors are this value throughout."""
    model = make_model()
    shape = backend.weights(model)["sasrec.item_embedding.weight"].shape
    backend.set_weights(model, {"sasrec.item_embedding.weight": np.full(shape, value)})
    return make_trainer(model=model)


def test_a_constant_scorer_gets_nothing(backend, make_model, make_trainer, targets):
    trainer = trainer_with_items(backend, make_model, make_trainer, 0)
    assert trainer.evaluate(targets, k_list=[10], scorer="sasrec")["hit@10"] == 0


def test_scores_that_are_not_finite_are_an_error(backend, make_model, make_trainer, targets):
    trainer = trainer_with_items(backend, make_model, make_trainer, math.nan)
    with pytest.raises(NonFiniteError, match="scores must be finite"):
        trainer.rank(targets)
    scorer = backend.package.Scorer(trainer.model, device="cpu")
    items_BL = next(iter(targets)).items_BL
    for score in (trainer.score, scorer.score, scorer.scores):
        with pytest.raises(NonFiniteError, match="scores must be finite"):
            score(items_BL)
    assert np.isfinite(scorer.score(items_BL, "retriever")).all()


def test_evaluation_changes_nothing(backend, make_trainer, batch_stream, targets):
    first, second = make_trainer(rule=Cycle(3)), make_trainer(rule=Cycle(3))
    for batch in batch_stream(0, 8):
        first.train_step(batch)
        second.train_step(batch)
        first.evaluate(targets)
        backend.to_inference_mode(second)
    assert equal(bits(first), bits(second))


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
        ({"device": "quantum"}, "device must be auto, cpu, cuda.*, got 'quantum'"),
    ],
)
def test_settings_out_of_range_are_refused(make_trainer, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(**settings)


def test_an_unknown_scorer_is_refused(make_trainer):
    with pytest.raises(UnknownNameError, match="unknown scorer 'both'"):
        make_trainer().score([[1]], "both")


def test_fused_needs_a_fusion_that_passes_gradients(make_trainer):
    check_joint_loss("fused", "weighted")
    check_joint_loss("separate", "rank")
    with pytest.raises(
        ConfigurationError, match=r"joint_loss='fused' needs a fusion that passes gradients.*got 'rank'"
    ):
        make_trainer(fusion="rank", joint_loss="fused")


def test_an_empty_loader_cannot_be_ranked(make_trainer):
    with pytest.raises(ValueError, match="evaluation needs at least one batch"):
        make_trainer().rank(())


def test_the_last_batch_may_hold_rows_that_only_fill_up(make_trainer, split):
    trainer = make_trainer()
    whole = EvaluationBatches(split.test, split.num_items, max_seq_len=8, batch_size=len(split.test))
    parts = EvaluationBatches(split.test, split.num_items, max_seq_len=8, batch_size=7)
    np.testing.assert_array_equal(trainer.rank(whole), trainer.rank(parts))


@pytest.mark.parametrize("sasrec_loss", ["ce", "bce"])
@pytest.mark.parametrize("fusion", ["logit", "weighted"])
@pytest.mark.parametrize("joint_loss", JOINT_LOSSES)
def test_every_combination_learns(make_trainer, loader, sasrec_loss, fusion, joint_loss):
    settings = {"fusion": fusion, "sasrec_loss": sasrec_loss, "joint_loss": joint_loss}
    trainer = make_trainer(**settings, sasrec_lr=5e-3, retriever_lr=5e-3)
    trainer.set_training_stage("end_to_end", num_steps=10 * len(loader))
    losses = [trainer.train_epoch(loader, epoch)["total_loss"] for epoch in range(10)]
    assert losses[-1] < 0.97 * losses[0]
