"""Snapshots: what was tried and rolled back leaves no trace, to the bit, whatever trains and however."""

import pytest
import torch
from torch import nn

from adapters.contract import FreezeError
from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle, StateError, Trial, Trials


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x))


def build(kind=torch.optim.AdamW, rule=None, **options):
    torch.manual_seed(0)
    net = Net()
    modules = {"body": net.body, "head": net.head}
    optimizers = {name: kind(module.parameters(), lr=0.01) for name, module in modules.items()}
    schedulers = {name: torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for name, each in optimizers.items()}
    alternating = AlternatingOptimizer(
        Alternator(modules, rule=rule or Cycle((2, 3))),
        *(modules, optimizers),
        model=net,
        schedulers=schedulers,
        frozen_mode="inference",
        **options,
    )
    return net, optimizers, alternating


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 4, generator=generator) for _ in range(count)]


def train(net, alternating, inputs):
    for x in inputs:
        alternating.train()
        alternating.step(net(x).square().mean())


def everything(net, optimizers):
    states = {
        f"{name} {number} {key}": value
        for name, optimizer in optimizers.items()
        for number, state in enumerate(optimizer.state.values())
        for key, value in state.items()
    }
    rates = {f"{name} lr": torch.tensor(each.param_groups[0]["lr"]) for name, each in optimizers.items()}
    found = {**net.state_dict(), **states, **rates, "random": torch.get_rng_state()}
    return {key: value.clone() for key, value in found.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("warm_up", [0, 1, 4])
def test_what_was_tried_leaves_no_trace(kind, warm_up):
    net, optimizers, alternating = build(kind)
    train(net, alternating, batches(warm_up))
    before, saved = everything(net, optimizers), alternating.snapshot()
    for _ in range(2):  # a snapshot may be used again
        train(net, alternating, batches(6, seed=2))
        assert not torch.equal(net.head.weight, before["head.weight"])
        alternating.rollback(saved)
        assert_same(everything(net, optimizers), before)


def test_training_goes_on_as_if_nothing_had_been_tried():
    net, optimizers, alternating = build()
    train(net, alternating, batches(5))  # a whole cycle, so that the schedule is where it was
    saved = alternating.snapshot()
    train(net, alternating, batches(5, seed=2))
    alternating.rollback(saved)
    train(net, alternating, batches(5, seed=3))
    tried = everything(net, optimizers)
    net, optimizers, alternating = build()
    train(net, alternating, batches(5))
    train(net, alternating, batches(5, seed=3))
    assert_same(everything(net, optimizers), tried)


def test_a_rollback_is_no_write_to_what_is_frozen():
    net, _, alternating = build()
    train(net, alternating, batches(1))
    saved = alternating.snapshot()
    train(net, alternating, batches(2))
    assert alternating.active == "head"
    alternating.rollback(saved)
    train(net, alternating, batches(1))
    assert [p.requires_grad for p in net.body.parameters()] == [False] * 4


def test_a_snapshot_of_other_modules_is_refused_and_changes_nothing():
    net, optimizers, alternating = build()
    saved = alternating.snapshot()
    train(net, alternating, batches(2))
    net.head.register_buffer("more", torch.zeros(2))
    alternating.apply()
    before = everything(net, optimizers)
    with pytest.raises(StateError, match="a snapshot must be of the same modules and optimizers as there are"):
        alternating.rollback(saved)
    assert_same(everything(net, optimizers), before)


def test_neither_is_possible_in_the_middle_of_an_accumulation():
    net, _, alternating = build(accumulate=2)
    saved = alternating.snapshot()
    train(net, alternating, batches(1))
    with pytest.raises(FreezeError, match="snapshot"):
        alternating.snapshot()
    with pytest.raises(FreezeError, match="rollback"):
        alternating.rollback(saved)


def test_trials_find_the_module_whose_training_helps():
    torch.manual_seed(0)
    modules = {"helps": nn.Linear(3, 1, bias=False), "harms": nn.Linear(3, 1, bias=False)}
    turns = {"both": ("helps", "harms"), "helps": ("helps",), "harms": ("harms",)}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.05) for name, module in modules.items()}
    alternator = Alternator(turns, rule=Trial(steps=5, start=5, hold=20, halvings=9, groups=8))
    alternating = AlternatingOptimizer(alternator, modules, optimizers, turns=turns)
    inputs = torch.randn(64, 3)

    @torch.no_grad()
    def losses():
        errors = (modules["helps"](inputs) - inputs.sum(1, keepdim=True)).square() + modules["harms"](inputs).square()
        return errors.view(8, 8).mean(1).tolist()

    trials = Trials(alternator, snapshot=alternating.snapshot, restore=alternating.rollback, losses=losses)
    for _ in range(45):
        trials.before_step()
        helps = (modules["helps"](inputs) - inputs.sum(1, keepdim=True)).square().mean()
        harms = (modules["harms"](inputs) - 3.0).square().mean() - modules["harms"](inputs).mean()
        alternating.step(sum({"helps": helps, "harms": harms}[name] for name in turns[alternator.active]), losses={})
    assert alternator.modules[alternator.rule_state.incumbent] == "helps"
    assert trials.num_returned > 0
