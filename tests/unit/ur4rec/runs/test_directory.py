"""Run directories: written whole or not at all, and never over somebody's files."""

import csv
import json
import signal
import subprocess
import sys

import pytest

from ur4rec.errors import ConfigurationError, DataError
from ur4rec.files import write_whole
from ur4rec.runs.directory import RunDirectory


class FullDiskError(OSError):
    pass


def test_json_and_csv(tmp_path):
    directory = RunDirectory.create(tmp_path / "a" / "run")
    directory.write_json("config.json", {"x": 1})
    directory.write_csv("rows.csv", {"a": [1, 2], "b": [2.5, None]})
    assert directory.read_json("config.json") == {"x": 1}
    assert (directory.path / "rows.csv").read_text() == "a,b\n1,2.5\n2,\n"
    assert RunDirectory.open_existing(directory.path).read_json("config.json") == {"x": 1}


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunDirectory.create(tmp_path / "run").write_json("metrics.json", {"loss": float("nan")})


def test_a_failed_write_leaves_the_previous_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_whole(path, b"before")

    def full(file):
        raise FullDiskError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FullDiskError):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.json"]


def test_a_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="--out must be empty"):
        RunDirectory.create(tmp_path)
    with pytest.raises(ConfigurationError, match="--overwrite removes only a run directory"):
        RunDirectory.create(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_overwrite_replaces_a_run(tmp_path):
    first = RunDirectory.create(tmp_path / "run")
    first.write_json("config.json", {})
    first.write_json("metrics.json", {})
    second = RunDirectory.create(tmp_path / "run", overwrite=True)
    assert [path.name for path in second.path.iterdir()] == [".lock"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigurationError, match="--out must be a directory"):
        RunDirectory.create(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="--out must be writable"):
        RunDirectory.create(tmp_path / "run" / "below")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is no run directory: it has no config\.json"):
        RunDirectory.open_existing(tmp_path)
    directory = RunDirectory(tmp_path)
    for content in ("{", json.dumps([1])):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(DataError, match="must hold a JSON object"):
            directory.read_json("config.json")


KILLED_BEFORE_THE_REMOVAL = """
import os, signal, sys
from pathlib import Path
from ur4rec.runs.directory import RunDirectory

def strike(event, arguments):
    if event == "shutil.rmtree" and "step-" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(strike)
directory = RunDirectory(Path(sys.argv[1]))
with directory.locked():
    for step in (1, 2):
        with directory.new_checkpoint(step, best=False) as path:
            path.mkdir()
"""


def test_a_checkpoint_that_a_kill_left_behind_is_removed_at_the_next_start(tmp_path):
    (tmp_path / "run").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_REMOVAL, str(tmp_path / "run")], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder, directory = tmp_path / "run" / "checkpoint", RunDirectory(tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {"step-1", "step-2", "LATEST"}
    with directory.locked():
        assert {path.name for path in folder.iterdir()} == {"step-2", "LATEST"}


@pytest.mark.parametrize("pointer", [None, b"", b"step-9"])
def test_no_checkpoint_is_removed_where_a_pointer_is_missing_or_damaged(tmp_path, pointer):
    folder, directory = tmp_path / "checkpoint", RunDirectory(tmp_path)
    for name in ("step-1", "step-2"):
        (folder / name).mkdir(parents=True)
    if pointer is not None:
        (folder / "LATEST").write_bytes(pointer)
    with directory.locked():
        assert {"step-1", "step-2"} <= {path.name for path in folder.iterdir()}


def test_what_a_spreadsheet_takes_for_a_formula_is_written_as_it_is(tmp_path):
    ids = ["=1+2", "+1", "-1", "@SUM(A1)", "'=1", '=HYPERLINK("x")']
    RunDirectory(tmp_path).write_csv("test_ranks.csv", {"user": ids})
    with (tmp_path / "test_ranks.csv").open(newline="") as file:
        assert [row["user"] for row in csv.DictReader(file)] == ids


def epochs(count):
    return {"epochs": [{"epoch": number} for number in range(count)]}


def test_a_run_that_was_stopped_in_its_first_save_begins_again(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    assert directory.newest_checkpoint() is None
    directory.write_json("metrics.json", epochs(1))  # what follows from the epochs is written before they are saved
    assert directory.newest_checkpoint() is None
    (directory.path / "checkpoint").mkdir()
    (directory.path / "decisions.csv").write_text("step\n")
    assert directory.newest_checkpoint() is None
    (directory.path / "checkpoint" / "step-4").mkdir()
    (directory.path / "checkpoint" / "LATEST").write_text("step-4")
    assert directory.newest_checkpoint() == directory.path / "checkpoint" / "step-4"


@pytest.mark.parametrize("num_epochs", [0, 2])
def test_a_run_that_had_saved_must_have_its_checkpoint(tmp_path, num_epochs):
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_json("metrics.json", epochs(num_epochs))
    (directory.path / "decisions.csv").write_text("step\n")
    if num_epochs:
        (directory.path / "checkpoint").mkdir()
    with pytest.raises(DataError, match=r"checkpoint must hold the newest checkpoint .* it is gone; restore"):
        directory.newest_checkpoint()
