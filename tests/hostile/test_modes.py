"""Who may read and write what is made: the user's umask decides, and a cache that others can write is refused."""

import os
import stat
from functools import partial

import numpy as np
import pytest

from alternator.recordings.log import StepRecord, read_log, write_log
from tests.unit.ur4rec.compare.tiny_study import tiny_study
from ur4rec.compare.report import render_page
from ur4rec.compare.runner import RunKey
from ur4rec.data.fetch import _store
from ur4rec.data.sources import load_dataset
from ur4rec.errors import CacheError
from ur4rec.files import write_whole
from ur4rec.runs.directory import AppendedLog, RunDirectory
from ur4rec.runs.plot import plot_schedule
from ur4rec.text.encoders import encode_items
from ur4rec.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, write_checkpoint

RECORD = StepRecord(1, "joint", "a", "b", "steady", 0.5, 1.0, {"a": 1.0})
pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def assert_by_umask(folder, umask):
    found = modes(folder)
    assert len(found) > 1
    for path, mode in found.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, (path, oct(mode))


def test_a_run_is_written_with_the_umask(tmp_path, umask):
    directory = RunDirectory.create(tmp_path / "runs" / "run")
    log = AppendedLog(directory.path / "decisions.csv", partial(write_log, modules=("a", "b")), read_log)
    with directory.locked():
        directory.write_json("config.json", {})
        directory.write_csv("test_ranks.csv", {"user": []})
        with directory.new_checkpoint(1, best=True) as path:
            write_checkpoint(path, {MODEL_FILE: b"", OPTIMIZER_FILE: b""}, {})
        for _ in range(2):
            log.records.append(RECORD)
            log.write()
        plot_schedule(directory.path / "schedule.png", [], (), [], "")
    (directory.path / ".lock").unlink(missing_ok=True)  # an empty file of filelock's
    assert_by_umask(tmp_path, umask)


def test_a_study_is_written_with_the_umask(tmp_path, umask):
    directory = tiny_study(tmp_path / "study")
    directory.write_run(RunKey("parity", 0, "cost"), {"best": None}, {"losses_SM": np.zeros((1, 2))})
    write_whole(directory.path / "report.html", render_page("# x", {}).encode())
    assert_by_umask(tmp_path, umask)


def test_a_cache_is_written_with_the_umask_and_by_nobody_else(tmp_path, umask):
    cache = tmp_path / "new" / "cache"
    encode_items(["a", "b"], encoder="tfidf", dim=4, cache_dir=cache)
    _store(cache / "data" / "ml-100k", {"x": b"y"}, "here")
    for path, mode in modes(cache).items():
        assert mode & umask == 0
        assert not path.is_file() or mode == 0o666 & ~umask
    for folder in (cache, cache / "text"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755 & ~umask
    encode_items(["a", "b"], encoder="tfidf", dim=4, cache_dir=cache)  # what is made here is not refused here


def encode(cache):
    encode_items(["a", "b"], encoder="tfidf", dim=4, cache_dir=cache)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
@pytest.mark.parametrize("name", ["", "text", "data"])
def test_a_cache_that_others_can_write_is_refused(tmp_path, mode, name):
    folder = tmp_path / "cache" / name
    folder.mkdir(parents=True)
    (tmp_path / "cache").chmod(0o755)
    folder.chmod(mode)
    used = (lambda cache: load_dataset("ml-100k", cache_dir=cache)) if name == "data" else encode
    with pytest.raises(CacheError, match=rf"with mode {mode:o}; chmod go-w it if it is yours, or choose another"):
        used(tmp_path / "cache")
    assert not [path for path in folder.rglob("*") if path.is_file()]
    folder.chmod(mode & 0o755)
    if used is encode:
        encode(tmp_path / "cache")


def test_a_group_counts_unless_it_is_the_users_own(tmp_path, monkeypatch):
    import grp
    import pwd

    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o775)
    entry = grp.getgrgid(folder.stat().st_gid)
    user = pwd.getpwuid(os.geteuid()).pw_name

    def group(name, members):
        found = grp.struct_group((name, "x", entry.gr_gid, members))
        monkeypatch.setattr("grp.getgrgid", lambda gid: found)

    for name, members in (("team", []), (user, [user, "somebody"])):
        group(name, members)
        with pytest.raises(CacheError, match="with mode 775"):
            encode(folder)
    group(user, [user])
    encode(folder)
    monkeypatch.setattr("grp.getgrgid", lambda gid: {}[gid])
    with pytest.raises(CacheError, match="with mode 775"):
        encode(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_refused(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o755)
    os.chown(tmp_path / "cache", 12345, -1)
    with pytest.raises(CacheError, match="is of user 12345 with mode 755"):
        encode(tmp_path / "cache")
