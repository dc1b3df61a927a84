"""The freeze contract: the naive ways break it, the adapter keeps it, with any optimizer and any schedule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import (
    CLIP_NORM,
    adamw,
    batch,
    broken_clauses,
    same_bits,
    tower,
    tower_loss,
)
from tests.conformance.naive_torch import BREAKS, HandWritten

torch.set_num_threads(1)


@pytest.mark.parametrize("naive", BREAKS, ids=lambda naive: naive.__name__)
def test_each_naive_way_breaks_the_contract_as_documented(naive):
    assert broken_clauses(naive) == BREAKS[naive]


def test_a_careful_hand_written_loop_keeps_the_contract():
    assert broken_clauses(HandWritten) == set()


@pytest.mark.parametrize("one_optimizer", [False, True])
def test_the_adapter_keeps_the_contract(one_optimizer):
    """With AdamW; `tests/conformance/test_kept.py` has the other optimizers."""
    assert broken_clauses(AlternatingOptimizer, one_optimizer=one_optimizer) == set()


NAMES = ("a", "b", "c")
TURNS = {"a": ("a",), "b": ("b",), "c": ("c",), "ab": ("a", "b"), "abc": ("a", "b", "c")}


def optimizers_of(modules, one_optimizer):
    if one_optimizer:
        return adamw([parameter for module in modules.values() for parameter in module.parameters()])
    return {name: adamw(module.parameters()) for name, module in modules.items()}


def train_by_hand(schedule, one_optimizer):
    """Each step with the modules of its turn only; the others are not even run."""
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = optimizers_of(modules, one_optimizer)
    for step, turn in enumerate(schedule):
        active = [modules[name] for name in TURNS[turn]]
        sum(tower_loss(modules[name], name, step) for name in TURNS[turn]).backward()
        nn.utils.clip_grad_norm_([parameter for module in active for parameter in module.parameters()], CLIP_NORM)
        for optimizer in [optimizers] if one_optimizer else [optimizers[name] for name in TURNS[turn]]:
            optimizer.step()
            optimizer.zero_grad()
    return {name: module.state_dict() for name, module in modules.items()}


@settings(max_examples=12, derandomize=True)
@given(st.lists(st.sampled_from(list(TURNS)), min_size=1, max_size=8), st.booleans(), st.integers(0, 2))
def test_any_schedule_of_three_modules_equals_training_each_alone(schedule, one_optimizer, delay):
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    alternating = AlternatingOptimizer(
        Alternator(TURNS, rule=Cycle(1000)),
        modules,
        optimizers_of(modules, one_optimizer),
        turns=TURNS,
        clip_norm=CLIP_NORM,
        delay=delay,
    )
    for step, turn in enumerate(schedule):
        alternating.force(turn)
        losses = {name: tower_loss(module, name, step) for name, module in modules.items()}
        alternating.step(sum(losses.values()), {turn: losses["a"], **losses})
    trained = {name: module.state_dict() for name, module in modules.items()}
    assert same_bits(trained, train_by_hand(schedule, one_optimizer))


def test_gradients_flow_through_a_frozen_module_to_an_active_one():
    first, second = nn.Linear(4, 4), nn.Linear(4, 1)
    modules = {"first": first, "second": second}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(100)), modules, optimizers_of(modules, False))
    before = [parameter.detach().clone() for parameter in (*first.parameters(), *second.parameters())]
    alternating.step(second(first(torch.ones(3, 4))).square().mean())
    assert not torch.equal(before[0], first.weight)
    assert torch.equal(before[2], second.weight)
    assert torch.equal(before[3], second.bias)


def test_upstream_frozen_modules_record_no_graph():
    modules = {"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 1)}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(100)), modules, optimizers_of(modules, False))
    assert modules["encoder"](torch.ones(3, 4)).requires_grad
    alternating.force("head")
    assert not modules["encoder"](torch.ones(3, 4)).requires_grad


def test_a_frozen_module_gives_the_same_output_each_time():
    modules = {"a": tower(0), "b": tower(1)}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(100)), modules, optimizers_of(modules, False))
    x_BD = batch(0)
    assert torch.equal(modules["b"](x_BD), modules["b"](x_BD))
    assert not torch.equal(modules["a"](x_BD), modules["a"](x_BD))
    alternating.force("b")
    assert torch.equal(modules["a"](x_BD), modules["a"](x_BD))


@pytest.mark.parametrize("one_optimizer", [False, True])
def test_gradients_that_someone_else_computes_for_a_frozen_module_are_dropped(one_optimizer):
    modules = {"a": tower(0), "b": tower(1)}
    optimizers = optimizers_of(modules, one_optimizer)
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(100)), modules, optimizers, clip_norm=CLIP_NORM)
    before = [parameter.detach().clone() for parameter in modules["b"].parameters()]
    for parameter in modules["b"].parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    alternating.step(tower_loss(modules["a"], "a", 0))
    assert float(alternating.grad_norm) < 1e3
    assert same_bits(before, list(modules["b"].parameters()))


def test_an_optimizer_with_state_per_group_keeps_the_contract_if_each_module_has_its_own():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            return super().step(closure)

    modules = {"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}
    optimizers = {name: Counting(module.parameters(), lr=0.1) for name, module in modules.items()}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle((3, 2))), modules, optimizers)
    for _ in range(10):
        alternating.step(sum(module(torch.ones(1, 2)).square().mean() for module in modules.values()))
    assert [optimizer.param_groups[0]["count"] for optimizer in optimizers.values()] == [6, 4]
