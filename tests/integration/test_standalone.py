"""A run stands alone: with its own copy of the data, whatever becomes of the file that it was trained on."""

import json
import shutil

import pytest

from tests.integration.tiny_run import invoke, mistaken

EPOCHS = [
    "--epochs=pretrain_sasrec=1",
    "--epochs=pretrain_retriever=0",
    "--epochs=joint_finetune=1",
    "--epochs=end_to_end=0",
]
SMALL = [
    "--preset",
    "smoke",
    "--encoder",
    "tfidf",
    "--quiet",
    "--set",
    "text_embedding_dim=8",
    "--set",
    "max_seq_len=6",
]


def write_plays(folder, num_users=20, rows=()):
    plays = [
        f"{user:03},i{(user * 5 + step * (1 + user % 3)) % 12},{step}" for user in range(num_users) for step in range(7)
    ]
    (folder / "plays.csv").write_text("\n".join(["user,item,timestamp", *plays, *rows]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and the folder in which its data was."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_plays(folder)
        done = invoke("train", "--dataset", "plays.csv", *SMALL, *EPOCHS, "--out", "run")
        assert done.exit_code == 0, done.stderr
    return folder


@pytest.mark.parametrize("becomes", ["gone", "grown", "elsewhere"])
def test_it_works_whatever_becomes_of_the_data(trained, tmp_path, monkeypatch, becomes):
    shutil.copytree(trained / "run", tmp_path / "run")
    if becomes == "grown":
        write_plays(trained, 25, ["000,new,99"])
    elif becomes == "gone":
        (trained / "plays.csv").unlink()
    monkeypatch.chdir(tmp_path)
    saved = json.loads((tmp_path / "run/metrics.json").read_text())["final"]["fused"]["test"]
    assert json.loads(invoke("evaluate", "run", "--json").stdout)["fused"] == saved
    assert len(json.loads(invoke("recommend", "run", "--user", "007", "--top", 3, "--json").stdout)) == 3
    resumed = invoke("train", "--resume", "run", "--quiet")
    assert resumed.exit_code == 0, resumed.stderr
    assert invoke("convert", "run", "--to", "jax", "--out", "jax").exit_code == 0
    assert json.loads(invoke("recommend", "jax", "--user", "007", "--top", 3, "--json").stdout)


def test_its_paths_hold_from_anywhere_and_its_data_never_changes(trained, tmp_path):
    config = json.loads((trained / "run/config.json").read_text())
    assert config["dataset"] == str(trained / "plays.csv")
    assert len(config["facts"]["data_hash"]) == 64
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoint")  # and what a run has only once it has saved one
    for name in ("decisions.csv", "metrics.json"):
        (tmp_path / "run" / name).unlink()
    before = {path.name: path.stat() for path in (tmp_path / "run/data").iterdir()}
    assert sorted(before) == ["encoder.safetensors", "interactions.parquet", "items.parquet", "users.parquet"]
    assert invoke("train", "--resume", tmp_path / "run", "--quiet").exit_code == 0  # from the beginning
    after = {path.name: path.stat() for path in (tmp_path / "run/data").iterdir()}
    assert {name: (each.st_ino, each.st_mtime_ns) for name, each in after.items()} == {
        name: (each.st_ino, each.st_mtime_ns) for name, each in before.items()
    }


def test_another_run_s_data_is_refused(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    write_plays(tmp_path, 21)
    assert (
        invoke("train", "--dataset", tmp_path / "plays.csv", *SMALL, *EPOCHS, "--out", tmp_path / "other").exit_code
        == 0
    )
    shutil.rmtree(tmp_path / "run/data")
    shutil.copytree(tmp_path / "other/data", tmp_path / "run/data")
    for command in (["evaluate"], ["recommend", "--user", "007"], ["train", "--quiet", "--resume"]):
        assert "the data must be the run's, but its interactions_hash" in mistaken(*command, tmp_path / "run")
