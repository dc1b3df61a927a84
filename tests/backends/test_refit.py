"""A refit: the chosen model's steps again, on validation interactions too, with its learning rates and its turns."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from alternator import Reason
from tests.backends.finished import outcome, spoil_later_epochs
from ur4rec.config import SCORERS
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.runs.finished import convert_run, default_checkpoint
from ur4rec.runs.ranking import Ranking
from ur4rec.runs.refit import Refit
from ur4rec.runs.run import Stopped, TrainingRun
from ur4rec.schedule.trial_probe import STAYS, UNDONE, WINS
from ur4rec.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("no_picture")

TRIAL = (
    "trial,candidates=((0,),(1,2,2),(2,)),costs=(1.0,0.6,0.5),steps=2,start=3,hold=6,halvings=9,groups=4,confidence=0.6"
)
RATES = {"sasrec_lr": 3e-2, "retriever_lr": 1e-2}
TRIED = {
    **{"schedule": TRIAL, "epochs": {"pretrain_sasrec": 1, "joint_finetune": 30}},
    **{"eval_users": None, "trainer": RATES},
}


def watch_rates(run):
    """A list that gets what trained in each step, and SASRec's learning rate."""
    seen, update = [], run.trainer._update

    def watched(batch, active, rates):
        seen.append((active, rates["sasrec"]))
        return update(batch, active, rates)

    run.trainer._update = watched
    return seen


def trained(run):
    """A run that has ended, and what `watch_rates` has seen."""
    seen = watch_rates(run)
    run.train()
    return run, seen


def test_it_trains_the_steps_of_the_chosen_model_and_is_tested_where_it_was_chosen(
    make_run, tmp_path, monkeypatch, backend
):
    with monkeypatch.context() as context:
        spoil_later_epochs(run := make_run(tmp_path, early_stopping=2, trainer=RATES), context, first=1)
        run, expected = trained(run)
    assert (run.results["SASRec alone"].epoch, run.results["fused"].epoch) == (0, 3)
    monkeypatch.setattr(TrainingRun, "_validate", None)  # so that a validation would fail
    refit, seen = trained(Refit(run, progress=False))
    assert [row["stage"] for row in run.epochs] == ["pretrain_sasrec"] * 3 + ["joint_finetune"] * 3
    assert [(row["stage"], row["step"]) for row in refit.epochs] == [("pretrain_sasrec", 4), ("joint_finetune", 8)]
    assert seen == [*expected[:4], *expected[12:16]]  # the cosine is that of the whole stage
    assert not any(row["validation"] for row in refit.epochs)
    assert {name: result.epoch for name, result in refit.results.items()} == {
        **{"SASRec alone": 0, "SASRec in it": 1, "retriever in it": 1, "fused": 1}
    }
    scorer = backend.package.Scorer(backend.package.load_model(run.directory.require_checkpoint("refit")), device="cpu")
    ranks = Ranking(run.prepared.split.test, run.prepared.model).ranks(scorer, SCORERS)
    assert refit.results["fused"].test_ranks.tolist() == ranks["fused"].tolist()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["refit"]["fused"]["test"] == refit.results["fused"].test != metrics["final"]["fused"]["test"]
    assert metrics["refit"]["fused"]["name"] == "fused, refit"
    assert refit.explain() == (
        "Refit on training and validation interactions, as long as the chosen model: pretrain_sasrec to step 4 of 16, "
        "joint_finetune to step 4 of 12."
    )


def test_it_trains_on_what_validated_and_not_on_what_is_tested(make_run, tmp_path):
    run, _ = trained(make_run(tmp_path, epochs={"pretrain_sasrec": 2}))
    refit = Refit(run, progress=False)
    split = run.prepared.split
    added_I = np.bincount(split.validation.items_T, minlength=split.num_items)
    np.testing.assert_array_equal(refit.prepared.train.item_counts, run.prepared.train.item_counts + added_I)
    for sequence, history, item in zip(
        refit.prepared.split.train, split.test.histories, split.test.items_T, strict=True
    ):
        assert sequence.tolist() == history.tolist()
        assert item not in sequence
    targets = [batch.targets_BL for batch in refit.prepared.train]
    assert len(targets) == len(run.prepared.train)
    assert refit.prepared.split.hash != split.hash


def test_it_is_stopped_anywhere_and_resumed_to_the_bit(make_run, tmp_path, monkeypatch):
    settings = {"epochs": {"pretrain_sasrec": 3, "joint_finetune": 2}, "refit": True}
    run, _ = trained(make_run(tmp_path / "whole", **settings))
    whole, asked = Refit(run, progress=False), itertools.count()
    whole.train(stop=lambda: bool(next(asked) < 0))
    num_asked = next(asked)
    assert run.directory.chosen() == "refit"
    for number in (2, num_asked // 2, num_asked - 2):
        path = tmp_path / f"stopped-{number}"
        run, _ = trained(make_run(path, **settings))
        calls = itertools.count()
        with pytest.raises(Stopped):
            Refit(run, progress=False).train(stop=lambda calls=calls, number=number: next(calls) >= number)
        assert run.directory.chosen() == "best"  # until it has ended
        again = make_run(path, **settings)
        again.resume()
        again.train()
        again.release()
        refit = Refit(again, progress=False)
        assert refit.resumed_from == path
        refit.resume()
        refit.train()
        assert outcome(refit) == outcome(whole)


def test_what_payoffs_decided_is_replayed(make_run, tmp_path):
    """Without held-out targets: nothing is measured again."""
    schedule = "payoff,costs=(1.0,0.2,0.9),groups=4,share=0.9,confirmations=1,min_steps=4,confidence=0.6,retry_after=5"
    settings = {"schedule": schedule, "epochs": {"joint_finetune": 10}, "eval_users": None, "trainer": RATES}
    run, expected = trained(make_run(tmp_path, **settings))
    assert {"both"} < {active for active, _ in expected}
    refit, seen = trained(Refit(run, progress=False))
    assert seen == expected[: len(seen)]
    assert len(seen) == run.epochs[run.results["fused"].epoch]["step"]
    assert refit.trainer.num_probe_forwards == 0
    assert not refit.logs.payoffs.records
    assert refit.explain().endswith("; who trained was replayed.")


class Replayed:
    """The batches of some steps of a run, in epochs of a refit's lengths."""

    def __init__(self, run, refit):
        train, starts = run.prepared.train, refit._stages.values()
        steps = [each.first + int(position) for each in starts for position in each.positions_S]
        self._batches = [train.batch(*divmod(step, len(train))) for step in steps]
        self._lengths, self._firsts = refit.prepared.train._lengths, refit.prepared.train._firsts
        self.usual_targets, self.batch_size, self.epoch = train.usual_targets, train.batch_size, 0

    def __len__(self):
        return self._lengths[self.epoch]

    def __iter__(self):
        first = self._firsts[self.epoch]
        return iter(self._batches[first : first + len(self)])

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("last", [30, 5])  # the chosen epoch: the last one, and one in the middle of a trial
def test_the_steps_of_a_trial_that_are_replayed_made_the_chosen_model(make_run, tmp_path, monkeypatch, last):
    """On the batches of the run, they make it again to the bit."""
    model = {"sasrec_dropout": 0.0, "retriever_dropout": 0.0}  # whose masks go by the number of a step
    validate = TrainingRun._validate

    def chosen(self, stage):
        quality = float(len(self.epochs) == last)
        return {scorer: {**each, "ndcg@10": quality} for scorer, each in validate(self, stage).items()}

    monkeypatch.setattr(TrainingRun, "_validate", chosen)
    run, expected = trained(make_run(tmp_path, model=model, **TRIED))
    assert Reason.HALVED in {record.reason for record in run.logs.decisions.records}
    assert {attempt.outcome for attempt in run.logs.trials.records} == {UNDONE, STAYS, WINS}
    assert run.results["fused"].epoch == last
    refit = Refit(run, progress=False)
    (steps,) = (each for name, each in refit._stages.items() if name == "joint_finetune")
    assert len(steps.positions_S) < steps.positions_S[-1] < run.epochs[last]["step"]
    refit.prepared = replace(refit.prepared, train=Replayed(run, refit))
    refit, seen = trained(refit)
    replayed = [*range(4), *(4 + steps.positions_S)]
    assert seen == [expected[step] for step in replayed]
    ours, theirs = (load_checkpoint(each) for each in map(run.directory.require_checkpoint, ("refit", "best")))
    assert ours.weights.keys() == theirs.weights.keys()
    assert [name for name, each in theirs.weights.items() if not np.array_equal(each, ours.weights[name])] == []
    assert "that were undone; who trained was replayed" in refit.explain()


def test_a_replayed_trial_is_resumed_with_its_learning_rates(make_run, tmp_path):
    run, _ = trained(make_run(tmp_path, **TRIED))
    whole, expected = trained(Refit(run, progress=False))
    whole.directory._remove_all()
    stopped, calls = Refit(run, progress=False), itertools.count()
    seen = watch_rates(stopped)
    with pytest.raises(Stopped):
        stopped.train(stop=lambda: next(calls) > 3 * len(run.prepared.train))
    again = Refit(run, progress=False)
    again.resume()
    _, further = trained(again)
    assert seen + further == expected


def test_what_cannot_be_refitted_is_refused_before_anything_trains(make_run, tmp_path, backend):
    run = make_run(tmp_path / "unfinished")
    with pytest.raises(ConfigurationError, match=r"must have ended before its refit, got one in pretrain_sasrec"):
        Refit(run)
    epochs = {"joint_finetune": 1, "pretrain_sasrec": 1}
    with pytest.raises(ConfigurationError, match=r"needs the joint stages last, got pretrain_sasrec after joint"):
        make_run(tmp_path / "order", refit=True, **{**TRIED, "epochs": epochs})
    with pytest.raises(DataError, match="has no refit checkpoint yet; train it with --resume and --refit"):
        run.directory.require_checkpoint("refit")


def test_a_converted_run_has_its_refit(make_run, tmp_path, backend):
    run, _ = trained(make_run(tmp_path / "run", epochs={"pretrain_sasrec": 1}))
    trained(Refit(run, progress=False))
    copy = convert_run(run.directory, backend.name, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "refit" / "config.json").read_text())["backend"] == backend.name
    assert copy.chosen() == default_checkpoint(copy, "test") == "refit"
    assert default_checkpoint(copy, "validation") == copy.chosen("best") == "best"
    path = copy.require_checkpoint("refit")
    assert path.is_relative_to(tmp_path / "copy" / "refit")
