"""A run whose preset leaves settings to the data: what is decided, where it is kept, and that it is decided once."""

import json

import pytest

from ur4rec.data import synthetic
from ur4rec.runs.config import RunConfig, read_config
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import prepare_data, read_data
from ur4rec.runs.presets import preset
from ur4rec.runs.run import Stopped, TrainingRun, read_resumable
from ur4rec.runs.sizes import FROM_DATA, choose

SMALL = {
    "epochs": {"pretrain_sasrec": 1, "pretrain_retriever": 0, "joint_finetune": 1},
    "model": {"sasrec_hidden_dim": 8, "text_embedding_dim": 8, "retriever_num_queries": 2},
}
GIVEN = {"sasrec_hidden_dim", "pretrain_sasrec", "pretrain_retriever", "joint_finetune"}


pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture(scope="module")
def interactions():
    return synthetic(num_users=60, num_items=40, num_clusters=4, mean_length=16)


@pytest.fixture
def make_run(backend, interactions, tmp_path):
    def make(config, name="run"):
        return TrainingRun(
            config, prepare_data(config, interactions), RunDirectory.create(tmp_path / name), progress=False
        )

    config = preset(
        "default", dataset="synthetic", encoder="tfidf", backend=backend.name, device="cpu", schedule="parity", **SMALL
    )
    return lambda changes=None, name="run": make(RunConfig(**{**vars(config), **(changes or {})}), name)


def test_what_the_data_decides_is_used_said_and_kept(make_run):
    run = make_run()
    run.train()
    found = {choice.name: choice.value for choice in run.choices}
    assert set(found) == set(FROM_DATA) - GIVEN
    expected = choose(run.prepared.counts, {**SMALL["model"], **SMALL["epochs"]}, set(found))
    assert run.choices == expected
    assert run.prepared.model.max_seq_len == run.prepared.train.max_seq_len == found["max_seq_len"] == 24
    assert run.prepared.train.batch_size == found["batch_size"] == 32
    assert run.trainer.config.sasrec_lr == found["sasrec_lr"]
    assert [row["stage"] for row in run.epochs] == ["pretrain_sasrec", "joint_finetune"]
    kept = read_config(run.directory)
    assert kept == run.config
    assert kept.from_data == ()
    assert kept.model["max_seq_len"] == 24
    assert kept.epochs["end_to_end"] == found["end_to_end"]


def test_a_run_that_is_resumed_decides_nothing_again(make_run, monkeypatch):
    whole = make_run(name="whole")
    whole.train()
    run = make_run()
    with pytest.raises(Stopped):
        run.train(stop=lambda: run.trainer.step >= 2)
    monkeypatch.setattr("ur4rec.runs.sizes.LENGTHS", (8,))  # the rules have changed since
    monkeypatch.setattr("ur4rec.runs.sizes.LEARNING_RATES", {0.5: 0})
    config = read_resumable(run.directory)
    again = TrainingRun(config, prepare_data(config, read_data(run.directory, config)), run.directory, progress=False)
    assert again.choices == ()
    again.resume()
    again.train()
    for name in ("decisions.csv", "test_ranks.csv"):
        assert (run.directory.path / name).read_bytes() == (whole.directory.path / name).read_bytes()


def test_a_run_of_before_resumes_with_the_settings_that_it_had(make_run):
    run = make_run({"from_data": ()})  # the defaults, as "default" was
    with pytest.raises(Stopped):
        run.train(stop=lambda: run.trainer.step >= 1)
    path = run.directory.path / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("from_data") == []
    path.write_text(json.dumps(content))
    config = read_resumable(run.directory)
    again = TrainingRun(config, prepare_data(config, read_data(run.directory, config)), run.directory, progress=False)
    again.resume()
    again.train()
    assert again.prepared.model.max_seq_len == 50
    assert again.config.batch_size == 128
    assert again.trainer.config.retriever_lr == 1e-4
