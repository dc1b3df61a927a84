"""Checkpoints: going on exactly, and refusing what does not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alternator import Cycle, Plateau, StateError
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import _checksum, _digest
from ur4rec_jax import load_model

RULE = Plateau(threshold=0.05, min_steps=2, window=4)


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
    make_model, make_trainer, batch_stream, bits, same_bits, tmp_path, joint_loss, before, after
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
    assert same_bits(bits(second), bits(whole))


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


def test_epochs_on_the_device_resume_exactly(make_model, make_trainer, loader, bits, same_bits, tmp_path):
    settings = {"rule": Cycle(2), "sasrec_lr": 1e-2, "retriever_lr": 1e-2, "on_device": True}
    whole, second = make_trainer(**settings), make_trainer(model=make_model(seed=5), **settings)
    for epoch in range(4):
        whole.train_epoch(loader, epoch)
        if epoch == 1:
            whole.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    for epoch in (2, 3):
        second.train_epoch(loader, epoch)
    assert second._alternating.state_dict() == whole._alternating.state_dict()
    assert same_bits(bits(second), bits(whole))


@pytest.fixture
def saved(make_trainer, batch_stream, tmp_path):
    trainer = make_trainer(rule=RULE)
    run(trainer, batch_stream, [("joint_finetune", 3)])
    trainer.save_checkpoint(tmp_path / "step")
    return tmp_path / "step"


def test_arrays_have_the_canonical_names_and_layout(saved):
    weights, moments = load_file(saved / "model.safetensors"), load_file(saved / "optimizer.safetensors")
    assert weights["sasrec.blocks.0.feedforward.inner.weight"].shape == (64, 16)
    assert weights["retriever.item_text_vectors"].shape[1] == 12
    assert moments["sasrec.blocks.0.feedforward.inner.weight/exp_avg"].shape == (64, 16)
    assert moments["sasrec.blocks.0.feedforward.inner.weight/step"] == 3
    assert not any(name.startswith("retriever") for name in moments)  # it has not trained
    trained = {name.partition("/")[0] for name in moments}
    assert trained == {name for name in weights if not name.startswith("retriever")}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_byte_is_refused_and_changes_nothing(make_trainer, saved, bits, same_bits, name):
    damaged = bytearray((saved / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (saved / name).write_bytes(damaged)
    trainer = make_trainer(rule=RULE)
    before = bits(trainer)
    with pytest.raises(CheckpointError, match="damaged"):
        trainer.load_checkpoint(saved)
    assert same_bits(bits(trainer), before)


def test_another_configuration_is_refused_and_changes_nothing(make_model, make_trainer, saved, bits, same_bits):
    with pytest.raises(CheckpointError, match=r"another model .sasrec_hidden_dim was 16, is 8"):
        make_trainer(model=make_model(sasrec_hidden_dim=8), rule=RULE).load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"another training configuration .sasrec_lr was 0\.001, is 0\.5"):
        make_trainer(rule=RULE, sasrec_lr=0.5).load_checkpoint(saved)
    other = make_trainer(rule=Cycle(3))
    before = bits(other)
    with pytest.raises(StateError, match="rule was 'Plateau', is 'Cycle'"):
        other.load_checkpoint(saved)
    assert same_bits(bits(other), before)
    assert other.step == 0


def rewrite(directory, name, change):
    """Change the arrays of a checkpoint."""
    arrays = dict(load_file(directory / name))
    change(arrays)
    save_file(arrays, directory / name)
    sign(directory, name)


def sign(directory, name):
    """Make the checksums those of the file as it is."""
    state = json.loads((directory / "state.json").read_text())
    del state["checksum"]
    state["sha256"][name] = _digest((directory / name).read_bytes())
    (directory / "state.json").write_text(json.dumps({**state, "checksum": _checksum(state)}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda arrays: arrays.pop("fusion.weights"), "only one of the two has fusion.weights"),
        (
            "model.safetensors",
            lambda arrays: arrays.update({"sasrec.blocks.0.attention.query.weight": np.zeros((16, 4), np.float32)}),
            r"query.weight must have the shape \(16, 16\), got \(16, 4\)",
        ),
        (
            "optimizer.safetensors",
            lambda arrays: arrays.update({"sasrec.final_norm.bias/step": np.array(9, np.float32)}),
            r"'sasrec' must have had the same number of updates, got \[3.0, 9.0\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused(make_trainer, saved, bits, same_bits, name, change, message):
    rewrite(saved, name, change)
    trainer = make_trainer(rule=RULE)
    before = bits(trainer)
    with pytest.raises(CheckpointError, match=message):
        trainer.load_checkpoint(saved)
    assert same_bits(bits(trainer), before)


def test_what_is_no_safetensors_file_is_refused(make_trainer, saved):
    (saved / "model.safetensors").write_bytes(b"not tensors")
    sign(saved, "model.safetensors")
    with pytest.raises(CheckpointError, match="must hold safetensors, got something else"):
        make_trainer(rule=RULE).load_checkpoint(saved)


def test_a_model_alone_gives_the_same_scores(make_trainer, batch_stream, tmp_path):
    trainer = make_trainer()
    run(trainer, batch_stream, [("end_to_end", 4)])
    trainer.save_checkpoint(tmp_path / "step")
    scores_BI = jax.jit(load_model(tmp_path / "step").score)(jnp.array([[3, 1, 4]]))
    np.testing.assert_allclose(scores_BI, trainer.score([[3, 1, 4]]), rtol=1e-5, atol=1e-5)
