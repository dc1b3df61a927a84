"""Modules of torch.export, whose modes are fixed."""

import types

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, same_bits


def exported():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return torch.export.export(module, (torch.ones(2, 3),)).module()


def build(modules):
    optimizers = {
        name: adamw(each.parameters() if isinstance(each, nn.Module) else each) for name, each in modules.items()
    }
    return AlternatingOptimizer(Alternator(modules, rule=Cycle(1)), modules, optimizers)


@pytest.mark.parametrize(("module", "name"), [(exported, "a"), (lambda: nn.Sequential(exported()), r"a\.0")])
def test_one_that_raises_in_train_is_refused_before_anything_is_frozen(module, name):
    modules = {"a": module(), "b": nn.Linear(3, 1)}
    with pytest.raises(ConfigurationError, match=rf"must follow train\(\) and eval\(\), but '{name}' cannot") as error:
        build(modules)
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for module in modules.values() for parameter in module.parameters())


def test_its_parameters_can_be_given():
    module, other = exported(), nn.Linear(3, 1)
    alternating = build({"a": list(module.parameters()), "b": other})
    for _ in range(4):
        active = alternating.active
        before = [[parameter.detach().clone() for parameter in each.parameters()] for each in (module, other)]
        alternating.step(module(torch.ones(2, 3)).square().mean() + other(torch.ones(2, 3)).square().mean())
        stays = [same_bits(old, list(each.parameters())) for old, each in zip(before, (module, other), strict=True)]
        assert stays == [active != "a", active != "b"]


def test_one_that_was_given_a_train_of_its_own_is_accepted():
    module = nn.Linear(3, 1)
    module.train = types.MethodType(lambda self, mode=True: nn.Module.train(self, mode), module)
    assert build({"a": nn.Linear(3, 1), "b": module}).active == "a"
    assert not module.training
