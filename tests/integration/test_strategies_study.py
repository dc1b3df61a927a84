"""The comparison of the strategies in small: it runs, continues where it stopped, concludes what intervals allow."""

import json

import numpy as np
import pytest

import benchmarks.strategies as study
from ur4rec.config import FUSIONS, SEQUENCE_LOSSES


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(study, "NUM_RESAMPLES", 200)


def test_the_arms_cover_every_strategy_loss_and_fusion():
    configs = [study.Job(arm, "torch", 0, True).config() for arm in study.ARMS]
    separate = [config for config in configs if config.trainer.get("joint_loss") == "separate"]
    assert {config.trainer.get("sasrec_loss", "ce") for config in separate} == set(SEQUENCE_LOSSES)
    assert {config.model["fusion"] for config in separate} == set(FUSIONS)
    switches = [tuple(name for name in config.trainer if name.startswith("use_")) for config in configs]
    assert {len(names) for names in switches} == {0, 1, 4}
    assert len({name for names in switches for name in names}) == 4
    assert {arm.baseline for arm in study.ARMS.values()} == {"baseline", "separate"}


def test_each_arm_is_compared_in_pairs_with_its_own_baseline():
    rng = np.random.default_rng(0)
    nll_ST = rng.uniform(1, 2, size=(2, 40))
    factors = {"baseline": 1.0, "memory bank": 0.9, "separate": 3.0, "separate, bpr": 3.3}
    results = {}
    for arm, factor in factors.items():
        for seed in range(2):
            found = {"ranks": [5] * 40, "nll": (factor * nll_ST[seed]).tolist()}
            results[study.Job(arm, "torch", seed, True)] = {"best": {"per_user": found}}
    rows = {row["arm"]: row for row in study.compare(results, ["torch"])}
    differences = {arm: row["nll"]["estimate"] for arm, row in rows.items() if "estimate" in row["nll"]}
    assert differences == pytest.approx({"memory bank": -0.1, "separate": 2.0, "separate, bpr": 0.1})
    assert rows["memory bank"]["verdict"] == "mean NLL better"
    assert rows["separate, bpr"]["verdict"] == "mean NLL worse"
    assert rows["baseline"]["ndcg@10"]["mean"] == pytest.approx(1 / np.log2(6))


def test_the_command_goes_on_where_it_stopped_and_writes_all_that_it_should(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.MARKS[0]}\nold\n{study.MARKS[1]}\nafter\n")
    arms = ["baseline", "all four", "separate, fusion rank"]
    arguments = ["--quick", "--processes", "1", "--backend", "torch", "--seeds", "0", "--work", str(tmp_path / "work")]
    arguments += ["--out", str(tmp_path / "out"), "--docs", str(page)]
    assert study.main([*arguments, "--arms", *arms[:1]]) == 0
    ran = []
    run = study.run_job
    monkeypatch.setattr(study, "run_job", lambda job: ran.append(job.arm) or run(job))
    assert study.main([*arguments, "--arms", *arms]) == 0
    assert ran == arms[1:]
    files = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {".json", ".md", ".png"}
    rows = json.loads(files[".json"].read_text())["comparisons"]["torch"]
    assert [row["arm"] for row in rows] == arms
    assert ["nll" in row for row in rows] == [True, True, False]
    assert ["low" in row["ndcg@10"] for row in rows] == [False, True, False]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{study.MARKS[1]}\nafter\n")
    assert "old" not in text
    assert "| all four | baseline |" in text
    assert "| all four | baseline |" in capsys.readouterr().out


def test_a_run_of_other_settings_is_run_anew(tmp_path):
    job = study.Job("baseline", "torch", 0, True)
    kept = {"config": job.config().to_json(), "best": {}}
    job.file(tmp_path).parent.mkdir()
    job.file(tmp_path).write_text(json.dumps(kept))
    assert study.read_result(job, tmp_path) == json.loads(json.dumps(kept))
    kept["config"]["batch_size"] += 1
    job.file(tmp_path).write_text(json.dumps(kept))
    assert study.read_result(job, tmp_path) is None


def test_a_lower_likelihood_loss_is_better():
    above, below = {"low": 0.01, "high": 0.02}, {"low": -0.02, "high": -0.01}
    assert study.verdict({"ndcg@10": above, "nll": below}) == "NDCG@10 better, mean NLL better"
    assert study.verdict({"ndcg@10": below, "nll": above}) == "NDCG@10 worse, mean NLL worse"
    assert study.verdict({"ndcg@10": {"low": -0.1, "high": 0.1}}) == "no clear effect"
    assert study.verdict({"ndcg@10": {"mean": 0.1}}) == ""
