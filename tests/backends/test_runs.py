"""Validation within a run: what is ranked when, what ends a stage, which epoch is tested; stopped and resumed too."""

import itertools
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest

from tests.backends.finished import outcome, spoil_later_epochs
from ur4rec.config import SCORERS, TrainerConfig
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import summarise
from ur4rec.runs import progress
from ur4rec.runs.plan import TABLE_ROWS
from ur4rec.runs.ranking import Ranking
from ur4rec.runs.run import Stopped, read_resumable
from ur4rec.training.checkpoint import check_settings, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("no_picture")


def test_only_what_a_stage_can_change_is_ranked_where_it_is_due(make_run, tmp_path):
    run = make_run(tmp_path, eval_every=2)
    run.train()
    alone, joint = {"sasrec"}, {*SCORERS}
    assert [set(row["validation"]) for row in run.epochs] == [set(), alone, set(), alone, set(), joint, joint]
    assert list(run.results) == ["popularity", "SASRec alone", "SASRec in it", "retriever in it", "fused"]
    validation = run.prepared.split.validation.sample(30)
    ranks = Ranking(validation, run.prepared.model).ranks(run.trainer, SCORERS)
    found = run.epochs[-1]["validation"]
    assert found == {scorer: summarise(ranks_T) for scorer, ranks_T in ranks.items()}
    assert all(len(result.test_ranks) == len(run.prepared.split.test) for result in run.results.values())


def test_a_stage_ends_early_and_its_best_epoch_is_tested_not_its_last(make_run, tmp_path, monkeypatch, backend):
    run = make_run(tmp_path, early_stopping=2)
    spoil_later_epochs(run, monkeypatch, first=1)
    run.train()
    assert [row["stage"] for row in run.epochs] == ["pretrain_sasrec"] * 3 + ["joint_finetune"] * 3
    assert (run.results["SASRec alone"].epoch, run.results["fused"].epoch) == (0, 3)
    best = backend.package.Scorer(backend.package.load_model(run.directory.require_checkpoint("best")), device="cpu")
    ranks = Ranking(run.prepared.split.test, run.prepared.model).ranks(best, SCORERS)
    for scorer, name in TABLE_ROWS["joint_finetune"][1].items():
        assert run.results[name].test_ranks.tolist() == ranks[scorer].tolist()
        assert run.results[name].validation == run.epochs[3]["validation"][scorer]


def test_the_metrics_count_the_turns_and_switches_of_every_stage(make_run, tmp_path):
    stopped = make_run(tmp_path / "run")
    with pytest.raises(Stopped):
        stopped.train(stop=lambda: stopped.trainer.step == 14)
    run = make_run(tmp_path / "run")
    run.resume()
    run.train()
    found, records = run.directory.read_json("metrics.json")["schedule"], run.logs.decisions.records
    assert [*found] == ["pretrain_sasrec", "joint_finetune"]
    for stage, counts in found.items():
        of_stage = [record for record in records if record.stage == stage]
        assert counts["steps"] == len(of_stage)
        assert counts["turns"] == Counter(record.active for record in of_stage)
        assert counts["switches"] == sum(record.active != record.next for record in of_stage)
        assert counts["nonfinite_steps"] == 0
    assert found["joint_finetune"]["switches"] > 0


def test_a_run_whose_checkpoints_are_gone_is_not_trained_again(make_run, tmp_path):
    run = make_run(tmp_path / "run")
    run.train()
    shutil.rmtree(run.directory.path / "checkpoint")
    before = {path: path.read_bytes() for path in run.directory.files() if path.is_file()}
    for resume in (make_run(tmp_path / "run").resume, partial(read_resumable, run.directory)):
        with pytest.raises(DataError, match="checkpoint must hold the newest checkpoint of a run that has trained"):
            resume()
    assert {path: path.read_bytes() for path in run.directory.files() if path.is_file()} == before


def test_a_stage_begins_with_the_best_model_of_the_one_before(make_run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="ur4rec")
    run = make_run(tmp_path / "run", epochs={"pretrain_sasrec": 3, "joint_finetune": 1}, trainer={"sasrec_lr": 1e-2})
    spoil_later_epochs(run, monkeypatch, first=1)
    begin, found = run.trainer.set_training_stage, {}

    def watched(stage, **settings):
        if run.epochs:
            run.trainer.save_checkpoint(tmp_path / "begun")
            found["begun"] = load_checkpoint(tmp_path / "begun")
            for which in ("best", "latest"):
                found[which] = load_checkpoint(run.directory.require_checkpoint(which))
        begin(stage, **settings)

    monkeypatch.setattr(run.trainer, "set_training_stage", watched)
    run.train()
    assert "going on from epoch 1 of pretrain_sasrec, its best" in caplog.messages
    begun, best, latest = (found[name] for name in ("begun", "best", "latest"))
    assert [each.state["progress"]["step"] for each in (begun, best, latest)] == [12, 4, 12]
    for arrays, expected in zip(begun[:2], best[:2], strict=True):
        assert [name for name in arrays if not np.array_equal(arrays[name], expected[name])] == []
    assert not np.array_equal(
        begun.weights["sasrec.item_embedding.weight"], latest.weights["sasrec.item_embedding.weight"]
    )


def test_a_run_that_is_stopped_anywhere_ends_as_one_that_was_not(make_run, tmp_path, monkeypatch):
    settings = {"early_stopping": 1, "epochs": {"pretrain_sasrec": 3, "end_to_end": 2}}
    whole = make_run(tmp_path / "whole", **settings)
    spoil_later_epochs(whole, monkeypatch, first=1)
    asked = itertools.count()
    whole.train(stop=lambda: bool(next(asked) < 0))
    num_asked = next(asked)
    for number in (2, num_asked // 2, num_asked - 2):  # in an epoch, in the next stage, before the last stage is tested
        path = tmp_path / f"stopped-{number}"
        run, calls = make_run(path, **settings), itertools.count()
        with pytest.raises(Stopped):
            run.train(stop=lambda calls=calls, number=number: next(calls) >= number)
        again = make_run(path, **settings)
        again.resume()
        again.train()
        assert outcome(again) == outcome(whole)


def test_without_a_terminal_every_epoch_says_a_line_and_a_long_one_says_where_it_is(
    make_run, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="ur4rec")
    monkeypatch.setattr(progress, "INTERVAL", -1.0)  # every minute comes at once
    make_run(tmp_path, epochs={"pretrain_sasrec": 2}, eval_every=2).train()
    lines = [line for line in caplog.messages if line.startswith("pretrain_sasrec")]
    steps = [line for line in lines if ", step " in line]
    assert steps[0] == "pretrain_sasrec, epoch 1 of 2, step 1 of 4"
    assert "pretrain_sasrec, epoch 2 of 2, ranking validation targets: batch 0 of 1 done" in lines
    first, second = (line for line in lines if ": loss " in line)
    assert "steps SAS 4" in first
    assert " left" in first
    assert "validation" not in first
    assert "validation NDCG@10" in second
    assert " elapsed" in second
    assert " left" not in second


def test_ranks_are_arrays_of_a_checkpoint_and_those_of_an_earlier_version_are_read(make_run, tmp_path):
    run = make_run(tmp_path)
    run.train()
    latest = run.directory.checkpoint("latest")
    saved = load_checkpoint(latest)
    results = saved.state["metrics"]["results"]
    assert results
    assert not any("test_ranks" in result for result in results.values())
    ranks = {name: saved.moments.pop(f"given.test_ranks.{name}").tolist() for name in results}
    assert ranks == {name: result.test_ranks.tolist() for name, result in run.results.items()}
    for name, result in results.items():
        result["test_ranks"] = ranks[name]
    del saved.state["sha256"]
    save_checkpoint(latest, saved)
    again = make_run(tmp_path)
    again.resume()
    assert {name: result.test_ranks.tolist() for name, result in again.results.items()} == ranks
    del results["popularity"]["test_ranks"]
    save_checkpoint(latest, saved)
    with pytest.raises(DataError, match="its metrics"):
        make_run(tmp_path).resume()


def test_a_run_keeps_which_loss_was_chosen_for_its_catalogue(make_run, tmp_path, monkeypatch):
    few = {"num_negatives": 6, "num_in_batch": 6}
    short = {"epochs": {"pretrain_sasrec": 1, "joint_finetune": 0}, "eval_every": 2, "trainer": few}
    usual = make_run(tmp_path / "usual", **short)
    assert usual.config.trainer == few
    monkeypatch.setattr("ur4rec.config.LARGE_CATALOGUE", 20)
    run = make_run(tmp_path / "run", **short)
    run.train()
    kept = read_resumable(run.directory)
    assert kept.trainer == {**few, "catalogue_loss": "sampled"}
    resumed = make_run(tmp_path / "run", **{**short, "trainer": kept.trainer})
    resumed.resume()
    assert resumed.trainer.step == run.trainer.step > 0


def test_a_checkpoint_from_before_sampled_losses_has_the_full_one(make_run, tmp_path):
    run = make_run(tmp_path / "run", epochs={"pretrain_sasrec": 1})
    run.trainer.save_checkpoint(tmp_path / "now")
    saved = load_checkpoint(tmp_path / "now")
    earlier = {name: value for name, value in saved.state["trainer"].items() if name != "catalogue_loss"}
    save_checkpoint(tmp_path / "earlier", saved._replace(state={**saved.state, "trainer": earlier}))
    run.trainer.load_checkpoint(tmp_path / "earlier")
    check_settings(tmp_path / "earlier", run.prepared.model, TrainerConfig())


def test_a_run_stopped_in_the_middle_of_a_trial_ends_as_one_that_was_not(make_run, tmp_path, caplog):
    caplog.set_level("INFO", logger="ur4rec")
    settings = {
        "epochs": {"pretrain_sasrec": 1, "joint_finetune": 6},
        "schedule": "trial,steps=2,start=2,hold=8,groups=4",
    }
    whole = make_run(tmp_path / "whole", **settings)
    whole.train()
    tried = whole.logs.trials.records
    assert [(each.first, each.step, each.candidate, each.outcome) for each in tried[:2]] == [
        (7, 9, "8 sasrec + retriever", "undone"),  # four steps of pretraining and two of both come before
        (10, 12, "sasrec + 8 retriever", "undone"),
    ]
    assert any("steps 7 to 9 on trial (8 sasrec + retriever): held-out" in line for line in caplog.messages)
    kept = (tmp_path / "whole" / "trials.csv").read_bytes()
    for step in (8, 20):
        run = make_run(tmp_path / f"stopped-{step}", **settings)
        with pytest.raises(Stopped):
            run.train(stop=lambda run=run, step=step: run.trainer.step >= step)
        again = make_run(tmp_path / f"stopped-{step}", **settings)
        again.resume()
        again.train()
        assert outcome(again) == outcome(whole)
        assert (tmp_path / f"stopped-{step}" / "trials.csv").read_bytes() == kept
