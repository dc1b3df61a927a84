"""What Ctrl-C says while no step is trained; see `tests/integration/test_killed_runs.py` for what it does to steps."""

import os
import signal

import pytest

from tests.integration.tiny_run import invoke
from ur4rec.cli import train
from ur4rec.runs import finished, prepared
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.run import TrainingRun

ONE_EPOCH = [
    *("--dataset", "synthetic", "--preset", "smoke", "--batch-size", "256", "--device", "cpu", "--quiet"),
    *("--epochs", "pretrain_sasrec=1", "--epochs", "pretrain_retriever=0"),
    *("--epochs", "joint_finetune=0", "--epochs", "end_to_end=0"),
]


@pytest.fixture(autouse=True)
def heeds_interrupts():
    """Ctrl-C as a terminal's process has it: one that a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(monkeypatch, owner, name):
    """Ctrl-C whenever this is called."""
    called = getattr(owner, name)

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return called(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def stopped(*arguments):
    done = invoke(*arguments)
    assert done.exit_code == 130
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (prepared, "prepare", "stopped before the first step, nothing is changed; the same command starts again"),
        (RunDirectory, "create", "stopped before the first step, nothing to save yet; the same command starts again"),
        (train, "train_logged", "stopped before the first step, nothing to save yet; the same command starts again"),
    ],
)
def test_before_training_the_same_command_starts_again(tmp_path, monkeypatch, owner, name, expected):
    with monkeypatch.context() as patched:
        interrupt(patched, owner, name)
        assert stopped("train", *ONE_EPOCH, "--out", tmp_path / "run") == expected
    interrupt(monkeypatch, train, "train_logged")
    assert "the same command starts again" in stopped("train", *ONE_EPOCH, "--out", tmp_path / "run")


def test_before_the_first_step_and_after_the_last_a_run_is_continued(tmp_path, monkeypatch):
    out = tmp_path / "my run"
    command = f"continue with: ur4rec train --resume '{out}'"
    with monkeypatch.context() as patched:
        interrupt(patched, TrainingRun, "write_config")
        line = stopped("train", *ONE_EPOCH, "--out", out)
    assert line == f"stopped before the first step, nothing to save yet; {command}"
    with monkeypatch.context() as patched:
        interrupt(patched, train, "print_outcome")
        line = stopped("train", "--resume", out, "--quiet")
    assert line == f"stopped between two steps, all of them saved; {command}"
    with monkeypatch.context() as patched:
        interrupt(patched, finished, "evaluate_run")
        assert stopped("evaluate", out) == "stopped; the same command starts again"
    assert f"Everything is in {out}: look at {out}/schedule.png\n" in invoke("train", "--resume", out).stdout
