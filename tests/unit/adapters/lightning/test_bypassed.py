"""Manual optimization past the callback: refused after the first batch that steps an optimizer itself."""

import pytest

from alternator import Alternator, ConfigurationError
from tests.unit.adapters.lightning.lightning_runs import NAMES, ManualTowers, Steps, callback, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class ByHand(ManualTowers):
    """Steps its optimizers from the batch ``first`` on, and with the callback before."""

    def __init__(self, first=0):
        super().__init__()
        self.first = first
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch_idx)
        if batch_idx < self.first:
            return super().training_step(batch, batch_idx)
        for name, optimizer in zip(self.names, self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = self.losses(batch)[name]
            if loss.requires_grad:
                self.manual_backward(loss)
            optimizer.step()
        return None


@pytest.mark.parametrize("first", [0, 3])
def test_a_training_step_that_steps_the_optimizers_itself(first):
    model = ByHand(first)
    run = trainer(callback(Alternator(NAMES), model))
    with pytest.raises(ConfigurationError, match=r"must be stepped by AlternatingCallback.step\(loss\), but training_"):
        run.fit(model, Steps())
    assert model.batches[-1] == first
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_batches_that_step_nothing_are_accepted():
    model = ManualTowers()
    model.training_step = lambda batch, batch_idx: None
    trainer(callback(Alternator(NAMES), model)).fit(model, Steps(3))


def test_a_later_training_without_the_callback_is_not_watched():
    model = ByHand(first=2)
    trainer(callback(Alternator(NAMES), model)).fit(model, Steps(2))
    model.first = 0
    trainer().fit(model, Steps(2))
    assert model.batches == [0, 1, 0, 1]
