"""What is said of a damaged checkpoint: whether there is another to take, and how."""

import shutil

import numpy as np
import pytest

from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    _check_finite,
    read_checkpoint,
    write_checkpoint,
)

ALONE = "; restore it, or train again: no other checkpoint is beside it"
HOW = "by --checkpoint, or for --resume by its name in the file LATEST"
FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint" / "step-7"
    parts = {name: {} for name in ("model", "trainer", "progress", "schedule", "metrics")}
    write_checkpoint(path, {MODEL_FILE: b"weights", OPTIMIZER_FILE: b"moments"}, parts)
    (path.parent / "LATEST").write_text("step-7\n")
    (path.parent / "texts-0123456789abcdef.safetensors").touch()
    return path


def refused(path):
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_there", [True, False])
def test_the_remedy_is_another_checkpoint_only_if_there_is_one(path, name, is_there, monkeypatch):
    if is_there:
        (path / name).write_bytes((path / name).read_bytes() + b"x")
    else:
        (path / name).unlink()
    assert refused(path).endswith(ALONE)
    shutil.copytree(path, path.with_name("step-14"), ignore=lambda *_: {name})
    (path.with_name("step-14") / STATE_FILE).touch()
    another = f"; restore it, or take another checkpoint, of which 'step-14' is beside it: {HOW}"
    assert refused(path).endswith(another)
    monkeypatch.chdir(path)
    assert refused(".").endswith(another)
    shutil.copytree(path.with_name("step-14"), path.with_name("step-9"))
    assert f"of which 'step-14', 'step-9' are beside it: {HOW}" in refused(path)


def test_weights_that_are_not_finite_are_not_to_be_restored(path):
    with pytest.raises(CheckpointError, match=r"; train again with a lower learning rate$"):
        _check_finite(path / MODEL_FILE, {"a": np.array([np.nan])})
    shutil.copytree(path, path.with_name("step-14"))
    with pytest.raises(
        CheckpointError, match="with a lower learning rate, or take another checkpoint, of which 'step-1"
    ):
        _check_finite(path / MODEL_FILE, {"a": np.array([np.nan])})


def test_a_path_without_a_checkpoint_is_told_what_one_is(tmp_path):
    assert refused(tmp_path / "none").endswith("state.json cannot be read (No such file or directory)")
