"""The benchmark of quality: arms are lines of settings, runs are kept and paired, validation alone orders them."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from ur4rec.errors import ConfigurationError
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import prepare
from ur4rec.runs.presets import preset
from ur4rec.runs.run import TrainingRun
from ur4rec.training.checkpoint import load_checkpoint

ARGUMENTS = ["--data", "quick", "--seeds", "0", "--jobs", "1", "--arms", "base", "sasrec_lr=0.01"]


@pytest.fixture(scope="module")
def quality():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("quality")


@pytest.fixture(scope="module")
def report(quality):
    return import_module("quality_report")


def run(rank, validation, seed=0):
    result = {"validation": {"ndcg@10": validation}, "epoch": 3}
    return {"seed": seed, "ranks": {"sasrec": rank}, "results": {"sasrec": result}, "seconds": {"sasrec": 5.0}}


@pytest.mark.parametrize(
    ("arm", "part"), [("sasrec_rate=1", "sasrec_rate=1"), ("sasrec_lr", "'sasrec_lr'"), ("base,base", "'base'")]
)
def test_an_arm_that_names_no_setting_is_refused(quality, arm, part):
    with pytest.raises(ConfigurationError, match=r"an arm must be NAME=VALUE.*" + part):
        quality.parse_arm(arm)


def test_arms_of_equal_settings_share_a_run_and_others_do_not(quality, tmp_path):
    def folder(arm, seed=0):
        return quality.Job(data="quick", arm=arm, seed=seed).folder(tmp_path)

    assert folder("sasrec_lr=0.003") == folder("base")  # the preset's own
    assert len({folder("base"), folder("base", 1), folder("batch_size=7"), folder("pretrain_sasrec=3")}) == 4


@pytest.mark.parametrize(("data", "name"), [("ml-1m", "ml-1m"), ("sports", "amazon")])
def test_on_published_data_sasrec_is_as_the_preset_has_it_and_nothing_follows(quality, data, name):
    base, whole = quality.Job(data=data, arm="base", seed=0).config(), preset(name)
    for ours, its in ((base.model, whole.model), (base.trainer, whole.trainer)):
        later = ("retriever_", "joint_", "fusion")
        assert ours == {setting: value for setting, value in its.items() if not setting.startswith(later)}
    assert base.batch_size == whole.batch_size
    assert {stage for stage, count in base.epochs.items() if count} == {"pretrain_sasrec"}


def test_arms_are_compared_in_pairs_and_ordered_by_validation(report):
    runs = {
        "base": [run([1, 100], 0.2), run([1, 100], 0.4, 1)],
        "worse in the test": [run([100, 100], 0.5), run([1, 100], 0.5, 1)],
        "without it": [{**run([1, 1], 0.9), "ranks": {}}] * 2,
    }
    first, second = report.compare(runs, ["sasrec", "fused"], ("base", "sasrec"))
    assert (first["arm"], second["arm"]) == ("worse in the test", "base")
    assert second["validation"] == pytest.approx(0.3)
    assert (second["hit@10"]["mean"], second["seconds"], second["epochs"]) == (0.5, 5, [4, 4])
    assert first["hit@10"]["estimate"] == pytest.approx(-0.5)
    assert "estimate" not in second["hit@10"]
    assert second["hit@10"]["interval"] == [0, 1]  # of two users that are drawn, none or both may be the hit
    assert report.compare(runs, ["fused"], ("base", "fused")) == []


def test_another_scorer_is_compared_with_the_one_of_the_baseline(report):
    both = {"sasrec": [1, 100] * 50, "fused": [1, 1] * 50}
    result = {"validation": {"ndcg@10": 0.1}, "epoch": 0}
    found = {"seed": 0, "ranks": both, "results": dict.fromkeys(both, result), "seconds": dict.fromkeys(both, 1.0)}
    rows = {row["scorer"]: row for row in report.compare({"base": [found]}, [*both], ("base", "sasrec"))}
    assert rows["fused"]["hit@10"]["estimate"] == pytest.approx(1.0)
    assert "estimate" not in rows["sasrec"]["hit@10"]
    assert report.table(rows.values())[3].startswith("| `base` | fused | 0.1000 | 1.0000 ± 0.0000 [1.0000, 1.0000]; +")


def test_runs_are_kept_and_reported(quality, tmp_path, capsys):
    folders = [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    assert quality.main([*ARGUMENTS, *folders, "--report-only"]) == 1
    assert "leave out --report-only" in capsys.readouterr().err
    assert quality.main([*ARGUMENTS, *folders]) == 0
    printed = capsys.readouterr()
    assert "2 of 2" in printed.err
    assert "| `sasrec_lr=0.01` |" in printed.out
    assert quality.main([*ARGUMENTS, *folders]) == 0  # nothing is run again
    assert capsys.readouterr().err == ""
    (report,) = (tmp_path / "out").glob("quality_quick_*.json")
    study = json.loads(report.read_text())
    (rows,) = study["comparisons"].values()
    assert {row["arm"] for row in rows} == {"base", "sasrec_lr=0.01"}
    assert "## By popularity" in report.with_suffix(".md").read_text()
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_refit_is_a_row_beside_the_chosen_model_which_is_not_trained_again(quality, tmp_path, capsys):
    arguments = ["--data=quick", "--seeds=0", "--jobs=1", f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    assert quality.main(arguments) == 0
    (kept,) = (tmp_path / "work").rglob("quality.json")
    before = json.loads(kept.read_text())  # with the seconds of each epoch
    assert quality.main([*arguments, "--refit", "--report-only"]) == 1
    assert quality.main([*arguments, "--refit"]) == 0
    assert {**json.loads(kept.read_text()), "facts": None} == {**before, "facts": None}
    (report,) = (tmp_path / "out").glob("quality_quick_*.json")
    comparisons = json.loads(report.read_text())["comparisons"]
    assert list(comparisons) == ["Chosen by validation", "Refit on validation targets too"]
    (own,), (refit,) = comparisons.values()
    assert refit["validation"] == own["validation"]
    assert refit["ndcg@10"] != own["ndcg@10"]
    assert "| `base` | SASRec alone, refit |" in capsys.readouterr().out


def test_arms_share_what_sasrec_learns_alone_and_end_as_if_they_had_not(quality, tmp_path, capsys):
    later = "retriever_lr=0.01,pretrain_retriever=1,joint_finetune=2,schedule=parity"
    arguments = ["--data=quick", "--seeds=0", "--jobs=1", f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    assert quality.main([*arguments, "--arms", later]) == 0
    assert "SASRec's own stage of base, seed 0, is trained" in capsys.readouterr().err
    job = quality.Job(data="quick", arm=later, seed=0)
    shared = quality.read_result(job, tmp_path / "work")
    directory = RunDirectory.create(tmp_path / "alone")
    alone = TrainingRun(job.config(), prepare(job.config()), directory, progress=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a job has
    alone.train()
    torch.set_num_threads(before)
    assert shared["ranks"] == {name: result.test_ranks.tolist() for name, result in alone.results.items()}
    kept = job.folder(tmp_path / "work")
    assert (kept / "decisions.csv").read_bytes() == (tmp_path / "alone" / "decisions.csv").read_bytes()
    for of in ("best", "latest"):
        found, expected = (load_checkpoint(each.require_checkpoint(of)) for each in (RunDirectory(kept), directory))
        for mine, its in zip(found[:2], expected[:2], strict=True):
            assert mine.keys() == its.keys()
            assert all(np.array_equal(mine[name], its[name]) for name in mine)
    assert quality.main([*arguments, "--arms", "base", later]) == 0  # both are there
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arm", "first"),
    [
        ("base", None),
        ("pretrain_sasrec=0,joint_finetune=1", None),
        ("joint_finetune=1", "base"),
        ("sasrec_lr=0.01,encoder=x,retriever_lr=1,pretrain_retriever=3,schedule=trend", "sasrec_lr=0.01"),
        ("sasrec_item_init=pca,encoder=x,end_to_end=3", "sasrec_item_init=pca,encoder=x"),
    ],
)
def test_what_arms_share_has_all_that_sasrec_depends_on(quality, arm, first):
    found = quality.Job(data="quick", arm=arm, seed=0, refit=True).first_stage()
    assert found == (None if first is None else quality.Job(data="quick", arm=first, seed=0))


def test_what_arms_share_has_the_texts_where_the_data_set_begins_with_them(quality):
    found = quality.Job(data="sports", arm="encoder=x,joint_finetune=1", seed=0).first_stage()
    assert found.arm == "encoder=x"


def test_targets_are_compared_by_the_popularity_of_their_items(report):
    about = {"deciles": [0, 3, 3, 10], "uses": [0, 2, 4, 90]}
    alone = {**run([50, 50, 1, 1], 0.2), **about}
    both = {**run([1, 1, 50, 1], 0.3), **about}
    both["ranks"] = {"sasrec": alone["ranks"]["sasrec"], "fused": both["ranks"]["sasrec"]}
    runs = {"base": [alone] * 2, "both": [both] * 2}
    base, fused = report.compare_by_popularity(runs, ["sasrec", "fused"], ("base", "sasrec"))
    assert (base["arm"], fused["arm"], fused["scorer"]) == ("base", "both", "fused")  # SASRec in both is the same
    cold, third, tenth = fused["groups"]
    assert [group["name"] for group in fused["groups"]] == ["cold", "3", "10"]
    assert (cold["mean"], cold["estimate"], cold["low"]) == (1, 1, 1)
    assert (third["uses"], third["num_targets"], third["mean"], third["estimate"]) == ([2, 4], 2, 0.5, 0)
    assert (third["low"], third["high"]) == (-1, 1)
    assert (tenth["mean"], tenth["estimate"]) == (1, 0)
    _, _, *lines = report.popularity_table([base, fused])
    assert lines[0] == "| cold | 0 | 1 | 0.0000 | 1.0000; +1.0000 [+1.0000, +1.0000] |"
    assert lines[1].startswith("| 3 | 2–4 | 2 | 0.5000 | 0.5000; +0.0000 [")
    assert report.compare_by_popularity(runs, ["sasrec"], ("another", "sasrec")) == []


def test_a_run_from_before_popularity_was_kept_is_collected_again(quality, tmp_path):
    job = quality.Job(data="quick", arm="base", seed=0)
    file = job.folder(tmp_path) / "quality.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"results": {}}')
    assert quality.read_result(job, tmp_path) is None
    file.write_text('{"results": {}, "deciles": []}')
    assert quality.read_result(job, tmp_path) == {"results": {}, "deciles": []}
