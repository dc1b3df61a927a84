"""Modules that grow, and parts that are left out and added later: looked at again at each switch and each update."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from adapters.torch import AlternatingOptimizer, FreezeError
from alternator import Alternator, ConfigurationError
from tests.conformance.freeze_contract_torch import same_bits


class Tower(nn.Sequential):
    def grow(self):
        layer = nn.Linear(3, 3)
        self.append(layer)
        return layer


def build(*, one_optimizer=False, **options):
    modules = {"a": Tower(nn.Linear(3, 3)), "b": Tower(nn.Linear(3, 3))}
    optimizers = {name: AdamW(module.parameters()) for name, module in modules.items()}
    if one_optimizer:
        both = AdamW([p for module in modules.values() for p in module.parameters()])
        optimizers = dict.fromkeys(modules, both)
    given = optimizers["a"] if one_optimizer else optimizers
    return modules, optimizers, AlternatingOptimizer(Alternator(tuple(modules)), modules, given, **options)


def loss(modules):
    return modules["b"](modules["a"](torch.ones(4, 3))).square().mean()


def bits(module):
    return copy.deepcopy(module.state_dict())


@pytest.mark.parametrize("one_optimizer", [False, True])
def test_a_layer_added_to_a_frozen_module_is_frozen_from_the_first_update(one_optimizer):
    modules, optimizers, alternating = build(one_optimizer=one_optimizer)
    layer = modules["b"].grow()
    optimizers["b"].add_param_group({"params": layer.parameters()})
    before = bits(modules["b"])
    for _ in range(3):
        alternating.step(loss(modules))
        assert layer.weight.grad is None
    assert same_bits(modules["b"].state_dict(), before)
    assert not optimizers["b"].state[layer.weight]
    assert not layer.training
    alternating.force("b")
    alternating.step(loss(modules))
    assert not torch.equal(layer.weight, before["1.weight"])


@pytest.mark.parametrize("one_optimizer", [False, True])
def test_a_layer_added_to_an_active_module_trains_at_once_and_is_frozen_with_it(one_optimizer):
    modules, optimizers, alternating = build(one_optimizer=one_optimizer)
    layer = modules["a"].grow()
    optimizers["a"].add_param_group({"params": layer.parameters()})
    before = bits(layer)
    alternating.step(loss(modules))
    assert not same_bits(layer.state_dict(), before)
    alternating.force("b")
    before = bits(modules["a"])
    alternating.step(loss(modules))
    assert same_bits(modules["a"].state_dict(), before)


def test_a_layer_without_an_optimizer_is_refused_at_the_next_switch():
    modules, optimizers, alternating = build()
    modules["b"].grow()
    alternating.step(loss(modules))
    with pytest.raises(ConfigurationError, match=r"'b.1.weight', 'b.1.bias' is not in it and would never train"):
        alternating.force("b")
    with pytest.raises(ConfigurationError, match="would never train"):
        alternating.apply()
    optimizers["b"].add_param_group({"params": modules["b"][1].parameters()})
    alternating.apply()
    alternating.step(loss(modules))


def test_a_layer_in_the_optimizer_of_another_module_is_refused():
    modules, optimizers, alternating = build()
    optimizers["a"].add_param_group({"params": modules["b"].grow().parameters()})
    with pytest.raises(ConfigurationError, match=r"the optimizer of 'b' must cover it, but 'b.1.weight'"):
        alternating.step(loss(modules))


def test_a_parameter_of_no_module_is_refused():
    modules, optimizers, alternating = build()
    optimizers["a"].add_param_group({"params": nn.Parameter(torch.ones(3))})
    with pytest.raises(ConfigurationError, match=r"of shape \(3,\) belongs to no module"):
        alternating.step(loss(modules))


def test_memory_shared_with_another_module_is_refused():
    modules, optimizers, alternating = build()
    layer = modules["a"].grow()
    layer.weight.data = modules["b"][0].weight.data
    optimizers["a"].add_param_group({"params": layer.parameters()})
    with pytest.raises(ConfigurationError, match="memory must belong to one module"):
        alternating.step(loss(modules))


@pytest.mark.parametrize("active", ["a", "b"])
def test_a_part_left_out_trains_once_it_is_unfrozen_and_added(active):
    """As Lightning's BaseFinetuning does it in mid-run."""
    modules = {"a": Tower(nn.Linear(3, 3), nn.Linear(3, 3)), "b": Tower(nn.Linear(3, 3))}
    backbone = modules["a"][0].requires_grad_(False)
    optimizer = AdamW([p for module in modules.values() for p in module.parameters() if p.requires_grad])
    alternating = AlternatingOptimizer(Alternator(tuple(modules)), modules, optimizer)
    alternating.force(active)
    alternating.step(loss(modules))
    backbone.requires_grad_(True)
    if active == "a":
        with pytest.raises(ConfigurationError, match=r"add it with add_param_group\(\)"):
            alternating.step(loss(modules))
    optimizer.add_param_group({"params": backbone.parameters()})
    before = bits(backbone)
    alternating.step(loss(modules))
    assert same_bits(backbone.state_dict(), before) == (active == "b")
    alternating.force("a")
    before = bits(backbone)
    alternating.step(loss(modules))
    assert not same_bits(backbone.state_dict(), before)


def test_what_the_user_froze_stays_frozen_when_a_module_grows():
    modules, optimizers, alternating = build()
    modules["b"][0].bias.requires_grad_(False)
    alternating.force("b")
    modules["b"][0].bias.requires_grad_(False)
    layer = modules["b"].grow()
    layer.bias.requires_grad_(False)
    optimizers["b"].add_param_group({"params": layer.parameters()})
    before = bits(modules["b"])
    alternating.force("a")
    alternating.force("b")
    alternating.step(loss(modules))
    after = modules["b"].state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved == {"0.weight", "1.weight"}


def test_a_model_that_grows_between_its_modules():
    modules = {"a": Tower(nn.Linear(3, 3)), "b": Tower(nn.Linear(3, 3))}
    model = nn.ModuleDict(modules)
    optimizer = AdamW(model.parameters())
    alternating = AlternatingOptimizer(Alternator(tuple(modules)), modules, optimizer, model=model)
    model["dropout"] = nn.Dropout()
    alternating.apply()
    alternating.eval()
    assert not model["dropout"].training
    alternating.train()
    assert model["dropout"].training


def test_a_buffer_of_a_new_layer_is_watched():
    modules, _, alternating = build(frozen_mode="inference")
    modules["b"].append(nn.BatchNorm1d(3, affine=False))
    alternating.apply()
    modules["b"][1].num_batches_tracked += 1
    with pytest.raises(FreezeError, match=r"'b.1.num_batches_tracked'"):
        alternating.step(loss(modules))


def test_a_switch_that_finds_nothing_new_changes_nothing():
    _, _, alternating = build()
    turns = alternating._freezer.turns
    alternating.force("b")
    assert alternating._freezer.turns is turns
