"""Optimizers that move what has no gradient are shown only what trains, and are themselves unharmed."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from adapters.torch import AlternatingOptimizer, FreezeError
from adapters.torch.shares import Share
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import (
    CLIP_NORM,
    broken_clauses,
    optimizer_state,
    same_bits,
    tower,
    tower_loss,
)
from tests.conformance.naive_torch_optimizers import NAIVE, DecayFirst, WholeGroups

NAMES = ("a", "b")
NUM_STEPS = 12
RULE = Cycle((2, 3))
FROZEN_BEFORE, FROZEN_LATER = "1.bias", "0.weight"
"""What the user freezes in ``a``: before the optimizers are built, and after the first step."""


def towers():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    modules["a"].get_parameter(FROZEN_BEFORE).requires_grad_(False)
    return modules


def over_all(make, modules):
    return make([parameter for module in modules.values() for parameter in module.parameters()])


def group_per_module(make, modules):
    return make([{"params": list(module.parameters())} for module in modules.values()])


def per_module(make, modules):
    return {name: make(module.parameters()) for name, module in modules.items()}


LAYOUTS = {"over all": over_all, "a group per module": group_per_module, "one per module": per_module}


def build(make, layout, **options):
    modules = towers()
    optimizers = LAYOUTS[layout](make, modules)
    every = list(optimizers.values()) if isinstance(optimizers, dict) else [optimizers]
    return modules, every, AlternatingOptimizer(Alternator(NAMES, rule=RULE), modules, optimizers, **options)


def loss_of(modules, step):
    return sum(tower_loss(module, name, step) for name, module in modules.items())


def train(make, layout, **options):
    modules, optimizers, alternating = build(make, layout, **options)
    for step in range(NUM_STEPS):
        alternating.step(loss_of(modules, step))
        freeze_later(modules, step)
    return outcome(modules, optimizers)


def freeze_later(modules, step):
    if step == 0:
        modules["a"].get_parameter(FROZEN_LATER).requires_grad_(False)


def outcome(modules, optimizers):
    """Weights, buffers, and the state of each parameter, whichever optimizer holds it."""
    states = {
        name: [
            next((s for s in each if s), {}) for each in zip(*(optimizer_state(o, m) for o in optimizers), strict=True)
        ]
        for name, m in modules.items()
    }
    return copy.deepcopy([{name: module.state_dict() for name, module in modules.items()}, states])


def by_hand(make):
    """An optimizer per module over exactly what trains in it; the other module is not there."""
    modules = towers()
    trained = {name: [p for p in module.parameters() if p.requires_grad] for name, module in modules.items()}
    optimizers = {name: make(parameters) for name, parameters in trained.items()}
    for step in range(NUM_STEPS):
        name = NAMES[step % 5 >= 2]
        tower_loss(modules[name], name, step).backward()
        nn.utils.clip_grad_norm_(trained[name], CLIP_NORM)
        optimizers[name].step()
        optimizers[name].zero_grad()
        freeze_later(modules, step)
        (group,) = optimizers[name].param_groups
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    return outcome(modules, list(optimizers.values()))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, layout) for kind in NAIVE for layout in LAYOUTS if (kind, layout) != ("whole groups", "over all")],
)
def test_it_trains_as_if_what_is_frozen_were_not_there(kind, layout):
    make = NAIVE[kind]
    assert same_bits(train(make, layout, clip_norm=CLIP_NORM), by_hand(make))


@pytest.mark.parametrize("make", NAIVE.values(), ids=NAIVE)
def test_all_clauses_of_the_contract(make):
    assert broken_clauses(AlternatingOptimizer, make) == set()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", NAIVE.values(), ids=NAIVE)
def test_shown_everything_each_would_move_what_is_frozen(monkeypatch, make, layout):
    """The test of the tests."""
    monkeypatch.setattr(Share, "show", lambda self: None)
    try:
        assert not same_bits(train(make, layout, clip_norm=CLIP_NORM), by_hand(make))
    except FreezeError as error:
        assert "must not be written" in str(error)  # noqa: PT017


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_user_freezes_and_unfreezes_within_a_turn(layout):
    modules, _, alternating = build(DecayFirst, layout)
    alternating.step(loss_of(modules, 0))
    bias = modules["a"].get_parameter("0.bias")
    bias.requires_grad_(False)
    before = bias.detach().clone()
    alternating.step(loss_of(modules, 1))
    assert torch.equal(bias, before)
    alternating.force("a")
    alternating.step(loss_of(modules, 2))
    assert torch.equal(bias, before)
    bias.requires_grad_(True)
    alternating.step(loss_of(modules, 3))
    assert not torch.equal(bias, before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scaler_changes_nothing(layout):
    scaled = train(DecayFirst, layout, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    assert same_bits(scaled, train(DecayFirst, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_whole_between_steps_also_after_one_that_fails(layout):
    modules, optimizers, alternating = build(DecayFirst, layout)
    lists = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
    whole = [list(parameters) for parameters in lists]
    for step in range(4):
        alternating.step(loss_of(modules, step))
    hook = optimizers[-1].register_step_post_hook(fail)
    alternating.force("b")
    with pytest.raises(RuntimeError, match="no"):
        alternating.step(loss_of(modules, 4))
    hook.remove()
    after = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
    assert all(one is two for one, two in zip(lists, after, strict=True))
    assert [list(map(id, each)) for each in after] == [list(map(id, each)) for each in whole]


def fail(*_):
    raise RuntimeError("no")


def test_hooks_of_the_users_run_and_see_what_trains():
    modules, (optimizer,), alternating = build(DecayFirst, "a group per module")
    seen = []
    optimizer.register_step_pre_hook(lambda each, *_: seen.append(len(each.param_groups)))
    optimizer.register_step_post_hook(lambda each, *_: seen.append(sum(len(g["params"]) for g in each.param_groups)))
    alternating.step(loss_of(modules, 0))
    assert seen == [1, len(list(modules["a"].parameters())) - 1]


@pytest.mark.parametrize("when", ["between steps", "in a hook"])
def test_a_group_added_later_trains_with_its_module(when):
    modules, (optimizer,), alternating = build(DecayFirst, "over all")
    layer = nn.Linear(1, 1)

    def grow(*_):
        modules["a"].append(layer)
        optimizer.add_param_group({"params": layer.parameters()})
        hook.remove()

    hook = optimizer.register_step_pre_hook(grow)
    if when == "between steps":
        grow()
    alternating.step(loss_of(modules, 0))
    before = layer.weight.detach().clone()
    alternating.step(loss_of(modules, 1))
    assert not torch.equal(layer.weight, before)
    before = layer.weight.detach().clone()
    alternating.step(loss_of(modules, 2))
    assert alternating.active == "b"
    assert torch.equal(layer.weight, before)
    assert len(optimizer.param_groups) == 2


def test_a_parameter_appended_to_a_group_trains_with_its_module():
    modules, (optimizer,), alternating = build(DecayFirst, "over all")
    modules["a"].append(nn.Linear(1, 1))
    weights = list(modules["a"][-1].parameters())
    optimizer.param_groups[0]["params"].extend(weights)
    before = weights[0].detach().clone()
    alternating.step(loss_of(modules, 0))
    assert not torch.equal(weights[0], before)


def test_options_of_groups_and_schedulers_are_kept():
    modules = towers()
    optimizers = per_module(DecayFirst, modules)
    schedulers = {name: ExponentialLR(optimizer, 0.5) for name, optimizer in optimizers.items()}
    alternating = AlternatingOptimizer(
        Alternator(NAMES, rule=RULE), modules, optimizers, schedulers=schedulers, clip_norm=1.0
    )
    for step in range(3):
        alternating.step(loss_of(modules, step))
    assert [optimizers[name].param_groups[0]["lr"] for name in NAMES] == [0.01 * 0.5**2, 0.01 * 0.5]


def test_one_group_over_both_modules_must_not_count_its_steps():
    """It would count those of both."""
    with pytest.raises(ConfigurationError, match=r"WholeGroups counts 'count', .* give each module a group") as error:
        train(WholeGroups, "over all")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["a group per module", "one per module"])
def test_a_resumed_run_equals_one_never_stopped(layout):
    whole = train(WholeGroups, layout)
    modules, _, first = build(WholeGroups, layout)
    for step in range(4):
        first.step(loss_of(modules, step))
        freeze_later(modules, step)
    saved = copy.deepcopy([first.state_dict(include_optimizers=True), {n: m.state_dict() for n, m in modules.items()}])
    modules, optimizers, second = build(WholeGroups, layout)
    for name, module in modules.items():
        module.load_state_dict(saved[1][name])
    second.load_state_dict(saved[0])
    for step in range(4, NUM_STEPS):
        second.step(loss_of(modules, step))
    assert same_bits(outcome(modules, optimizers), whole)
