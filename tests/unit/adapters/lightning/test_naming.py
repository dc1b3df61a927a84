"""Parts by name in Lightning: the same spellings as in a plain loop, looked up in the LightningModule."""

import pytest
import torch

from adapters.lightning import AlternatingCallback
from tests.conformance.freeze_contract_torch import same_bits
from tests.unit.adapters.lightning.lightning_runs import ManualTowers, Recorded, Steps, Towers, fit, outcome, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

SPELLINGS = {
    "the rest": lambda _: {"a": "*", "b": "towers.b"},
    "the rest of a module": lambda model: {"a": model, "b": model.towers["b"]},
    "patterns": lambda _: {"a": "*.a.?", "b": ["towers.b.[01]", "towers.b.[23]", "towers.b.4*"]},
    "parameters": lambda model: {"a": model.towers["a"].parameters(), "b": "towers.b"},
    "a mixed list": lambda model: {
        "a": "*",
        "b": [*model.towers["b"][:4], "towers.b.4.weight", model.towers["b"][4].bias],
    },
}


@pytest.mark.parametrize("kind", [Towers, ManualTowers])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_run_equals_that_with_attributes(spelling, kind):
    model, alternator = kind(), Recorded()
    made = AlternatingCallback(alternator, SPELLINGS[spelling](model))
    model.alternating = made
    run = trainer(made)
    run.fit(model, Steps())
    expected, decisions = fit(kind())
    assert same_bits(outcome(model, run.optimizers), expected)
    assert alternator.decisions == decisions
    assert sum(decision.switched for decision in decisions) >= 2


class Tempered(Towers):
    """With a temperature that is neither a parameter nor in a module."""

    def __init__(self):
        super().__init__()
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = sum(self.losses(batch).values()) * self.scale
        return loss * self.log_alpha.exp()

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), self.log_alpha], lr=1e-4)


def test_a_leaf_tensor_that_is_an_attribute_and_always_by_name():
    model, moved = Tempered(), []
    alternator = Recorded(("a", "alpha"))
    made = AlternatingCallback(alternator, {"a": "*", "alpha": "log_alpha"}, always=["scale"])

    def record(gradient):
        moved.append(alternator.active)

    run = trainer(made)
    model.log_alpha.register_hook(record)
    run.fit(model, Steps())
    actives = [decision.previous for decision in alternator.decisions]
    assert set(actives) == {"a", "alpha"}
    assert moved == [active for active in actives if active == "alpha"]
    assert model.log_alpha.item() != 0
    assert model.scale.item() != 1
