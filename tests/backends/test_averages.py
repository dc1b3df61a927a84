"""Averages of the weights: each module's by its own updates, frozen with it, scored with, saved and resumed."""

import numpy as np
import pytest

from alternator import Cycle
from tests.backends.harness import PARTS, bits, changed, equal, snapshot, train
from ur4rec.config import TrainerConfig
from ur4rec.errors import CheckpointError, ConfigurationError
from ur4rec.training.checkpoint import load_checkpoint, save_checkpoint

DECAY = 0.6
END = "/average"


def averages(trainer, *parts):
    return {name: each for name, each in bits(trainer, *parts).items() if name.endswith(END)}


def followed(averages, before, after):
    """The averages after an update, from the definition."""
    expected = {}
    for name, average in averages.items():
        weight = name.removesuffix(END)
        count = int(after[f"{weight}/step"])
        was = int(before.get(f"{weight}/step", 0))
        decay = min(DECAY, (1 + count) / (10 + count))
        expected[name] = average if count == was else decay * average + (1 - decay) * after[weight]
    return expected


@pytest.mark.parametrize("settings", [{}, {"joint_loss": "separate"}, {"catalogue_loss": "sampled"}])
def test_each_weight_s_average_is_that_of_its_module_s_updates(make_trainer, loader, batch_stream, settings):
    """Tables whose rows are updated as they are used have the average of every other weight."""
    settings = {"num_negatives": 6, "num_in_batch": 6, "item_counts": loader.item_counts, **settings}
    trainer = make_trainer(rule=Cycle(3), ema_decay=DECAY, sasrec_lr=1e-2, retriever_lr=1e-2, **settings)
    before = snapshot(trainer)
    expected = {name: each for name, each in before.items() if name.endswith(END)}
    weights = {name.removesuffix(END): each for name, each in expected.items()}
    assert equal(weights, {name: before[name] for name in weights})
    assert {name.partition(".")[0] for name in weights} == {*PARTS}
    for batch in batch_stream(0, 30):
        trainer.train_step(batch)
        after = snapshot(trainer)
        counted = {**after, **{f"{name}/step": after.get(f"{name}/step", 0) for name in weights}}
        expected = followed(expected, before, counted)
        for name, average in expected.items():
            np.testing.assert_allclose(after[name], average, rtol=1e-4, atol=1e-6, err_msg=name)
        expected, before = {name: after[name] for name in expected}, after
    assert max(map(int, (before[name] for name in before if name.endswith("/step")))) > 12  # the warm-up is over then


def frozen_changes(trainer, batches):
    """What changed of the retriever's averages while SASRec trained, and of SASRec's."""
    trainer.set_training_stage("end_to_end")
    train(trainer, batches[:3])  # so that no average is its weight
    trainer.set_training_stage("joint_finetune")
    before = averages(trainer)
    train(trainer, batches[3:])
    moved = changed(before, averages(trainer))
    return [{name for name in moved if name.startswith(part)} for part in ("retriever.", "sasrec.")]


def test_what_is_frozen_keeps_its_average_to_the_bit(make_trainer, batch_stream):
    trainer = make_trainer(rule=Cycle(50), ema_decay=DECAY, retriever_lr=1e-2)
    frozen, active = frozen_changes(trainer, list(batch_stream(0, 20)))
    assert not frozen
    assert len(active) > 5


def test_an_average_that_follows_what_is_frozen_is_noticed(backend, make_trainer, batch_stream, monkeypatch):
    """So that the test above can fail."""
    backend.average_all(monkeypatch)
    trainer = make_trainer(rule=Cycle(50), ema_decay=0.61, retriever_lr=1e-2)  # a decay of its own: it is compiled anew
    frozen, _ = frozen_changes(trainer, list(batch_stream(0, 20)))
    assert len(frozen) > 5


@pytest.mark.parametrize("looks", [True, False])
def test_a_step_without_effect_leaves_the_averages(backend, make_trainer, batch_stream, monkeypatch, looks):
    """On the CPU the loss is looked at; an accelerator finds out by itself."""
    trainer = make_trainer(rule=Cycle(2), ema_decay=DECAY, sasrec_lr=1e-2, retriever_lr=1e-2)
    if not looks:
        backend.act_like_an_accelerator(trainer)
    train(trainer, batch_stream(0, 4))
    before = snapshot(trainer)
    backend.spoil(trainer, monkeypatch, [4, 5])
    train(trainer, batch_stream(4, 2))
    assert equal(snapshot(trainer), before)
    train(trainer, batch_stream(6, 2))
    assert changed(averages(trainer), before)


def test_an_accelerator_averages_as_the_cpu_does(backend, make_trainer, batch_stream):
    trainers = [make_trainer(rule=Cycle(2), ema_decay=DECAY, sasrec_lr=1e-2, retriever_lr=1e-2) for _ in range(2)]
    backend.act_like_an_accelerator(trainers[1])
    for trainer in trainers:
        train(trainer, batch_stream(0, 12))
    expected, found = map(averages, trainers)
    for name, average in expected.items():
        np.testing.assert_allclose(found[name], average, rtol=1e-5, atol=1e-7, err_msg=name)


def test_it_scores_with_the_averages_and_trains_on_from_the_weights(
    backend, make_trainer, batch_stream, targets, tmp_path
):
    settings = {"rule": Cycle(2), "sasrec_lr": 1e-2, "retriever_lr": 1e-2}
    quiet, trainer, plain = (make_trainer(ema_decay=decay, **settings) for decay in (DECAY, DECAY, 0.0))
    for each in (quiet, trainer, plain):
        train(each, batch_stream(0, 9))
    before = snapshot(trainer)
    ranks, scores_BI = trainer.rank_all(targets), trainer.scores([[3, 1, 4]])
    assert equal(snapshot(trainer), before)
    trainer.save_checkpoint(tmp_path / "averaged")
    saved = load_checkpoint(tmp_path / "averaged")
    weights = {name: saved.moments[f"{name}{END}"] for name in saved.weights if f"{name}{END}" in saved.moments}
    assert equal(saved.averaged().weights, {**saved.weights, **weights})
    loaded = backend.package.Scorer(backend.package.load_model(tmp_path / "averaged"), device="cpu")
    for name, scores in loaded.scores([[3, 1, 4]]).items():
        np.testing.assert_allclose(scores, scores_BI[name], err_msg=name, **backend.same_scores)
        assert not np.allclose(plain.scores([[3, 1, 4]])[name], scores, rtol=1e-3, atol=1e-3)
    assert {name: each.tolist() for name, each in loaded.rank_all(targets).items()} == {
        name: each.tolist() for name, each in ranks.items()
    }
    for each in (quiet, trainer, plain):
        train(each, batch_stream(9, 7))
    assert equal(snapshot(trainer), snapshot(quiet))
    assert equal({name: each for name, each in snapshot(trainer).items() if not name.endswith(END)}, snapshot(plain))
    again = trainer.scores([[3, 1, 4]])
    assert not any(np.allclose(again[name], scores_BI[name]) for name in again)  # not what was kept for them


@pytest.mark.parametrize("catalogue_loss", ["full", "sampled"])
def test_it_resumes_exactly(make_model, make_trainer, loader, batch_stream, tmp_path, catalogue_loss):
    settings = {"catalogue_loss": catalogue_loss, "num_negatives": 6, "num_in_batch": 6, "rule": Cycle(3)}
    settings |= {"item_counts": loader.item_counts, "sasrec_lr": 1e-2, "ema_decay": DECAY}
    whole, first, second = (make_trainer(model=make_model(seed=seed), **settings) for seed in (0, 0, 5))
    train(whole, batch_stream(0, 16))
    train(first, batch_stream(0, 8))
    first.save_checkpoint(tmp_path / "step")
    second.load_checkpoint(tmp_path / "step")
    assert equal(snapshot(second), snapshot(first))
    np.testing.assert_array_equal(second.score([[1, 2]]), first.score([[1, 2]]))
    train(second, batch_stream(8, 8))
    assert equal(snapshot(second), snapshot(whole))


def test_what_does_not_fit_is_refused(make_trainer, make_encoder_trainer, tmp_path):
    with pytest.raises(ConfigurationError, match=r"ema_decay must be at least 0 and below 1, got 1"):
        TrainerConfig(ema_decay=1.0)
    with pytest.raises(
        ConfigurationError, match=r"ema_decay must be 0 with text_encoder='transformer', got 0.9: .* out"
    ):
        make_encoder_trainer(ema_decay=0.9)
    trainer = make_trainer(ema_decay=DECAY)
    trainer.save_checkpoint(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"another training configuration .ema_decay was 0.6, is 0.0"):
        make_trainer().load_checkpoint(tmp_path / "saved")
    saved = load_checkpoint(tmp_path / "saved")
    del saved.state["sha256"]
    name = f"sasrec.final_norm.bias{END}"
    for number, (change, message) in enumerate(
        [({}, f"have no '{name}'"), ({name: np.zeros(3, np.float32)}, "shape of its weight"), ({name: None}, "finite")]
    ):
        nan = np.full_like(saved.moments[name], np.nan)
        moments = {**saved.moments, **{key: nan if each is None else each for key, each in change.items()}}
        if not change:
            del moments[name]
        save_checkpoint(tmp_path / f"{number}", saved._replace(moments=moments))
        with pytest.raises(CheckpointError, match=message):
            trainer.load_checkpoint(tmp_path / f"{number}")


def test_a_checkpoint_of_before_there_were_averages_loads(make_trainer, batch_stream, tmp_path):
    trainer = make_trainer()
    train(trainer, batch_stream(0, 2))
    trainer.save_checkpoint(tmp_path / "now")
    saved = load_checkpoint(tmp_path / "now")
    assert not [name for name in saved.moments if name.endswith(END)]
    del saved.state["trainer"]["ema_decay"], saved.state["sha256"]
    save_checkpoint(tmp_path / "before", saved)
    other = make_trainer()
    other.load_checkpoint(tmp_path / "before")
    assert equal(snapshot(other), snapshot(trainer))
    assert load_checkpoint(tmp_path / "before").averaged().weights.keys() == saved.weights.keys()
