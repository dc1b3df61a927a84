"""Runs on prepared data: as on the file that it was prepared from, without a copy of the data."""

import json
import re
import shutil

import pytest

from tests.integration.tiny_run import invoke, mistaken
from ur4rec.data import synthetic

TINY = [
    *("--preset", "smoke", "--batch-size", "64", "--quiet", "--eval-users", "50"),
    *("--epochs", "pretrain_sasrec=0", "--epochs", "pretrain_retriever=0"),
    *("--epochs", "joint_finetune=1", "--epochs", "end_to_end=0"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file, the directory prepared from it, and a run on each."""
    folder = tmp_path_factory.mktemp("prepared")
    data = synthetic(num_users=150, num_items=60)
    rows = zip(data.users_N.tolist(), data.items_N.tolist(), data.timestamps_N.tolist(), strict=True)
    lines = [f"u{user},i{item},{time},{data.titles[item]}\n" for user, item, time in rows]
    (folder / "x.csv").write_text("user,item,time,title\n" + "".join(lines))
    done = invoke("data", "prepare", folder / "x.csv", "--out", folder / "prepared", "--memory", "1MiB")
    assert done.exit_code == 0, done.stderr
    assert f"interactions of 150 users and 60 items are in {folder / 'prepared'}\n" in done.stdout
    assert re.search(r"^reading: 100%$", done.stderr, re.MULTILINE)
    for name in ("x.csv", "prepared"):
        trained = invoke("train", "--dataset", folder / name, "--out", folder / f"run-{name}", *TINY)
        assert trained.exit_code == 0, trained.stderr
    return folder


def read_json(path):
    return json.loads(path.read_text())


def test_a_run_on_prepared_data_is_one_on_the_file(folder):
    metrics = [read_json(folder / f"run-{name}" / "metrics.json") for name in ("x.csv", "prepared")]
    assert metrics[0]["final"] == metrics[1]["final"]
    facts = [read_json(folder / f"run-{name}" / "config.json")["facts"] for name in ("x.csv", "prepared")]
    for name in ("interactions_hash", "split_hash", "num_interactions", "repeated_targets"):
        assert facts[0][name] == facts[1][name]
    ranks = [(folder / f"run-{name}" / "test_ranks.csv").read_bytes() for name in ("x.csv", "prepared")]
    assert ranks[0] == ranks[1]


def test_it_keeps_where_its_data_is_and_no_copy(folder, tmp_path):
    kept = sorted(path.name for path in (folder / "run-prepared" / "data").iterdir())
    assert kept == ["encoder.safetensors", "prepared.json"]
    results = [
        json.loads(invoke("recommend", folder / f"run-{name}", "--user", "u3", "--top", "3", "--json").stdout)
        for name in ("x.csv", "prepared")
    ]
    assert results[0] == results[1]
    assert "the run's or of later interactions" in mistaken(
        "recommend", folder / "run-prepared", "--users", _users(tmp_path)
    )
    assert "unknown user 'nobody'" in mistaken("recommend", folder / "run-prepared", "--user", "nobody")


def _users(folder):
    (folder / "users.txt").write_text("u1\nnobody\n")
    return folder / "users.txt"


def test_everyone_gets_what_they_get_on_the_file_later_interactions_included(folder, tmp_path):
    (tmp_path / "later.csv").write_text("user,item,time\nnew,i1,2000000000\nu1,i2,2000000001\n")
    written = []
    for name in ("x.csv", "prepared"):
        out = tmp_path / f"{name}.jsonl"
        words = ("--all-users", "--top", "2", "--interactions", tmp_path / "later.csv", "--out", out, "--quiet")
        assert invoke("recommend", folder / f"run-{name}", *words).exit_code == 0
        written.append(out.read_text())
    assert written[0] == written[1]
    assert '"user": "new"' in written[1]


def test_data_shows_and_checks_it(folder):
    shown = [json.loads(invoke("data", folder / name, "--json").stdout) for name in ("x.csv", "prepared")]
    assert {**shown[0], "first_rows": None} == {**shown[1], "first_rows": None}
    assert invoke("data", "show", folder / "prepared", "--check").exit_code == 0
    assert "--check is for prepared data" in mistaken("data", folder / "x.csv", "--check")
    helped = invoke("data", "--help").stdout
    assert "ur4rec data FILE is short for ur4rec data show FILE" in helped
    assert "prepare" in helped
    assert "--memory" in invoke("data", "prepare", "-h").stdout
    assert "--write-user-texts" in invoke("data", "show", "-h").stdout


def test_data_that_is_gone_or_another_is_one_line(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder / "run-prepared", copy)
    reference = read_json(copy / "data" / "prepared.json")
    (copy / "data" / "prepared.json").write_text(json.dumps({**reference, "path": str(tmp_path / "gone")}))
    for command in ("evaluate", "recommend"):
        words = ("--user", "u1") if command == "recommend" else ()
        assert f"prepared data must be in {tmp_path / 'gone'}, it is not there" in mistaken(command, copy, *words)
    shutil.copytree(folder / "prepared", tmp_path / "gone")
    assert invoke("evaluate", copy).exit_code == 0
    (copy / "data" / "prepared.json").write_text(json.dumps({**reference, "contents_hash": "0"}))
    assert "must be the data of the run, 0, got" in mistaken("evaluate", copy)
