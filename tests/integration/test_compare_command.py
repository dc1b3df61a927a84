"""`ur4rec compare` as users give it: a study in a process of its own, found finished, and reported on again."""

import json

import pytest
from typer.testing import CliRunner

from tests.unit.ur4rec.compare.tiny_study import tiny_study
from ur4rec.cli import app
from ur4rec.compare.directory import StudyDirectory

SMALL = [
    *("--dataset", "synthetic", "--num-users", "60", "--batch-size", "8", "--updates", "4", "--eval-every", "4"),
    *("--set", "sasrec_hidden_dim=8", "--set", "retriever_output_dim=8", "--set", "max_seq_len=5"),
]


def compare(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_a_study_is_run_and_reported_on(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "study"
    done = compare(*SMALL, "--arms", "joint", "--seeds", "3", "--budgets", "updates", "--out", out)
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "report.json").read_text())
    assert list(summary["budgets"]["updates"]["arms"]) == ["parity", "joint"]
    assert summary["runs"] == {"finished": 2, "planned": 2}
    assert "--seeds 3" in summary["command"]
    assert " on 1 thread(s); commit " in (out / "report.md").read_text()
    assert all(seconds > 0 for seconds in summary["costs"]["seconds"].values())
    (out / "report.json").unlink()
    again = compare(out)
    assert again.exit_code == 0, again.output
    assert "NDCG@10" in again.output
    assert json.loads((out / "report.json").read_text()) == summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "joint"], "give either --out DIR"),
        ([*SMALL, "--arms", "plato", "--out", "study"], "unknown schedule 'plato'"),
        (["nowhere"], "is no study"),
        (
            [*SMALL, "--jobs", "2", "--cluster", "tcp://127.0.0.1:9", "--out", "study"],
            "give either --jobs or --cluster",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = compare(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_runs_a_study(tmp_path):
    directory = tiny_study(tmp_path / "study")
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with StudyDirectory.reopen(directory.path).locked():  # as another process has it: locks are per file handle
        for arguments in ([directory.path], [directory.path, "--arms", "joint"]):
            done = compare(*arguments)
            assert done.exit_code == 2
            assert "only one process may run a study" in " ".join(done.output.split())
        assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before
        done = compare(directory.path, "--report-only")  # reading needs no lock
        assert "has no finished run of parity yet" in " ".join(done.output.split())


def test_a_study_that_does_not_fit_into_memory_leaves_nothing(tmp_path):
    pytest.importorskip("torch")
    done = compare(*SMALL, "--arms", "joint", "--batch-size", 2**44, "--quiet", "--out", tmp_path / "study")
    assert done.exit_code == 2
    assert "there must be memory for a training step on" in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []
