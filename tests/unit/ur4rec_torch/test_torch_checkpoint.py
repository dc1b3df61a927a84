"""Checkpoints: going on exactly, and refusing what does not fit."""

import json
import shutil

import pytest
import torch

from alternator import Cycle, Plateau, StateError
from ur4rec.errors import CheckpointError
from ur4rec_torch.checkpoint import load_model

RULE = Plateau(threshold=0.05, min_steps=2, window=4)


def states(trainer):
    """Weights, moments and decisions: all that a resumed run must share with one that was never stopped."""
    moments = {
        f"{name}/{index}/{key}": value
        for name, optimizer in trainer._optimizers.items()
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    return trainer.model.state_dict() | moments


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def run(trainer, stream, plan):
    """Train through (stage, steps); a stage of None goes on with the present one."""
    position = trainer.step
    for stage, steps in plan:
        if stage is not None:
            trainer.set_training_stage(stage, num_steps=20)
        for batch in stream(position, steps):
            trainer.train_step(batch)
        position += steps
    trainer._log.flush()


@pytest.mark.parametrize("joint_loss", ["separate", "fused"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("pretrain_sasrec", 3)], [(None, 2), ("joint_finetune", 12)]),
        ([("pretrain_retriever", 2), ("joint_finetune", 7)], [(None, 12)]),
        ([("joint_finetune", 1)], [(None, 9), ("end_to_end", 3)]),
        ([("joint_finetune", 9), ("end_to_end", 3)], [(None, 4)]),
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    make_model, make_trainer, batch_stream, tmp_path, joint_loss, before, after
):
    whole_records, parts_records = [], []
    settings = {"joint_loss": joint_loss, "rule": RULE, "sasrec_lr": 1e-2, "retriever_lr": 1e-2}
    whole = make_trainer(on_step=whole_records.append, **settings)
    run(whole, batch_stream, before + after)
    first = make_trainer(on_step=parts_records.append, **settings)
    run(first, batch_stream, before)
    first.save_checkpoint(tmp_path / "step", epoch=3, metrics={"ndcg@10": 0.1})
    second = make_trainer(model=make_model(seed=5), on_step=parts_records.append, **settings)
    assert second.load_checkpoint(tmp_path / "step") == {"epoch": 3, "metrics": {"ndcg@10": 0.1}}
    run(second, batch_stream, after)
    assert parts_records == whole_records
    assert second.alternator.state_dict() == whole.alternator.state_dict()
    assert_equal(states(second), states(whole))


def test_an_epoch_resumed_in_its_middle_gives_the_metrics_of_a_whole_one(make_model, make_trainer, loader, tmp_path):
    whole = make_trainer(rule=RULE).train_epoch(loader, epoch=1)
    first = make_trainer(rule=RULE)
    places = iter(range(1, len(loader)))

    def save_and_stop():
        first.save_checkpoint(tmp_path / "step")
        return next(places) == 3

    assert first.train_epoch(loader, epoch=1, after_step=save_and_stop)["steps"] == first.step == 3
    second = make_trainer(model=make_model(seed=5), rule=RULE)
    second.load_checkpoint(tmp_path / "step")
    assert second.train_epoch(loader, epoch=1, start=3) == whole
    assert whole["steps"] == len(loader) > 3


def test_saving_disturbs_nothing(make_trainer, batch_stream, tmp_path):
    quiet, saved = make_trainer(rule=RULE), make_trainer(rule=RULE)
    run(quiet, batch_stream, [("joint_finetune", 10)])
    saved.set_training_stage("joint_finetune", num_steps=20)
    for batch in batch_stream(0, 10):
        saved.train_step(batch)
        saved.model.eval()
        saved.save_checkpoint(tmp_path / "step")
    assert_equal(states(quiet), states(saved))


def test_a_checkpoint_is_three_files_without_pickle(make_trainer, tmp_path):
    make_trainer().save_checkpoint(tmp_path / "step", epoch=1)
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    assert json.loads((tmp_path / "step" / "state.json").read_text())["progress"]["epoch"] == 1


@pytest.fixture
def saved(make_trainer, batch_stream, tmp_path):
    trainer = make_trainer(rule=RULE)
    run(trainer, batch_stream, [("joint_finetune", 3)])
    trainer.save_checkpoint(tmp_path / "step")
    return tmp_path / "step"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_byte_anywhere_is_refused(make_trainer, saved, name):
    content = (saved / name).read_bytes()
    trainer = make_trainer(rule=RULE)
    before = states(trainer)
    for place in range(0, len(content), max(len(content) // 7, 1)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (saved / name).write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            trainer.load_checkpoint(saved)
        assert "\n" not in str(error.value)
    assert_equal(states(trainer), before)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_refused(make_trainer, saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(No such file"):
        make_trainer(rule=RULE).load_checkpoint(saved)


def test_a_truncated_file_and_a_missing_directory_are_refused(make_trainer, saved):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        make_trainer(rule=RULE).load_checkpoint(saved)
    shutil.rmtree(saved)
    with pytest.raises(CheckpointError, match="cannot be read"):
        make_trainer(rule=RULE).load_checkpoint(saved)


def test_another_version_is_refused(make_trainer, saved):
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "version": 99}))
    with pytest.raises(CheckpointError, match="must be of version 3, got 99"):
        make_trainer(rule=RULE).load_checkpoint(saved)


def test_another_configuration_is_refused_and_changes_nothing(make_model, make_trainer, saved):
    other = make_trainer(model=make_model(sasrec_hidden_dim=8), rule=RULE)
    with pytest.raises(CheckpointError, match=r"another model .sasrec_hidden_dim was 16, is 8"):
        other.load_checkpoint(saved)
    other = make_trainer(rule=RULE, sasrec_lr=0.5)
    before = states(other)
    with pytest.raises(CheckpointError, match=r"another training configuration .sasrec_lr was 0\.001, is 0\.5"):
        other.load_checkpoint(saved)
    other = make_trainer(rule=Cycle(3))
    with pytest.raises(StateError, match="rule was 'Plateau', is 'Cycle'"):
        other.load_checkpoint(saved)
    assert_equal(states(other), before)
    assert other.step == 0


def test_a_model_alone_gives_the_same_scores(make_trainer, batch_stream, tmp_path):
    trainer = make_trainer()
    run(trainer, batch_stream, [("end_to_end", 4)])
    trainer.save_checkpoint(tmp_path / "step")
    model = load_model(tmp_path / "step")
    with torch.no_grad():
        scores_BI = model(torch.tensor([[3, 1, 4]])).numpy()
    assert (scores_BI == trainer.score([[3, 1, 4]])).all()
