"""A Trainer that continues from a checkpoint ends with the same decisions and bits as one that never stopped."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from alternator import Alternator, Cycle, StateError
from tests.conformance.freeze_contract_torch import same_bits
from tests.conformance.torch_host import MarkedHost
from tests.unit.adapters.lightning.lightning_runs import (
    NAMES,
    NUM_STEPS,
    ManualTowers,
    Recorded,
    Steps,
    Towers,
    callback,
    fit,
    trainer,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]


def stop_and_continue(tmp_path, at, model=Towers, **options):
    """A run never stopped, and one resumed in new objects from the checkpoint after update `at`."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=at, save_top_k=-1)
    whole = fit(model(), callbacks=[saving], **options, enable_checkpointing=True)
    went_on = fit(model(), **options, ckpt_path=tmp_path / f"step={at}.ckpt")
    return whole, went_on


def same_end(whole, went_on, at):
    assert sum(decision.switched for decision in whole[1]) >= 2
    assert whole[1][at:] == went_on[1]
    return same_bits(whole[0], went_on[0])


@pytest.mark.parametrize("model", [Towers, ManualTowers])
@pytest.mark.parametrize("at", [1, 2, 3, 7, 11, NUM_STEPS, NUM_STEPS + 5])
def test_from_any_step(tmp_path, at, model):
    assert same_end(*stop_and_continue(tmp_path, at, model, max_epochs=2), at)


@pytest.mark.parametrize("delay", [0, 2])
def test_with_losses_under_way(tmp_path, delay):
    assert same_end(*stop_and_continue(tmp_path, 5, given={"delay": delay}), 5)


@pytest.mark.parametrize("model", [Towers, ManualTowers])
@pytest.mark.parametrize("frozen_state", ["offload", "drop"])
def test_with_the_state_of_what_is_frozen_elsewhere(tmp_path, model, frozen_state, monkeypatch):
    fetched = []
    monkeypatch.setattr("adapters.torch.parked.Host", MarkedHost)
    monkeypatch.setattr(MarkedHost, "fetch", lambda *args, fetch=MarkedHost.fetch: fetched.append(1) or fetch(*args))
    whole, went_on = stop_and_continue(tmp_path, 7, model, given={"frozen_state": frozen_state}, max_epochs=2)
    assert same_end(whole, went_on, 7)
    assert fetched
    assert same_bits(whole[0], fit(model(), max_epochs=2)[0]) == (frozen_state == "offload")


def test_between_validations(tmp_path):
    assert same_end(*stop_and_continue(tmp_path, 7, max_epochs=2, val=Steps(2), val_check_interval=4), 7)


def test_while_accumulating(tmp_path):
    assert same_end(*stop_and_continue(tmp_path, 3, max_epochs=3, accumulate_grad_batches=2), 3)


def test_from_a_checkpoint_of_a_validation(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)
    options = {"val": Steps(2), "val_check_interval": 5, "max_epochs": 2}
    whole = fit(callbacks=[saving], **options, enable_checkpointing=True)
    assert same_end(whole, fit(**options, ckpt_path=tmp_path / "step=10.ckpt"), 10)


def test_after_the_end(tmp_path):
    """Saved by hand after fit, and trained for longer."""
    model, alternator = Towers(), Recorded()
    run = trainer(callback(alternator, model))
    run.fit(model, Steps())
    run.save_checkpoint(tmp_path / "end.ckpt")
    went_on = fit(max_epochs=3, ckpt_path=tmp_path / "end.ckpt")
    assert same_end(fit(max_epochs=3), went_on, NUM_STEPS)


def test_a_second_fit_goes_on_with_the_schedule():
    model, alternator = Towers(), Recorded(rule=Cycle(3))
    run = trainer(callback(alternator, model))
    run.fit(model, Steps(4))
    run.fit_loop.max_epochs = 2
    run.fit(model, Steps(4))
    assert [decision.step for decision in alternator.decisions if decision.switched] == [3, 6]
    assert alternator.step == 8


def test_what_the_user_froze_is_part_of_the_checkpoint(tmp_path):
    model = Towers()
    model.towers["b"][0].weight.requires_grad_(False)
    run = trainer(callback(Recorded(rule=Cycle(3)), model))
    run.fit(model, Steps(2))
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["AlternatingCallback"]
    assert json.loads(json.dumps(saved, allow_nan=False)) == saved
    assert saved["user_frozen"] == ["b.0.weight"]
    other = Towers()
    fit(other, Recorded(rule=Cycle(3)), steps=Steps(8), ckpt_path=tmp_path / "end.ckpt", max_epochs=2)
    assert torch.equal(other.towers["b"][0].weight, model.towers["b"][0].weight)
    assert not other.towers["b"][0].weight.requires_grad


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    model = Towers()
    run = trainer(callback(Recorded(rule=Cycle(3)), model))
    run.fit(model, Steps(2))
    run.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(StateError, match=r"rule\.steps was 3, is 4"):
        fit(alternator=Recorded(rule=Cycle(4)), max_epochs=2, ckpt_path=tmp_path / "end.ckpt")


def test_a_checkpoint_that_was_evaluated_is_not_one_to_go_on_from(tmp_path):
    model = Towers()
    run = trainer(callback(Recorded(), model))
    run.fit(model, Steps(5))
    run.save_checkpoint(tmp_path / "end.ckpt")
    model, alternator = Towers(), Recorded()
    run = trainer(callback(alternator, model))
    run.validate(model, Steps(2), ckpt_path=tmp_path / "end.ckpt")
    run.fit(model, Steps(3))
    assert alternator.step == 3


def test_a_checkpoint_within_an_accumulation_warns(tmp_path):
    class Saving(ModelCheckpoint):
        def on_train_batch_end(self, trainer, *args):
            if trainer.fit_loop.batch_idx == 4:
                trainer.save_checkpoint(tmp_path / "now.ckpt")

    with pytest.warns(UserWarning, match="in the middle of an accumulation, whose gradients are not saved"):
        fit(callbacks=[Saving(tmp_path)], accumulate_grad_batches=2, enable_checkpointing=True)


def test_nothing_is_saved_before_the_first_training():
    made = callback(Alternator(NAMES), Towers())
    assert made.state_dict() == {}
