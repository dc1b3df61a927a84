"""JAX alone: epochs on the device, and arrays that do not fit its trees."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from alternator import Cycle
from tests.backends.harness import bits, equal, schedule, snapshot, train
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import read_checkpoint, write_checkpoint


def test_epochs_on_the_device_resume_exactly(make_model, make_trainer, loader, tmp_path):
    settings = {"rule": Cycle(2), "sasrec_lr": 1e-2, "retriever_lr": 1e-2, "on_device": True}
    whole, second = make_trainer(**settings), make_trainer(model=make_model(seed=5), **settings)
    for epoch in range(4):
        whole.train_epoch(loader, epoch)
        if epoch == 1:
            whole.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    for epoch in (2, 3):
        second.train_epoch(loader, epoch)
    assert schedule(second) == schedule(whole)
    assert equal(bits(second), bits(whole))


@pytest.fixture
def saved(make_trainer, batch_stream, tmp_path):
    trainer = make_trainer(rule=Cycle(3))
    train(trainer, batch_stream(0, 3))
    trainer.save_checkpoint(tmp_path / "step")
    return tmp_path / "step"


def rewrite(directory, name, content):
    """Replace a file of a checkpoint, which is whole afterwards."""
    files, state = read_checkpoint(directory)
    del state["sha256"]
    write_checkpoint(directory, {**files, name: content}, state)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda arrays: arrays.pop("fusion.weights"), "they have no 'fusion.weights'"),
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
def test_arrays_that_do_not_fit_the_model_are_refused(make_trainer, saved, name, change, message):
    arrays = load_file(saved / name)
    change(arrays)
    rewrite(saved, name, save(arrays))
    trainer = make_trainer(rule=Cycle(3))
    before = snapshot(trainer)
    with pytest.raises(CheckpointError, match=message):
        trainer.load_checkpoint(saved)
    assert equal(snapshot(trainer), before)


def test_what_is_no_safetensors_file_is_refused(make_trainer, saved):
    rewrite(saved, "model.safetensors", b"not tensors")
    with pytest.raises(CheckpointError, match="must hold safetensors, got something else"):
        make_trainer(rule=Cycle(3)).load_checkpoint(saved)
