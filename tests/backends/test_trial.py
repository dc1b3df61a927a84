"""A Trial schedule: candidates from one snapshot, all that training changes undone to the bit, charged, and resumed."""

import numpy as np
import pytest

from alternator import Cycle, Trial
from tests.backends.harness import train
from ur4rec.errors import CheckpointError, ConfigurationError
from ur4rec.evaluation.metrics import smooth_ranks
from ur4rec.schedule.stages import MODULES
from ur4rec.schedule.trial_probe import STAYS, UNDONE, WINS
from ur4rec.training.checkpoint import FROZEN, load_checkpoint, save_checkpoint

RULE = Trial(candidates=((0,), (1, 2, 2), (2,)), costs=(1.0, 0.6, 0.5), steps=3, start=3, hold=12, halvings=9, groups=4)
STRATEGIES = {"use_memory_bank": True, "memory_bank_size": 24, "use_uncertainty_weighting": True, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def probe(targets):
    return next(iter(targets))


def arrays_of(trainer, folder):
    trainer.save_checkpoint(folder)
    saved = load_checkpoint(folder)
    return {name: each for name, each in {**saved.weights, **saved.moments}.items() if not name.startswith("trial.")}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


def test_what_was_tried_leaves_no_trace(make_trainer, batch_stream, probe, tmp_path):
    """Weights, moments, averages, memory bank and the uncertainty's weights, after each candidate but the incumbent."""
    trainer = make_trainer(rule=RULE, probe=probe, sasrec_lr=3e-2, **STRATEGIES)
    trainer.set_training_stage("joint_finetune", num_steps=60)
    train(trainer, batch_stream(0, 3))
    start, undone = arrays_of(trainer, tmp_path / "start"), []
    for number, batch in enumerate(batch_stream(3, 16)):
        trainer._measuring.before_step()
        if trainer.alternator.rule_state.returns == 1:
            undone.append(trainer.step)
            assert_same(arrays_of(trainer, tmp_path / f"{number}"), start)
        trainer.train_step(batch)
    assert undone == [9, 15]
    assert [(each.first, each.step, each.candidate, each.outcome) for each in trainer.attempts[:3]] == [
        (4, 9, "sasrec + 2 retriever", UNDONE),
        (10, 15, "retriever", UNDONE),
        (16, 18, "both", STAYS),
    ]
    assert trainer.num_probe_forwards == 3 * len(MODULES)


def test_the_held_out_losses_are_those_of_the_model_as_it_is(make_trainer, batch_stream, probe):
    trainer = make_trainer(rule=RULE, probe=probe, sasrec_lr=3e-2)
    trainer.set_training_stage("joint_finetune", num_steps=60)
    train(trainer, batch_stream(0, 9))
    given = probe.targets_B, *probe.seen
    expected = np.log2(smooth_ranks(trainer.score(probe.items_BL), *given)).reshape(4, -1).mean(1)
    trainer._measuring.before_step()
    np.testing.assert_allclose(trainer.alternator.loss_history("both"), expected, rtol=1e-5)


def test_a_winner_trains_on_from_where_it_ended(make_trainer, batch_stream, probe):
    """The less SASRec has learnt the better, so that whatever trains it loses."""
    rule = Trial(candidates=((0,), (2,)), costs=RULE.costs, steps=3, start=1, hold=4, halvings=9, groups=4)
    trainer = make_trainer(rule=rule, probe=probe)
    trainer.set_training_stage("joint_finetune", num_steps=60)
    before_BI = trainer.score(probe.items_BL, "sasrec")
    trainer._measuring._measure = lambda: abs(trainer.score(probe.items_BL, "sasrec") - before_BI).mean(axis=1)
    decisions = train(trainer, batch_stream(0, 16))
    assert [each.outcome for each in trainer.attempts[:3]] == [UNDONE, STAYS, WINS]
    assert trainer.attempts[2].candidate == "retriever"
    assert decisions[10].explain().startswith("step 11: both → retriever (a candidate is better:")


@pytest.mark.parametrize("stop", [5, 33])  # in the first attempt; and where the last challenger is kept, too
def test_it_resumes_exactly_in_the_middle_of_a_trial(make_trainer, batch_stream, probe, tmp_path, stop):
    whole, first, second = (make_trainer(rule=RULE, probe=probe, retriever_lr=3e-2, **STRATEGIES) for _ in range(3))
    for trainer in (whole, first):
        trainer.set_training_stage("joint_finetune", num_steps=60)
    expected = train(whole, batch_stream(0, 40))
    train(first, batch_stream(0, stop))
    before = arrays_of(first, tmp_path / "checkpoint")
    assert_same(arrays_of(first, tmp_path / "again"), before)  # saving has changed nothing
    second.load_checkpoint(tmp_path / "checkpoint")
    assert train(second, batch_stream(stop, 40 - stop)) == expected[stop:]
    assert_same(arrays_of(second, tmp_path / "second"), arrays_of(whole, tmp_path / "whole"))
    assert repr(second.attempts) == repr(whole.attempts[len(first.attempts) :])  # a verdict has no loss: NaN


def test_a_checkpoint_keeps_a_snapshot_while_a_trial_is_under_way(make_trainer, batch_stream, probe, tmp_path):
    trainer = make_trainer(rule=RULE, probe=probe)
    trainer.set_training_stage("joint_finetune", num_steps=60)
    train(trainer, batch_stream(0, 3))
    trainer.save_checkpoint(tmp_path / "between")
    start = load_checkpoint(tmp_path / "between")
    assert {name for name in start.moments if "trial." in name} == {"trial.since"}
    train(trainer, batch_stream(3, 2))
    trainer.save_checkpoint(tmp_path / "within")
    saved = load_checkpoint(tmp_path / "within")
    kept = {name.removeprefix("trial.start."): each for name, each in saved.moments.items() if "trial.start" in name}
    expected = {f"weights.{name}": each for name, each in start.weights.items() if name not in FROZEN}
    expected |= {f"moments.{name}": each for name, each in start.moments.items() if name != "trial.since"}
    assert_same(kept, expected)
    other = dict(saved.moments)
    other["trial.start.weights.sasrec.final_norm.bias"] = np.zeros(3, np.float32)
    del saved.state["sha256"]
    save_checkpoint(tmp_path / "damaged", saved._replace(moments=other))
    with pytest.raises(CheckpointError, match=r"sasrec\.final_norm\.bias"):
        make_trainer(rule=RULE, probe=probe).load_checkpoint(tmp_path / "damaged")


def test_candidates_and_costs_are_those_of_the_model_by_default(make_trainer, probe):
    trainer = make_trainer(rule=Trial(groups=4), probe=probe)
    assert trainer.alternator.modules == ("both", "sasrec", "retriever")
    assert trainer.alternator.rule.costs == (1.0, 0.65, 0.7)
    assert trainer.alternator.rule.candidates == ((0,), (1,) * 8 + (2,), (1,) + (2,) * 8)
    assert make_trainer(rule=Cycle(1)).attempts == ()


def test_what_cannot_be_measured_is_refused(make_trainer, probe):
    with pytest.raises(ConfigurationError, match="a Trial rule needs probe=, a batch of at least 4 held-out targets"):
        make_trainer(rule=RULE)
    with pytest.raises(ConfigurationError, match="a Trial rule needs a fusion that needs no whole ranking"):
        make_trainer(rule=RULE, probe=probe, fusion="rank", joint_loss="separate")


@pytest.mark.parametrize("stop", [5, 9, 20])  # in an attempt that trains the encoder, after it, and later
def test_a_trial_undoes_what_a_text_encoder_learned(make_encoder_trainer, batch_stream, probe, tmp_path, stop):
    rule = Trial(
        candidates=((0,), (0, 6), (6,)),
        costs=(1.0, 0.6, 0.5, 1, 1, 1, 2),
        steps=4,
        start=3,
        hold=12,
        halvings=9,
        groups=4,
    )
    whole, first, second = (make_encoder_trainer(rule=rule, probe=probe) for _ in range(3))
    for trainer in (whole, first):
        trainer.set_training_stage("joint_finetune", num_steps=60)
    expected = train(whole, batch_stream(0, 30))
    assert {"both", "all"} <= {each.active for each in expected}
    train(first, batch_stream(0, stop))
    before = arrays_of(first, tmp_path / "checkpoint")
    assert_same(arrays_of(first, tmp_path / "again"), before)
    second.load_checkpoint(tmp_path / "checkpoint")
    assert train(second, batch_stream(stop, 30 - stop)) == expected[stop:]
    assert_same(arrays_of(second, tmp_path / "second"), arrays_of(whole, tmp_path / "whole"))
