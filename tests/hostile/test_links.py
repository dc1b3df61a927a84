"""A run directory or a study holds files and folders: no link is followed, and nothing outside is written or read."""

import os
import shutil
import sys
from functools import partial

import pytest

from alternator.recordings.log import StepRecord, read_log, write_log
from tests.integration.tiny_run import mistaken
from tests.unit.ur4rec.compare.tiny_study import tiny_study
from ur4rec.compare.directory import StudyDirectory
from ur4rec.errors import DataError
from ur4rec.files import plain_tree
from ur4rec.runs.directory import AppendedLog, RunDirectory
from ur4rec.runs.finished import convert_run

PLACES = ["decisions.csv", ".lock", ".partial-x", "checkpoint", "checkpoint/LATEST", "checkpoint/step-1/state.json"]
PLACES += ["config.json", "metrics.json", "events", "events/wandb", "events/events.out.tfevents.1.host.1.0", "extra"]
RECORDS = [StepRecord(step, "joint", "a", "b", "steady", 0.5, 1.0, {"a": 1 / step}) for step in (1, 2)]


@pytest.fixture
def victim(tmp_path):
    """A file of somebody else, and a folder."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path):
    """The files of a run, as far as links go."""
    path = tmp_path / "run"
    for name in PLACES:
        if name not in ("checkpoint", "events", ".partial-x", ".lock", "extra"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).mkdir() if name == "events/wandb" else (path / name).write_text("{}")
    return path


def put_link(place, target):
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def contents(folder):
    return {path: path.read_text() for path in folder.rglob("*")}


@pytest.mark.parametrize("to_folder", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_a_link_in_a_run_is_refused_by_name_and_not_followed(run, victim, name, to_folder):
    RunDirectory.open_existing(run)
    put_link(run / name, victim if to_folder else victim / "precious")
    before = contents(victim)
    commands = [["train", "--resume", run], ["evaluate", run], ["recommend", run, "--user", "u1"]]
    commands += [["convert", run, "--to", "jax", "--out", run.parent / "out"]]
    for command in commands:
        message = mistaken(*command)
        expected = f"{run / name} is a symbolic link; remove it, or put what it points to in its place"
        assert expected in message or (name == "config.json" and to_folder), message
    with pytest.raises(DataError, match="is a symbolic link"), RunDirectory(run).locked():
        pass
    assert contents(victim) == before
    assert not (run.parent / "out").exists()


def test_a_pipe_is_refused(run):
    os.mkfifo(run / "decisions.pipe")
    assert "decisions.pipe is neither a file nor a folder" in mistaken("evaluate", run)


def test_the_directory_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    assert RunDirectory.open_existing(tmp_path / "link").path == tmp_path / "link"


def test_links_that_weights_and_biases_makes_are_its_own(run, tmp_path):
    (run / "refit" / "events" / "wandb").mkdir(parents=True)
    for each in (run, run / "refit"):
        (each / "events" / "wandb" / "latest-run").symlink_to(tmp_path)
    directory = RunDirectory.open_existing(run)
    with directory.locked():
        pass
    assert not {run / "events" / "wandb", run / "refit" / "events" / "wandb"} & set(directory.files())


def test_a_link_in_a_study_is_refused(tmp_path, victim):
    directory = tiny_study(tmp_path / "study")
    for name in ("costs.json", "runs", "report.md"):
        (directory.path / name).unlink(missing_ok=True)
        (directory.path / name).symlink_to(victim)
        for open_study in (StudyDirectory.reopen, lambda path: StudyDirectory.begin(path, directory.study)):
            with pytest.raises(DataError, match=rf"{name} is a symbolic link"):
                open_study(directory.path)
        (directory.path / name).unlink()
    StudyDirectory.reopen(directory.path)


def test_what_a_crash_left_is_removed_whatever_it_is(run):
    for folder in (run, run / "checkpoint"):
        (folder / ".partial-file").write_text("")
        (folder / ".partial-folder").mkdir()
        (folder / ".partial-folder" / "file").write_text("")
    with RunDirectory(run).locked():
        assert not list(run.rglob(".partial-*"))


def test_a_file_between_checkpoints_is_removed(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    (directory.path / "checkpoint").mkdir()
    (directory.path / "checkpoint" / "step-old").write_text("no checkpoint")
    with directory.new_checkpoint(1, best=True) as path:
        path.mkdir()
    assert sorted(each.name for each in (directory.path / "checkpoint").iterdir()) == ["BEST", "LATEST", "step-1"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_name_of_a_log_is_never_written_to(tmp_path, link):
    """Neither by a resumed run nor by one that begins again; a link is refused before, a second name cannot be seen."""
    backup = tmp_path / "backup.csv"
    first = AppendedLog(backup, partial(write_log, modules=("a", "b")), read_log)
    first.records += RECORDS[:1]
    first.write()
    before = backup.read_text()
    for state in (first.state_dict(), None):
        link(backup, tmp_path / "log.csv")
        log = AppendedLog(tmp_path / "log.csv", first._to_lines, read_log)
        if state is not None:
            log.load_state_dict(state)
        log.records.append(RECORDS[1])
        log.write()
        log.records.append(RECORDS[1])
        log.write()
        assert backup.read_text() == before
        assert read_log(log.path.read_text()) == log.records
        log.path.unlink()


def test_overwrite_removes_links_of_weights_and_biases_and_not_what_they_point_to(run, victim):
    (run / "events" / "wandb" / "latest-run").symlink_to(victim)
    RunDirectory.create(run, overwrite=True)
    assert [each.name for each in run.iterdir()] == [".lock"]
    assert (victim / "precious").exists()


def test_a_conversion_copies_files_and_nothing_hidden(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ur4rec.runs.finished.check_settings", lambda *_: None)  # the checkpoint here is no real one
    (run / "config.json").write_text('{"dataset": "synthetic", "backend": "torch", "schedule": "joint"}')
    monkeypatch.setattr("ur4rec.runs.finished.load_backend", lambda name: type("", (), {"load_model": str}))
    monkeypatch.setattr(RunDirectory, "require_checkpoint", lambda self, which: self.path)
    (run / ".partial-x").mkdir()
    (run / ".partial-x" / "file").write_text("")
    (run / "decisions.csv").chmod(0o4777)
    convert_run(RunDirectory.open_existing(run), "jax", tmp_path / "out")
    there = {path.relative_to(run) for path in run.rglob("*")}
    hidden = {path for path in there if path.parts[0] == ".partial-x" or path.match("events/wandb")}
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")} == there - hidden
    assert (tmp_path / "out" / "decisions.csv").stat().st_mode & 0o7777 == 0o666 & ~umask()


def umask():
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_deep_tree_is_walked(tmp_path):
    """Deeper than Python may recurse."""
    folders = [str(tmp_path / "/".join("d" * depth)) for depth in range(1, sys.getrecursionlimit() + 100)]
    try:
        for folder in folders:
            os.mkdir(folder)
        assert sum(1 for _ in plain_tree(tmp_path)) == len(folders)
    finally:  # or whoever cleans up recurses
        for folder in reversed(folders):
            os.rmdir(folder)


def test_a_link_to_a_log_is_not_replayed(tmp_path, victim, capsys):
    from alternator.cli import main

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "decisions.csv").symlink_to(victim / "precious")
    assert main(["replay", str(tmp_path / "run")]) == 2
    assert "the log in a directory must be a file of its own" in capsys.readouterr().err
