"""Lightning's BaseFinetuning: a part left out of the optimizer is unfrozen and added in mid-run."""

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning

from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import adamw
from tests.unit.adapters.lightning.lightning_runs import NAMES, Steps, Towers, callback, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Unfreeze(BaseFinetuning):
    """Freezes the first layer of ``a``, and adds it at the start of the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.towers["a"][0])

    def finetune_function(self, pl_module, epoch, optimizer):
        layer = pl_module.towers["a"][0]
        if epoch == 1:
            self.before = layer.weight.detach().clone()
            self.unfreeze_and_add_param_group(layer, optimizer)


class PartlyFrozen(Towers):
    def configure_optimizers(self):
        return adamw([parameter for parameter in self.parameters() if parameter.requires_grad])


@pytest.mark.parametrize(("second", "moves"), [("a", True), ("b", False)])
def test_base_finetuning(second, moves):
    """In the second epoch either the tower that holds the layer trains, or the other."""
    model, finetuning = PartlyFrozen(), Unfreeze()
    start = model.towers["a"][0].weight.detach().clone()
    alternator = Alternator((second, *(name for name in NAMES if name != second)), rule=Cycle(100))
    run = trainer(finetuning, callback(alternator, model), max_epochs=2)
    run.fit(model, Steps(3))
    assert torch.equal(finetuning.before, start)
    assert torch.equal(model.towers["a"][0].weight, start) != moves
    assert len(run.optimizers[0].param_groups) == 2
