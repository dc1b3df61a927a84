"""`ur4rec train --refit`: what it prints and leaves, and which model is used afterwards."""

import json

import pytest

from tests.integration.tiny_run import invoke, mistaken

SMALL = [
    *("--dataset", "synthetic", "--preset", "smoke", "--batch-size", "256", "--quiet", "--schedule", "2:1"),
    *("--epochs", "pretrain_sasrec=0", "--epochs", "pretrain_retriever=0", "--epochs", "end_to_end=0"),
    *("--epochs", "joint_finetune=2", "--set", "ema_decay=0.9"),
]


@pytest.fixture(scope="module")
def refitted(tmp_path_factory):
    """A run, and what its command printed when it was asked for a refit later."""
    out = tmp_path_factory.mktemp("refit") / "run"
    assert invoke("train", *SMALL, "--out", out).exit_code == 0
    before = invoke("evaluate", out, "--json").stdout
    again = invoke("train", "--resume", out, "--refit", "--quiet")
    assert again.exit_code == 0, again.stderr
    return out, before, " ".join(again.stdout.split())


def test_it_prints_both_results_and_says_which_model_is_used(refitted):
    out, _, printed = refitted
    assert "fused, refit" in printed
    assert (
        "Refit on training and validation interactions, as long as the chosen model: joint_finetune to step" in printed
    )
    assert f"evaluate, recommend and serve use the refit in {out}/refit; --checkpoint best is the run's own" in printed
    assert {"config.json", "metrics.json", "decisions.csv", "schedule.png", "test_ranks.csv", "checkpoint"} <= {
        path.name for path in (out / "refit").iterdir()
    }
    assert not (out / "refit" / "data").exists()  # the run has kept it


def test_evaluate_uses_it_and_finds_its_metrics_again(refitted):
    out, before, _ = refitted
    metrics = json.loads((out / "metrics.json").read_text())
    found = json.loads(invoke("evaluate", out, "--json").stdout)
    assert found["fused"] == metrics["refit"]["fused"]["test"]
    assert json.loads(invoke("evaluate", out, "--checkpoint", "best", "--json").stdout) == json.loads(before)
    assert "refit checkpoint, test targets" in " ".join(invoke("evaluate", out).stdout.split())
    validation = json.loads(invoke("evaluate", out, "--split", "validation", "--json").stdout)
    assert validation["fused"] == metrics["final"]["fused"]["validation"]
    line = mistaken("evaluate", out, "--split", "validation", "--checkpoint", "refit")
    assert "a refit has trained on the validation targets" in line


def test_recommend_uses_it_and_says_so(refitted):
    out, *_ = refitted
    user = (out / "test_ranks.csv").read_text().splitlines()[1].split(",")[0]
    given = ("recommend", out, "--user", user, "--json")
    found, best = invoke(*given), invoke(*given, "--checkpoint", "best")
    assert "scores are the refit's, trained on validation interactions too" in found.stderr
    assert "refit" not in best.stderr
    assert json.loads(found.stdout) != json.loads(best.stdout)
