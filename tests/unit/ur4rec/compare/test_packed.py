"""Packed runs: the same report from one small file, and what becomes of runs that are added later."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.ur4rec.compare.tiny_study import COSTS, PRICES, tiny_study
from ur4rec.compare import runner, summary
from ur4rec.compare.arms import original_of
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.packed import KeptTargets, PackedRuns
from ur4rec.compare.report import compare_command, write_report
from ur4rec.compare.runner import RunKey
from ur4rec.compare.statistics import Resamples
from ur4rec.compare.summary import METRICS, pack_study, summarise_study
from ur4rec.compare.workers import run_one, run_study
from ur4rec.data import build_interactions, synthetic
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import summarise

PLATEAU = "plateau,min_steps=2,window=3,threshold=0.5"
STUDIES = Path(__file__).parents[4] / "benchmarks" / "studies"
RESULTS = STUDIES.with_name("results")


def run_all(directory):
    for key in sorted(directory.missing(), key=lambda key: original_of(key.arm) is not None):
        run_one(directory.path, key)


def report(directory, folder, **choices):
    """The text and the numbers of a report."""
    text = write_report(directory, folder / "report", "the command", **choices)
    return text, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("torch")
    directory = tiny_study(tmp_path_factory.mktemp("finished") / "study", arms=("parity", "joint", PLATEAU))
    run_all(directory)
    return directory


@pytest.fixture
def study(finished, tmp_path):
    """A copy of a finished study whose runs are loose."""
    shutil.copytree(finished.path, tmp_path / "study")
    return StudyDirectory.reopen(tmp_path / "study")


def test_the_report_of_packed_runs_is_the_same_to_the_digit(study, tmp_path):
    loose, runs = report(study, tmp_path / "loose"), dict(study.runs())
    pack_study(study)
    assert {path.name for path in study.path.iterdir()} == {"study.json", "costs.json", "runs.parquet", ".lock"}
    again = StudyDirectory.reopen(study.path)
    assert again.missing() == []
    assert dict(again.runs()) == runs
    assert report(again, tmp_path / "packed") == loose


def given_data(*_):
    """Data that came split, with one to three test targets of a user."""
    whole = synthetic(num_users=40, num_items=50, num_clusters=5, mean_length=12)
    backwards_N = np.concatenate([np.arange(length)[::-1] for length in whole.sequences.lengths])
    users_N = whole.sequences.rows
    num_tested_N = 1 + users_N % 3
    parts_N = np.where(backwards_N < num_tested_N, 2, np.where(backwards_N < num_tested_N + 2, 1, 0))
    return build_interactions(
        users=users_N, items=whole.sequences.items_N, timestamps=np.arange(len(whole)), parts=parts_N,
        titles={}, texts={}, name="given", source="test",
    )  # fmt: skip


def test_several_targets_of_a_user_are_resampled_together(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(runner, "_load", given_data)
    directory = tiny_study(tmp_path / "study", arms=("parity", "joint"), budgets=("cost",), repeats="allow")
    run_all(directory)
    (run, *_) = [run for _, run in directory.runs()]
    assert run["targets_per_user"]["test"] == [1 + user % 3 for user in range(40)]
    assert run["targets_per_user"]["validation"] == [2] * 40
    assert run["facts"]["split"] == "given"
    drawn = []
    monkeypatch.setattr(
        summary,
        "Resamples",
        lambda *sizes, **settings: drawn.append((sizes, settings)) or Resamples(*sizes, **settings),
    )
    loose = report(directory, tmp_path / "loose")
    assert [sizes for sizes, _ in drawn] == [(2, 40), (2, 40)]
    assert [sum(settings["targets_per_user"]) for _, settings in drawn] == [79, 80]
    pack_study(directory)
    assert report(StudyDirectory.reopen(directory.path), tmp_path / "packed") == loose
    assert "--repeats allow" in compare_command(directory.study)


def test_packing_twice_changes_nothing(study):
    pack_study(study)
    once = (study.path / "runs.parquet").read_bytes()
    pack_study(study)
    assert (study.path / "runs.parquet").read_bytes() == once


def test_a_packed_study_continues_with_further_arms(study, tmp_path):
    pack_study(study)
    before = summarise_study(study)
    extended = tiny_study(study.path, arms=("parity", "2:1"))
    assert {key.arm for key in extended.missing()} == {"2:1"}
    run_all(extended)
    text, after = report(extended, tmp_path / "extended")
    for basis, budget in before["budgets"].items():
        assert after["budgets"][basis]["arms"]["joint"] == budget["arms"]["joint"]
        assert after["budgets"][basis]["time_ratios"] == budget["time_ratios"]
        assert set(after["budgets"][basis]["differences"]["2:1"]["parity"]) == set(METRICS)
    assert "only some of their runs are packed: 2:1." in text
    pack_study(extended)
    assert extended.missing() == []
    assert (
        json.loads(json.dumps(summarise_study(extended)["budgets"]["cost"]["arms"])) == after["budgets"]["cost"]["arms"]
    )


def test_a_loose_run_takes_precedence_over_a_packed_one(study):
    key = RunKey("joint", 0, "cost")
    arrays = study.read_arrays(key)
    pack_study(study)
    assert "joint" in summarise_study(study)["budgets"]["cost"]["time_ratios"]
    study.write_run(key, {**study.read_run(key), "seconds": -1.0}, arrays)
    assert study.read_run(key)["seconds"] == -1
    assert study.read_run(key._replace(seed=1))["seconds"] > 0
    assert "joint" not in summarise_study(study)["budgets"]["cost"]["time_ratios"]


def test_targets_are_rounded_alike_before_and_after_packing(study):
    before = {key: study.read_targets(key) for key, _ in study.runs()}
    assert {each.nll_T.size for each in before.values()} == {40}
    pack_study(study)
    for key, targets in before.items():
        after = study.read_targets(key)
        assert (after.ranks_T == targets.ranks_T).all()
        assert (after.nll_T == targets.nll_T).all()


def test_what_rounding_loses_is_far_below_what_is_reported():
    rng = np.random.default_rng(0)
    ranks_T, nll_T = rng.integers(1, 2000, 1000), rng.gamma(3.0, 2.0, 1000).astype(np.float32)
    kept = KeptTargets.of(ranks_T, nll_T)
    exact = summarise(ranks_T, (10,))
    assert all(summarise(kept.ranks_T, (10,))[metric] == exact[metric] for metric in ("hit@10", "ndcg@10"))
    assert np.abs(kept.nll_T - nll_T).max() <= 2**-15
    assert kept.nll_T.mean(dtype=float) == pytest.approx(nll_T.mean(dtype=float), abs=2e-6)


def test_a_run_that_diverged_at_once_is_packed_too(tmp_path):
    directory = tiny_study(tmp_path / "s", arms=("parity", "joint"), seeds=(0,), budgets=("updates",))
    run_one(directory.path, RunKey("parity", 0, "updates"))
    parity = directory.read_run(RunKey("parity", 0, "updates"))
    directory.write_run(
        RunKey("joint", 0, "updates"), {**parity, "arm": "joint", "best": None, "points": [], "error": "NaN"}, {}
    )
    pack_study(directory)
    assert directory.missing() == []
    assert directory.read_run(RunKey("joint", 0, "updates"))["error"] == "NaN"
    assert directory.read_targets(RunKey("joint", 0, "updates")).nll_T.size == 0


@pytest.mark.parametrize("packed", [False, True])
def test_runs_that_were_charged_with_another_timing_are_refused(study, tmp_path, packed):
    if packed:
        pack_study(study)
    again = StudyDirectory.reopen(study.path)
    again.write_costs({**COSTS, "seconds": {**PRICES, "both": 0.36}})  # the budget, which is parity's, is the same
    message = r"must be charged with one timing of the steps, but parity, updates, seed 0 of .*; restore that file, or"
    with pytest.raises(DataError, match=message):
        write_report(again, tmp_path / "report")
    with pytest.raises(DataError, match=message):  # before any of the runs that are missing
        run_study(StudyDirectory.begin(again.path, again.study.extended(seeds=(2,))))
    assert not (tmp_path / "report.md").exists()
    again.write_costs(COSTS)
    write_report(again, tmp_path / "report")


@pytest.mark.parametrize("packed", [False, True])
def test_runs_of_before_they_kept_the_hash_of_their_costs_are_known_by_their_budget(study, tmp_path, packed):
    for key, run in study.runs():
        study.write_run(key, {name: run[name] for name in run if name != "costs_hash"}, study.read_arrays(key))
    if packed:
        pack_study(study)
    again = StudyDirectory.reopen(study.path)
    write_report(again, tmp_path / "report")
    again.write_costs({**COSTS, "seconds": {**PRICES, "sasrec first": 0.31}})
    with pytest.raises(DataError, match="must be charged with one timing"):
        write_report(again, tmp_path / "report")


def test_a_flipped_byte_in_the_pages_of_packed_runs_is_never_taken_for_a_number(study):
    pack_study(study)
    path = study.path / "runs.parquet"
    whole, runs = path.read_bytes(), dict(study.runs())
    targets = [study.read_targets(key) for key in runs]
    refused = 0
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # the footer after them has no checksum
    for position in range(4, end, end // 50):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        found = PackedRuns(path)
        try:
            same = [found.report(key) for key in runs] == list(runs.values())
            read = [found.targets(key) for key in runs]
        except DataError:
            refused += 1
            continue
        assert same
        assert all(
            np.array_equal(mine, other)
            for pair in zip(read, targets, strict=True)
            for mine, other in zip(*pair, strict=True)
        )
    assert refused > 20


def test_a_damaged_file_of_packed_runs_is_named(tmp_path):
    directory = tiny_study(tmp_path / "s")
    (directory.path / "runs.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"runs\.parquet: cannot be read as Parquet"):
        directory.missing()


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.iterdir()))
def test_committed_studies_have_the_runs_that_their_reports_tell_of(name):
    """Whoever doubts a report can make it again: none of its runs is left out of the repository."""
    directory = StudyDirectory.reopen(STUDIES / name)
    assert {path.name for path in directory.path.iterdir()} == {"study.json", "costs.json", "runs.parquet"}
    assert (directory.path / "runs.parquet").stat().st_size <= 1_000_000
    (file,) = RESULTS.glob(f"schedules_{name}_cpu*.json")
    counted = json.loads(file.read_text())["runs"]
    assert counted == {"finished": len(list(directory.runs())), "planned": len(directory.keys())}
    assert all(directory.read_targets(key).nll_T.size for key, _ in directory.runs())


@pytest.mark.parametrize("name", ["jax", "ml-100k-blank"])
def test_committed_reports_can_be_made_again_to_the_digit(tmp_path, name):
    (committed,) = RESULTS.glob(f"schedules_{name}_cpu*.md")
    numbers = committed.with_suffix(".json").read_text()
    text = write_report(
        StudyDirectory.reopen(STUDIES / name), tmp_path / committed.stem, json.loads(numbers)["command"], brief=True
    )
    assert text == committed.read_text()
    assert (tmp_path / committed.name).with_suffix(".json").read_text() == numbers


def test_packed_intervals_belong_to_the_curves_that_are_kept():
    """Their estimates can be computed again from the points of the runs: nearly, as parity was on another processor."""
    budget = summarise_study(StudyDirectory.reopen(STUDIES / "separate"))["budgets"]["cost"]
    reached = {arm: found["to_target"] for arm, found in budget["arms"].items()}
    assert budget["time_ratios"].keys() == reached.keys() - {"parity"}
    for arm, ratios in budget["time_ratios"].items():
        for name, (estimate, _, _) in ratios.items():
            spent, by_parity = (reached[each][f"cost_{name}"] for each in (arm, "parity"))
            assert estimate == (None if spent is None else pytest.approx(spent / by_parity, rel=1e-4))


def test_packed_runs_read_as_a_table():
    table = pq.read_table(STUDIES / "jax" / "runs.parquet")
    assert {"arm", "seed", "basis", "points", "turns", "test_rank", "test_nll"} <= set(table.column_names)
    assert len(PackedRuns(STUDIES / "jax" / "runs.parquet").keys) == table.num_rows
