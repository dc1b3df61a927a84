"""A damaged checkpoint is refused with one line by every command that reads it, in both backends."""

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.integration.tiny_run import invoke, mistaken
from ur4rec.training.backend import BACKENDS
from ur4rec.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, read_checkpoint, write_checkpoint

FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)


@pytest.fixture(scope="session")
def runs(run, tmp_path_factory):
    """The tiny run of each backend: the other one's is a conversion."""
    converted = tmp_path_factory.mktemp("converted") / "jax"
    assert invoke("convert", run[0], "--to", "jax", "--out", converted).exit_code == 0
    return {"torch": run[0], "jax": converted}


@pytest.fixture(params=BACKENDS)
def copy(request, runs, tmp_path):
    """A copy of a run, to damage."""
    shutil.copytree(runs[request.param], tmp_path / "copy")
    return tmp_path / "copy"


def checkpoints(copy):
    return sorted((copy / "checkpoint").glob("step-*"))


def refused(copy, message):
    """Whether going on, evaluation and recommendation say so in one line, and leave everything as it is."""
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file() and file.name != ".lock"}
    for command in (["train", "--resume", copy], ["evaluate", copy], ["recommend", copy, "--user", "u1"]):
        assert message in mistaken(*command)
    assert before == {file: file.read_bytes() for file in copy.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_byte_is_refused(copy, name, place):
    for checkpoint in checkpoints(copy):
        content = bytearray((checkpoint / name).read_bytes())
        content[int(place * len(content))] ^= 1
        (checkpoint / name).write_bytes(content)
    refused(copy, f"{name} is damaged")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    for checkpoint in checkpoints(copy):
        (checkpoint / name).unlink()
    refused(copy, f"{name} cannot be read (No such file or directory)")


def test_another_version_is_refused(copy):
    for checkpoint in checkpoints(copy):
        state = json.loads((checkpoint / STATE_FILE).read_text())
        (checkpoint / STATE_FILE).write_text(json.dumps({**state, "version": 99}))
    refused(copy, "must be of version 3, got 99")


def test_a_pickle_is_refused(copy):
    for checkpoint in checkpoints(copy):
        (checkpoint / MODEL_FILE).write_bytes(pickle.dumps({"weights": [1.0]}))
    refused(copy, f"{MODEL_FILE} is damaged")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(copy, tmp_path, value):
    for checkpoint in checkpoints(copy):
        arrays, state = read_checkpoint(checkpoint)
        weights = load(arrays[MODEL_FILE])
        weights["retriever.queries.weight"].flat[3] = value
        state.pop("sha256")
        write_checkpoint(checkpoint, {**arrays, MODEL_FILE: save(weights)}, state)
    message = f"weights must be finite, got {value} in 'retriever.queries.weight'"
    refused(copy, message)
    assert message in mistaken("convert", copy, "--to", "torch", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_refused_even_with_its_checksum(copy):
    for checkpoint in checkpoints(copy):
        arrays, state = read_checkpoint(checkpoint)
        state.pop("sha256")
        write_checkpoint(checkpoint, {**arrays, MODEL_FILE: pickle.dumps({"weights": [1.0]})}, state)
    refused(copy, "must hold safetensors, got something else")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "the checkpoint is of another training configuration (seed was 0, is 1)"),
        ({"batch_size": 64}, "the checkpoint is of another run (batch_size was 128, is 64)"),
        ({"schedule": "parity"}, "the checkpoint is of another run (schedule was 'payoff', is 'parity')"),
    ],
)
def test_another_configuration_does_not_go_on(copy, changes, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    assert message in mistaken("train", "--resume", copy)
