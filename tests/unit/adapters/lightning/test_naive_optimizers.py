"""Lightning with optimizers that move what has no gradient: they see what trains, closures see everything."""

import copy

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from adapters.torch import FreezeError
from adapters.torch.shares import Share
from alternator import ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import optimizer_state, same_bits, tower_loss
from tests.conformance.naive_torch_optimizers import NAIVE, DecayFirst, WholeGroups
from tests.unit.adapters.lightning.lightning_runs import NAMES, ManualTowers, Recorded, Steps, Towers, callback, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
NUM_STEPS = 8


class One(Towers):
    """One optimizer over both towers, with a group for each."""

    make = DecayFirst

    def configure_optimizers(self):
        return self.make([{"params": list(tower.parameters())} for tower in self.towers.values()])


class Manual(One, ManualTowers):
    """The same with manual optimization."""

    def configure_optimizers(self):
        return One.configure_optimizers(self)


class Several(One, ManualTowers):
    """With an optimizer for each."""

    def configure_optimizers(self):
        return [self.make(tower.parameters()) for tower in self.towers.values()]


def of(kind, make):
    """A model whose first layer the user has frozen."""
    made = type(kind.__name__, (kind,), {"make": staticmethod(make)})()
    made.towers["a"][0].weight.requires_grad_(False)
    return made


def fit(model, **options):
    alternator = Recorded(rule=Cycle((2, 3)))
    run = trainer(callback(alternator, model), **options)
    run.fit(model, Steps(NUM_STEPS))
    return outcome(model, run.optimizers)


def outcome(model, optimizers):
    states = {
        name: [
            next((s for s in each if s), {}) for each in zip(*(optimizer_state(o, t) for o in optimizers), strict=True)
        ]
        for name, t in model.towers.items()
    }
    return copy.deepcopy([model.state_dict(), states])


def by_hand(make, with_closure=True):
    """With a closure, as Lightning does with automatic optimization: a step may move weights before it calls that."""
    model = of(One, make)
    optimizers = {name: make([p for p in t.parameters() if p.requires_grad]) for name, t in model.towers.items()}
    for step in range(NUM_STEPS):
        name = NAMES[step % 5 >= 2]
        optimizers[name].zero_grad()

        def closure(name=name, step=step):
            tower_loss(model.towers[name], name, step).backward()

        if not with_closure:
            closure()
        optimizers[name].step(closure if with_closure else None)
    return outcome(model, optimizers.values())


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return {"plugins": [MixedPrecision(precision="16-mixed", device="cpu", scaler=scaler)]}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((One, name) for name in ("momentum first", "whole groups", "around fused AdamW")),
        *((Manual, name) for name in ("decay first", "zeros for None")),
        (Several, "decay first"),
    ],
)
def test_it_trains_as_if_what_is_frozen_were_not_there(kind, name):
    make = NAIVE[name]
    assert same_bits(fit(of(kind, make)), by_hand(make, with_closure=kind is One))


@pytest.mark.parametrize("kind", [Towers, ManualTowers])
def test_one_group_over_both_towers_must_not_count_its_steps(kind):
    class OneGroup(kind):
        def configure_optimizers(self):
            return WholeGroups(self.towers.parameters())

    with pytest.raises(ConfigurationError, match=r"WholeGroups counts 'count', .* give each module a group"):
        fit(OneGroup())


@pytest.mark.parametrize("kind", [One, Manual])
def test_shown_everything_it_would_move_what_is_frozen(monkeypatch, kind):
    """The test of the tests."""
    monkeypatch.setattr(Share, "show", lambda self: None)
    with pytest.raises(FreezeError, match="must not be written"):
        fit(of(kind, DecayFirst))


def test_shown_everything_it_would_move_what_the_user_froze(monkeypatch):
    monkeypatch.setattr(Share, "show", lambda self: None)
    assert not same_bits(fit(of(Several, DecayFirst)), by_hand(DecayFirst))


class Float32(Towers):
    """Without autocast, so that a scaler alone makes the difference."""

    def losses(self, step):
        with torch.autocast("cpu", enabled=False):
            return super().losses(step)


class ScaledOne(Float32, One):
    pass


def test_a_scaler_changes_nothing():
    assert same_bits(fit(of(ScaledOne, DecayFirst), **scaled()), by_hand(DecayFirst))


def test_after_a_step_that_the_scaler_skips_the_optimizer_is_whole():
    class Overflows(ScaledOne):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            return {**outputs, "loss": outputs["loss"] * (float("inf") if batch == 0 else 1)}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            counts.append(sum(len(group["params"]) for group in self.trainer.optimizers[0].param_groups))

    counts = []
    model = of(Overflows, DecayFirst)
    before = copy.deepcopy(model.towers["a"][4].state_dict())
    run = trainer(callback(Recorded(rule=Cycle(5)), model), **scaled())
    run.fit(model, Steps(1))
    assert counts == [len(list(model.towers.parameters()))]
    assert same_bits(before, model.towers["a"][4].state_dict())


def test_a_training_step_sees_every_group_and_the_optimizer_those_that_train():
    class Looks(One):
        def training_step(self, batch, batch_idx):
            seen.append(len(self.trainer.optimizers[0].param_groups))
            return super().training_step(batch, batch_idx)

    class Counting(DecayFirst):
        def step_group(self, group):
            seen.append(len(self.param_groups))
            super().step_group(group)

    seen = []
    fit(of(Looks, Counting))
    assert seen == [2, 1] * NUM_STEPS


class Twice(DecayFirst):
    """Evaluates the closure at two places, as sharpness-aware methods do."""

    def step(self, closure):
        with torch.enable_grad():
            closure()
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.data.add_(0.01)
        return super().step(closure)


def test_a_closure_that_is_evaluated_twice():
    model, calls = of(One, Twice), []
    model.towers["a"].register_forward_pre_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.towers["b"].state_dict())
    run = trainer(callback(Recorded(rule=Cycle(5)), model))
    run.fit(model, Steps(3))
    assert len(calls) == 6
    assert same_bits(before, model.towers["b"].state_dict())


def test_a_step_that_fails_leaves_the_optimizer_whole():
    class Fails(DecayFirst):
        def step_group(self, group):
            raise RuntimeError("no")

    model = of(One, Fails)
    run = trainer(callback(Recorded(), model))
    with pytest.raises(RuntimeError, match="no"):
        run.fit(model, Steps(2))
    assert [len(group["params"]) for group in run.optimizers[0].param_groups] == [
        len(list(tower.parameters())) for tower in model.towers.values()
    ]


def test_a_group_added_in_mid_run_trains_with_its_module():
    class Grows(One):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.towers["a"].append(layer)
                self.trainer.optimizers[0].add_param_group({"params": layer.parameters()})

    layer = nn.Linear(1, 1)
    before = copy.deepcopy(layer.state_dict())
    model = of(Grows, DecayFirst)
    run = trainer(callback(Recorded(rule=Cycle(5)), model))
    run.fit(model, Steps(3))
    assert not same_bits(before, layer.state_dict())
    assert len(run.optimizers[0].param_groups) == 3
