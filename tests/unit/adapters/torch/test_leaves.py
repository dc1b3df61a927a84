"""Leaf tensors as modules: the temperature of a soft actor-critic."""

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, same_bits

TURNS = ["actor", "actor", "alpha", "actor", "actor", "alpha"]


def losses(actor, log_alpha, step):
    actions = actor(torch.randn(8, 3, generator=torch.Generator().manual_seed(step)))
    actor_loss = (log_alpha.detach().exp() * actions.square() - actions).mean()
    return {"actor": actor_loss, "alpha": (log_alpha.exp() * (actions.detach() + 1)).mean()}


def players():
    torch.manual_seed(0)
    return nn.Linear(3, 1), torch.zeros(1, requires_grad=True)


@pytest.mark.parametrize("given", [lambda leaf: leaf, lambda leaf: [leaf]], ids=["tensor", "list"])
def test_a_leaf_trains_in_its_turn(given):
    actor, log_alpha = players()
    optimizers = {"actor": adamw(actor.parameters()), "alpha": adamw([log_alpha])}
    modules = {"actor": actor, "alpha": given(log_alpha)}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle((2, 1))), modules, optimizers)
    for step, turn in enumerate(TURNS):
        assert alternating.active == turn
        before = log_alpha.detach().clone()
        assert log_alpha.requires_grad == (turn == "alpha")
        alternating.step(losses(actor, log_alpha, step)[turn])
        assert torch.equal(before, log_alpha) == (turn == "actor")
    alternating.release()
    assert log_alpha.requires_grad
    assert same_bits([actor.state_dict(), log_alpha], by_hand())


def by_hand():
    actor, log_alpha = players()
    optimizers = {"actor": adamw(actor.parameters()), "alpha": adamw([log_alpha])}
    for step, turn in enumerate(TURNS):
        losses(actor, log_alpha, step)[turn].backward()
        optimizers[turn].step()
        optimizers[turn].zero_grad()
    return [actor.state_dict(), log_alpha]


def test_always():
    actor, log_alpha = players()
    modules = {"actor": actor, "critic": nn.Linear(3, 1)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    alternating = AlternatingOptimizer(
        Alternator(modules, rule=Cycle(1)), modules, optimizers, always=(log_alpha, adamw([log_alpha]))
    )
    for step in range(2):
        before = log_alpha.detach().clone()
        alternating.step(
            sum(losses(actor, log_alpha, step).values()) + modules["critic"](torch.ones(3)).square().mean()
        )
        assert not torch.equal(before, log_alpha)


def test_memory_of_a_leaf_is_that_of_a_parameter():
    actor, _ = players()
    view = actor.weight.detach()[0].requires_grad_()
    optimizers = {"actor": adamw(actor.parameters()), "alpha": adamw([view])}
    with pytest.raises(ConfigurationError, match=r"memory must belong to one module"):
        AlternatingOptimizer(Alternator(("actor", "alpha")), {"actor": actor, "alpha": view}, optimizers)


@pytest.mark.parametrize("wrong", [torch.zeros(1), torch.zeros(1, requires_grad=True) * 2], ids=["constant", "result"])
def test_a_tensor_that_cannot_train(wrong):
    actor, log_alpha = players()
    optimizers = {"actor": adamw(actor.parameters()), "alpha": adamw([log_alpha])}
    with pytest.raises(ConfigurationError, match=r"leaf tensors that require gradients; 'alpha\[0\]' is not"):
        AlternatingOptimizer(Alternator(("actor", "alpha")), {"actor": actor, "alpha": wrong}, optimizers)
