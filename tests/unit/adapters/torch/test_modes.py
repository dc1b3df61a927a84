"""What the user froze or put in inference mode stays so; and evaluation in between."""

import copy

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer, FreezeError
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, same_bits, tower, tower_loss


def build(modules=None, cycle=1, **options):
    modules = modules or {"a": tower(0), "b": tower(1)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    options = {"frozen_mode": "inference", **options}
    return AlternatingOptimizer(Alternator(modules, rule=Cycle(cycle)), modules, optimizers, **options), modules


def train(alternating, modules, num_steps, start=0):
    for step in range(start, start + num_steps):
        alternating.step(sum(tower_loss(module, name, step) for name, module in modules.items()))


def test_parameters_that_the_user_froze_stay_frozen():
    modules = {"a": tower(0), "b": tower(1)}
    modules["a"][0].requires_grad_(False)
    before = copy.deepcopy(list(modules["a"][0].parameters()))
    alternating, _ = build(modules)
    train(alternating, modules, 6)
    assert same_bits(before, list(modules["a"][0].parameters()))
    alternating.force("a")
    assert [parameter.requires_grad for parameter in modules["a"].parameters()] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]


def test_a_parameter_frozen_while_its_module_is_active_stays_frozen():
    alternating, modules = build(cycle=2)
    train(alternating, modules, 1)
    modules["a"][0].requires_grad_(False)
    before = copy.deepcopy(list(modules["a"][0].parameters()))
    train(alternating, modules, 8, start=1)
    assert same_bits(before, list(modules["a"][0].parameters()))


@pytest.mark.parametrize("when_active", [True, False])
def test_a_parameter_unfrozen_by_the_user_trains_from_its_next_turn_on(when_active):
    modules = {"a": tower(0), "b": tower(1)}
    modules["a"][0].requires_grad_(False)
    alternating, _ = build(modules, cycle=2)
    train(alternating, modules, 1 if when_active else 3)
    modules["a"][0].requires_grad_(True)
    before = copy.deepcopy(list(modules["a"][0].parameters()))
    train(alternating, modules, 4, start=3)
    alternating.force("a")
    assert not same_bits(before, list(modules["a"][0].parameters()))
    assert all(parameter.requires_grad for parameter in modules["a"].parameters())


def test_a_parameter_unfrozen_while_its_module_is_frozen_waits_for_its_turn_with_one_optimizer_over_all():
    modules = {"a": tower(0), "b": tower(1)}
    modules["b"][0].requires_grad_(False)
    optimizer = adamw([parameter for module in modules.values() for parameter in module.parameters()])
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(4)), modules, optimizer, frozen_mode="inference")
    train(alternating, modules, 1)
    modules["b"][0].requires_grad_(True)
    before = copy.deepcopy(list(modules["b"].parameters()))
    train(alternating, modules, 2, start=1)
    assert same_bits(before, list(modules["b"].parameters()))
    train(alternating, modules, 3, start=3)
    assert not same_bits(before[:2], list(modules["b"][0].parameters()))


def test_a_parameter_unfrozen_that_no_optimizer_covers_is_an_error():
    modules = {"a": tower(0), "b": tower(1)}
    modules["a"][0].requires_grad_(False)
    trainable = [parameter for parameter in modules["a"].parameters() if parameter.requires_grad]
    optimizers = {"a": adamw(trainable), "b": adamw(modules["b"].parameters())}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(9)), modules, optimizers)
    train(alternating, modules, 1)
    modules["a"][0].weight.requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"'a.0.weight' was unfrozen and is in none"):
        train(alternating, modules, 1)


def test_submodules_that_the_user_put_in_inference_mode_stay_so():
    modules = {"a": tower(0), "b": tower(1)}
    modules["a"][1].eval()
    buffers = copy.deepcopy(list(modules["a"].buffers()))
    alternating, _ = build(modules)
    train(alternating, modules, 5)
    assert same_bits(buffers, list(modules["a"].buffers()))
    alternating.force("a")
    assert modules["a"].training
    assert modules["a"][3].training
    assert not modules["a"][1].training


def test_a_submodule_put_in_inference_mode_while_active_stays_so():
    alternating, modules = build()
    modules["a"][1].eval()
    alternating.force("b")
    alternating.force("a")
    assert modules["a"].training
    assert not modules["a"][1].training


def test_a_whole_module_in_inference_mode_when_this_is_built_stays_so():
    modules = {"a": tower(0).eval(), "b": tower(1)}
    alternating, _ = build(modules)
    train(alternating, modules, 4)
    alternating.force("a")
    assert not any(submodule.training for submodule in modules["a"].modules())
    assert modules["a"][0].weight.requires_grad


def test_training_mode_of_a_model_that_was_built_in_inference_mode_is_warned_of():
    """As Transformers' pretrained models are."""
    modules = {"a": tower(0).eval(), "b": tower(1).eval()}
    alternating, _ = build(modules)
    with pytest.warns(UserWarning, match=r"all modules were in inference mode, .*call model.train\(\) before"):
        alternating.train()
    alternating.release()
    modules["a"].train()
    alternating, _ = build(modules)
    alternating.train()
    assert modules["a"].training


def test_train_and_eval_keep_frozen_modules_frozen():
    alternating, modules = build(cycle=100)
    modules["a"][1].eval()
    alternating.force("b")
    alternating.force("a")
    alternating.eval()
    assert not any(submodule.training for module in modules.values() for submodule in module.modules())
    alternating.train()
    assert modules["a"].training
    assert not modules["a"][1].training
    assert not any(submodule.training for submodule in modules["b"].modules())


class Between(nn.Module):
    """Two modules with dropout, and a dropout that stays off, between them."""

    def __init__(self, modules):
        super().__init__()
        self.parts = nn.ModuleDict(modules)
        self.dropout, self.off = nn.Dropout(0.5), nn.Dropout(0.5).eval()


def test_train_and_eval_reach_what_lies_between_the_modules_of_the_model():
    modules = {"a": tower(0), "b": tower(1)}
    model = Between(modules)
    alternating, _ = build(modules, cycle=100, model=model)
    alternating.eval()
    assert not any(submodule.training for submodule in model.modules())
    alternating.eval()
    alternating.train()
    assert model.training
    assert model.dropout.training
    assert not model.off.training
    assert modules["a"].training
    assert not modules["b"].training
    train(alternating, modules, 1)


def test_training_mode_set_from_outside_is_an_error_before_anything_moves():
    alternating, modules = build(cycle=100)
    model = nn.ModuleDict(modules)
    model.eval()
    model.train()
    before = copy.deepcopy(model.state_dict())
    loss = (modules["a"][0].weight ** 2).mean()
    with pytest.raises(FreezeError, match=r"'b', 'b.0', 'b.1' and 3 more is in training mode: call train\(\)"):
        alternating.step(loss)
    assert same_bits(before, model.state_dict())
    assert modules["a"][0].weight.grad is None
    alternating.train()
    assert alternating.step(loss).step == 1


def test_a_checkpoint_taken_during_an_evaluation_does_not_end_training_mode():
    alternating, modules = build(cycle=100)
    nn.ModuleDict(modules).eval()
    state = alternating.state_dict()
    alternating.train()
    assert modules["a"].training
    alternating.load_state_dict(state)
    assert modules["a"].training


def test_modules_that_override_train_are_asked():
    calls = []

    class Net(nn.Linear):
        def train(self, mode=True):
            calls.append(mode)
            return super().train(mode)

    alternating, modules = build({"a": Net(1, 1), "b": nn.Linear(1, 1)})
    calls.clear()
    alternating.force("b")
    alternating.force("a")
    assert calls == [False, True]
    assert modules["a"].training


def test_the_always_group_trains_in_every_step_and_keeps_its_mode():
    shared = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = shared
            self.head = nn.Linear(6, 1)

        def forward(self, x_BD):
            return self.head(self.shared(x_BD))

    modules = {"a": Tower(), "b": Tower()}
    optimizers = {name: adamw(module.head.parameters()) for name, module in modules.items()}
    alternating = AlternatingOptimizer(
        Alternator(modules, rule=Cycle(1)), modules, optimizers, always=(shared, adamw(shared.parameters()))
    )
    for step in range(4):
        before = copy.deepcopy({"shared": shared.state_dict(), "a": modules["a"].head.state_dict()})
        active = alternating.active
        alternating.step(tower_loss(modules[active], active, step))
        assert shared.training
        assert shared[1].training
        assert not torch.equal(before["shared"]["0.weight"], shared[0].weight)
        assert not torch.equal(before["shared"]["1.running_mean"], shared[1].running_mean)
        assert torch.equal(before["a"]["weight"], modules["a"].head.weight) == (active == "b")


def test_the_always_group_within_the_optimizer_of_a_module():
    modules = {"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}
    weights = nn.Parameter(torch.zeros(2))
    optimizers = {"a": adamw([*modules["a"].parameters(), weights]), "b": adamw(modules["b"].parameters())}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(1)), modules, optimizers, always=weights)
    for step in range(4):
        before = copy.deepcopy([weights, modules["a"].weight, modules["b"].weight])
        losses = [module(torch.ones(1, 2)).square().mean() for module in modules.values()]
        alternating.step((weights.exp() * torch.stack(losses)).sum() - weights.sum() * 2)
        assert not torch.equal(before[0], weights)
        assert torch.equal(before[1], modules["a"].weight) == (step % 2 == 1)
        assert torch.equal(before[2], modules["b"].weight) == (step % 2 == 0)
    assert int(optimizers["a"].state[modules["a"].weight]["step"]) == 2
    assert int(optimizers["a"].state[weights]["step"]) == 4


def test_plain_parameters_have_no_mode():
    module, rest = tower(0), tower(1)
    optimizers = {"a": adamw(module.parameters()), "b": adamw(rest.parameters())}
    alternating = AlternatingOptimizer(
        Alternator(("a", "b"), rule=Cycle(1)), {"a": module.parameters(), "b": list(rest.parameters())}, optimizers
    )
    alternating.step(tower_loss(module, "a", 0))
    assert module.training
    assert not module[0].weight.requires_grad
    assert rest[0].weight.requires_grad


def test_release_gives_the_modules_back_as_the_user_had_them():
    modules = {"a": tower(0), "b": tower(1)}
    modules["b"][0].requires_grad_(False)
    modules["b"][1].eval()
    alternating, _ = build(modules, cycle=100)
    with pytest.raises(ConfigurationError, match=r"every parameter of 'b' is frozen .*release\(\)"):
        build(modules)
    alternating.release()
    assert modules["a"].training
    assert modules["b"].training
    assert not modules["b"][1].training
    assert [parameter.requires_grad for parameter in modules["b"].parameters()] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert build(modules)[0].active == "a"
