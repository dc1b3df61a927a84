"""What can be found wrong without the data is said before the data is read, and leaves nothing behind."""

import dataclasses
import os

import pytest

from tests.integration.tiny_run import invoke, mistaken
from tests.unit.ur4rec.compare.tiny_study import tiny_study
from ur4rec.compare.directory import StudyDirectory

BACKENDS = ("torch", "jax")
PLACES = {
    "--device=cudax": "device must be auto, cpu, cuda",
    "--device=cuda:99": "device must be one of this machine, got 'cuda:99', but",
    "--mesh=data=99": "mesh must have as many devices as there are, ",
    "--mesh=dat=1": "mesh must be such as 'data=4,items=2' (data, items, or both), got 'dat=1'",
}


@pytest.fixture
def unreadable(tmp_path, monkeypatch):
    """A dataset that cannot be read, in the working directory; names what is said of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("user,item,timestamp\nu,i,yesterday\n")
    return "x.csv:2, column 'timestamp': must be a finite number"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", PLACES)
def test_the_place_of_a_run_is_checked_before_its_data(unreadable, tmp_path, backend, place):
    pytest.importorskip(backend)
    assert PLACES[place] in mistaken("train", "--dataset", "x.csv", "--out", "run", "--backend", backend, place)
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv"}


def test_the_directory_of_a_run_is_checked_before_its_data(unreadable, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    refused = {
        ("full",): "--out must be empty, full is not",
        ("full", "--overwrite"): "--overwrite removes only a run directory",
        ("x.csv",): "--out must be a directory, x.csv is a file",
        ("x.csv/a/b",): "--out must be writable, x.csv/a/b is not: ",
    }
    for words, message in refused.items():
        assert message in mistaken("train", "--dataset", "x.csv", "--out", *words)
    assert unreadable in mistaken("train", "--dataset", "x.csv", "--out", "a/b", "--quiet")
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv", "full"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_to(unreadable, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked may not be written to" in mistaken("train", "--dataset", "x.csv", "--out", "locked/run")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_device_of_a_study_is_checked_before_its_data_and_nothing_is_left(unreadable, tmp_path, backend):
    pytest.importorskip(backend)
    words = ("compare", "--dataset", "x.csv", "--updates", "20", "--backend", backend, "--out", "study", "--quiet")
    assert "device must be auto, cpu, cuda" in mistaken(*words, "--device", "cudax")
    assert unreadable in mistaken(*words)  # not that a study of another device is there
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv"}


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (("recommend", "run", "--user", "u", "--top", "abc"), "--top", "abc"),
        (("compare", "--seeds", "0", "x", "--out", "study"), "--seeds", "x"),
        (("data", "x.csv", "--k-core", "many"), "--k-core", "many"),
        (("data", "x.csv", "--order", "any"), "--order", "any"),
    ],
)
def test_a_value_that_cannot_be_read_is_said(words, option, value):
    result = invoke(*words)
    said = " ".join(result.stderr.replace("\u2502", " ").split())
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in said
    assert said.count(f"'{value}'") == 1


def test_a_study_is_continued_with_what_was_given_alone(tmp_path):
    directory = tiny_study(tmp_path / "study", arms=("parity",), updates=40, eval_every=20)
    line = mistaken("compare", "--out", directory.path, "--updates", "30")
    assert "holds a study with updates=40, got 30; leave out --updates, or choose another directory" in line
    line = mistaken("compare", directory.path, "--updates", "10")
    assert "holds a study with updates=40, got 10; leave out --updates" in line
    line = mistaken("compare", directory.path, "--set", "max_seq_len=7")
    assert "got {'max_seq_len': 7}; leave out --set" in line
    again = invoke("compare", "--out", directory.path, "--updates", "40", "--arms", "joint", "--report-only")
    assert "has no finished run of parity yet" in " ".join(again.output.split())
    extended = dataclasses.replace(directory.study, arms=("parity", "joint"))
    assert StudyDirectory.reopen(directory.path).study == extended
