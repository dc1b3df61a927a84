"""``torchrun -m ur4rec``: several processes run a command as one does, and end together."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integration.tiny_run import ENVIRONMENT, TINY, ur4rec
from ur4rec.cli import app, together

MAX_SECONDS = 300
"""In which processes have ended: on a busy machine they need a tenth of it."""
LOST = Path(__file__).with_name("lost_process.py")
ROOT = Path(__file__).parents[2]


def torchrun(num_processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return subprocess.run(
        [*command, "-m", "ur4rec", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=MAX_SECONDS,
    )


def test_two_processes_train_and_refit_and_say_what_one_does(tmp_path):
    alone, together = tmp_path / "one", tmp_path / "two"  # names of one length: lines break where a path is longer
    runs = [
        ur4rec("train", *TINY, "--refit", "--out", alone),
        torchrun(2, "train", *TINY, "--refit", "--out", together),
    ]
    printed = []
    for done, path in zip(runs, (alone, together), strict=True):
        assert done.returncode == 0, done.stderr
        printed.append([line.split()[:1] for line in done.stdout.replace(str(path), "OUT").splitlines()])
    assert printed[1] == printed[0]
    for part in ("", "refit"):
        expected, found = (json.loads((path / part / "metrics.json").read_text()) for path in (alone, together))
        assert [row["step"] for row in found["epochs"]] == [row["step"] for row in expected["epochs"]]
        for ours, theirs in zip(found["epochs"], expected["epochs"], strict=True):
            assert ours["train"]["total_loss"] == pytest.approx(theirs["train"]["total_loss"], rel=1e-3)
        assert found["facts"]["processes"] == 2


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("killed", "error: all 2 processes must answer within 600 s, but process 1 has ended or hangs"),
        ("failed", "error: the disk of process 1 must not be full, it is; free some space"),
    ],
)
def test_a_process_that_ends_ends_all_with_one_line(what, line):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.integration.lost_process", what],
            env={**ENVIRONMENT, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=MAX_SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode for process in started)
    (only,) = [each for text in said for each in text.splitlines() if each.startswith("error:")]
    assert only.startswith(line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--out", "never", "--nonsense"], "No such option: --nonsense"),
        (["train", "--out", "never", "--set", "nonsense=1"], "error: unknown setting 'nonsense'"),
        (["evaluate", "run"], "error: ur4rec evaluate must be run by one process, got 2; start it without torchrun"),
    ],
)
def test_the_first_process_alone_says_what_is_wrong_unless_the_others_live_on(monkeypatch, capsys, arguments, said):
    paused = []
    monkeypatch.setattr(together, "time", SimpleNamespace(sleep=lambda seconds: paused.append((seconds, heard()))))
    heard = lambda: "".join(capsys.readouterr())  # noqa: E731
    monkeypatch.setattr(sys, "argv", ["ur4rec", *arguments])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            together.run(app)
        assert ended.value.code == 2
        assert said in heard()
    assert paused == [(together.PAUSE, "")]
