"""Snapshots within Lightning: what was tried leaves no trace, and trials find what to train, in both kinds of loop."""

import pytest
import torch
from lightning.pytorch import Callback

from adapters.contract import FreezeError
from alternator import Alternator, ConfigurationError, Cycle, Trial, Trials
from tests.conformance.freeze_contract_torch import same_bits
from tests.unit.adapters.lightning.lightning_runs import ManualTowers, Steps, Towers, callback, outcome, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Scheduled(Towers):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class Undoes(Callback):
    """Takes a snapshot before one batch, and goes back to it before a later one."""

    def __init__(self, made, take_at=2, undo_at=7):
        self.made, self.take_at, self.undo_at = made, take_at, undo_at

    def everything(self, run):
        rates = [group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups]
        return outcome(run.lightning_module, run.optimizers), rates, torch.get_rng_state()

    def on_train_batch_start(self, run, model, batch, batch_idx):
        if batch_idx == self.take_at:
            self.before, self.saved = self.everything(run), self.made.snapshot()
        if batch_idx == self.undo_at:
            assert not same_bits(self.everything(run), self.before)
            self.made.rollback(self.saved)
            assert same_bits(self.everything(run), self.before)


@pytest.mark.parametrize("build", [Scheduled, ManualTowers])
def test_what_was_tried_leaves_no_trace(build):
    model, alternator = build(), Alternator(("a", "b"), rule=Cycle((2, 3)))
    made = callback(alternator, model)
    undoes = Undoes(made)
    trainer(undoes, made).fit(model, Steps())
    assert alternator.step == Steps().num_steps
    assert hasattr(undoes, "saved")


def test_a_scaler_is_part_of_it(monkeypatch):
    model, scaler = Towers(), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    made = callback(Alternator(("a", "b"), rule=Cycle(2)), model)
    run = trainer(Undoes(made), made, max_steps=8)
    monkeypatch.setattr(run.precision_plugin, "scaler", scaler, raising=False)

    class Grows(Callback):
        def on_train_batch_end(self, *_):
            scaler.load_state_dict({**scaler.state_dict(), "scale": scaler.get_scale() * 2})

        def on_train_batch_start(self, run, model, batch, batch_idx):
            if batch_idx in (2, 7):
                scales.append(scaler.get_scale())

    scales = []
    run.callbacks.insert(1, Grows())
    run.fit(model, Steps())
    assert scales[0] == scales[1] > 0


class Tries(Callback):
    """Measures on a held-out batch by what the frozen modules say in inference mode."""

    def __init__(self, alternator, made, model):
        def losses():
            model.eval()
            with torch.no_grad():
                loss = model.losses(1000)
            model.train()
            return [float(loss["a"]) - 100 * float(loss["b"]) + group for group in range(4)]

        self.trials = Trials(alternator, snapshot=made.snapshot, restore=made.rollback, losses=losses)

    def on_train_batch_start(self, *_):
        self.trials.before_step()


class Silent(Towers):
    def training_step(self, batch, batch_idx):
        return {**super().training_step(batch, batch_idx), "losses": {}}


class SilentManual(ManualTowers):
    def training_step(self, batch, batch_idx):
        self.alternating.step(sum(self.losses(batch).values()), {})


@pytest.mark.parametrize("build", [Silent, SilentManual])
def test_trials_find_the_module_whose_training_helps(build):
    """What the second module learns counts against it."""
    model, alternator = build(), Alternator(("b", "a"), rule=Trial(steps=3, start=2, hold=8, halvings=9, groups=4))
    made = callback(alternator, model)
    tries = Tries(alternator, made, model)
    trainer(tries, made).fit(model, Steps())
    assert alternator.modules[alternator.rule_state.incumbent] == "a"
    assert tries.trials.num_returned == 4  # the incumbent trains on until the verdict


def test_it_is_refused_outside_of_training_and_within_an_accumulation():
    model = Towers()
    made = callback(Alternator(("a", "b"), rule=Cycle(2)), model)
    with pytest.raises(ConfigurationError, match=r"snapshot\(\) must be called while the Trainer trains"):
        made.snapshot()
    with pytest.raises(FreezeError, match=r"snapshot\(\) must be called between updates"):
        trainer(Undoes(made, take_at=1), made, accumulate_grad_batches=2).fit(model, Steps())
