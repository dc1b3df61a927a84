"""Checkpoints: resuming exactly, and refusing what does not fit."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from alternator import Cycle, Plateau, StateError
from tests.backends.harness import equal, snapshot, train
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import (
    MODEL_FILE,
    STATE_FILE,
    check_settings,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from ur4rec.training.shapes import ITEM_TEXTS

RULE = Plateau(threshold=0.05, min_steps=2, window=4)
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def run(trainer, stream, plan):
    """Train through (stage, steps); a stage of None continues the present one."""
    position = trainer.step
    for stage, steps in plan:
        if stage is not None:
            trainer.set_training_stage(stage, num_steps=20)
        for batch in stream(position, steps):
            trainer.train_step(batch)
        position += steps
    trainer.flush()


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
    assert equal(snapshot(second), snapshot(whole))


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


def test_saving_disturbs_nothing(backend, make_trainer, batch_stream, tmp_path):
    quiet, saved = make_trainer(rule=RULE), make_trainer(rule=RULE)
    run(quiet, batch_stream, [("joint_finetune", 10)])
    saved.set_training_stage("joint_finetune", num_steps=20)
    for batch in batch_stream(0, 10):
        saved.train_step(batch)
        backend.to_inference_mode(saved)
        saved.save_checkpoint(tmp_path / "step")
    assert equal(snapshot(quiet), snapshot(saved))


def test_a_checkpoint_is_three_files_without_pickle(make_trainer, tmp_path):
    make_trainer().save_checkpoint(tmp_path / "step", epoch=1)
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    assert json.loads((tmp_path / "step" / "state.json").read_text())["progress"]["epoch"] == 1


@pytest.fixture(scope="module")
def written(make_trainer, batch_stream, tmp_path_factory):
    """A checkpoint that is only read."""
    directory = tmp_path_factory.mktemp("checkpoint") / "step"
    trainer = make_trainer(rule=RULE)
    run(trainer, batch_stream, [("joint_finetune", 3)])
    trainer.save_checkpoint(directory)
    return directory


@pytest.fixture
def saved(written, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(written, tmp_path / "step")


def test_arrays_have_the_canonical_names_and_layout(backend, make_model, written):
    weights, moments = load_file(written / "model.safetensors"), load_file(written / "optimizer.safetensors")
    assert weights.keys() == backend.weights(make_model()).keys()
    assert weights["sasrec.blocks.0.feedforward.inner.weight"].shape == (64, 16)
    assert weights["retriever.item_text_vectors"].shape[1] == 12
    assert moments["sasrec.blocks.0.feedforward.inner.weight/exp_avg"].shape == (64, 16)
    assert moments["sasrec.blocks.0.feedforward.inner.weight/step"] == 3
    trained = {name.partition("/")[0] for name in moments}
    assert trained == {name for name in weights if not name.startswith("retriever")}  # which has not trained


def says_the_same(one, other):
    """Whether JSON has the same values."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_anywhere_is_refused(make_trainer, saved, name):
    content = (saved / name).read_bytes()
    trainer = make_trainer(rule=RULE)
    before = snapshot(trainer)
    for place in range(0, len(content), max(len(content) // 7, 1)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        if name == STATE_FILE and says_the_same(damaged, content):
            damaged[place] ^= 8  # a last digit was beyond the precision of its float
        (saved / name).write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            trainer.load_checkpoint(saved)
        assert "\n" not in str(error.value)
        assert "damaged" in str(error.value)
    assert equal(snapshot(trainer), before)


@pytest.mark.parametrize("name", FILES)
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


def test_another_configuration_is_refused_and_changes_nothing(make_model, make_trainer, written):
    other = make_trainer(model=make_model(sasrec_hidden_dim=8), rule=RULE)
    with pytest.raises(CheckpointError, match=r"another model .sasrec_hidden_dim was 16, is 8"):
        other.load_checkpoint(written)
    for settings, error, message in (
        (
            {"rule": RULE, "sasrec_lr": 0.5},
            CheckpointError,
            r"another training configuration .sasrec_lr was 0\.001, is 0\.5",
        ),
        ({"rule": Cycle(3)}, StateError, "rule was 'Plateau', is 'Cycle'"),
    ):
        other = make_trainer(**settings)
        before = snapshot(other)
        with pytest.raises(error, match=message):
            other.load_checkpoint(written)
        assert equal(snapshot(other), before)
        assert other.step == 0


def test_a_checkpoint_from_before_some_settings_has_their_defaults(make_model, make_trainer, written, tmp_path):
    newer = (
        "label_smoothing",
        "sasrec_block",
        "sasrec_embedding_dropout",
        "sasrec_embedding_scale",
        "sasrec_item_init",
    )
    arrays, state = read_checkpoint(written)
    settings = {**state["model"], **state["trainer"]}
    assert {*newer} <= settings.keys()
    for part in ("model", "trainer"):
        state[part] = {name: value for name, value in state[part].items() if name not in newer}
    write_checkpoint(tmp_path / "older", arrays, {name: each for name, each in state.items() if name != "sha256"})
    trainer = make_trainer(rule=RULE)
    check_settings(tmp_path / "older", trainer.model.config, trainer.config)
    trainer.load_checkpoint(tmp_path / "older")
    assert trainer.step == 3
    others = {"label_smoothing": make_trainer(rule=RULE, label_smoothing=0.1)}
    others["sasrec_embedding_scale"] = make_trainer(rule=RULE, model=make_model(sasrec_embedding_scale=True))
    for name, other in others.items():
        with pytest.raises(CheckpointError, match=f"{name} was (0.0, is 0.1|False, is True)"):
            other.load_checkpoint(tmp_path / "older")


def test_a_model_alone_gives_the_same_scores(backend, make_trainer, batch_stream, tmp_path):
    trainer = make_trainer()
    run(trainer, batch_stream, [("end_to_end", 4)])
    trainer.save_checkpoint(tmp_path / "step")
    scores_BI = backend.call(backend.package.load_model(tmp_path / "step").score, [[3, 1, 4]])
    np.testing.assert_allclose(scores_BI, trainer.score([[3, 1, 4]]), **backend.same_scores)


def test_checkpoints_share_one_file_of_text_vectors(backend, make_trainer, batch_stream, tmp_path):
    """Saved twice, the texts once; whatever loads one alone says which file is missing."""
    trainer, other = make_trainer(), make_trainer()
    trainer.save_checkpoint(tmp_path / "run" / "step-0", shares_texts=True)
    (texts,) = tmp_path.glob("run/texts-*.safetensors")
    written = texts.stat().st_mtime_ns, texts.stat().st_ino
    train(trainer, batch_stream(0, 3))
    trainer.save_checkpoint(tmp_path / "run" / "step-3", shares_texts=True)
    assert [texts] == list(tmp_path.glob("run/texts-*"))
    assert written == (texts.stat().st_mtime_ns, texts.stat().st_ino)
    assert not set(load_file(tmp_path / "run" / "step-3" / MODEL_FILE)) & {ITEM_TEXTS}
    trainer.save_checkpoint(tmp_path / "alone")
    expected, found = (load_checkpoint(path) for path in (tmp_path / "alone", tmp_path / "run" / "step-3"))
    assert {**expected.state, "sha256": None} == {**found.state, "sha256": None}
    for alone, shared in zip(expected[:2], found[:2], strict=True):
        assert alone.keys() == shared.keys()
        for name, array in alone.items():
            np.testing.assert_array_equal(shared[name], array, err_msg=name)
    other.load_checkpoint(tmp_path / "run" / "step-3")
    assert train(other, batch_stream(3, 4)) == train(trainer, batch_stream(3, 4))
    other.save_checkpoint(tmp_path / "run" / "step-7", shares_texts=True)
    assert [texts] == list(tmp_path.glob("run/texts-*"))
    check_settings(tmp_path / "run" / "step-7", trainer.model.config)


def test_shared_text_vectors_that_are_missing_or_damaged_are_named(backend, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save_checkpoint(tmp_path / "run" / "step-0", shares_texts=True)
    shutil.copytree(tmp_path / "run" / "step-0", tmp_path / "copy")
    (texts,) = tmp_path.glob("run/texts-*.safetensors")
    for work in (trainer.load_checkpoint, lambda path: check_settings(path, trainer.model.config)):
        with pytest.raises(CheckpointError, match=rf"but {texts.name} is not beside it; copy that file"):
            work(tmp_path / "copy")
    shutil.copy(texts, tmp_path)
    trainer.load_checkpoint(tmp_path / "copy")
    content = bytearray(texts.read_bytes())
    content[-1] ^= 1
    texts.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{texts.name} is damaged: its SHA-256"):
        trainer.load_checkpoint(tmp_path / "run" / "step-0")
    files, state = read_checkpoint(tmp_path / "run" / "step-0")
    write_checkpoint(tmp_path / "run" / "step-0", files, {**state, "texts": "../../secret"})
    with pytest.raises(CheckpointError, match="must name its texts by SHA-256"):
        trainer.load_checkpoint(tmp_path / "run" / "step-0")
