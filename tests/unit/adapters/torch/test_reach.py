"""A module of a turn that the loss does not reach, while it reaches another: reported once, by name."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, LossError

TURNS = {"pair": ("a", "b"), "rest": "c"}


def build(modules, **options):
    optimizers = {name: AdamW(module.parameters()) for name, module in modules.items()}
    return AlternatingOptimizer(Alternator(tuple(TURNS)), modules, optimizers, turns=TURNS, **options)


def towers():
    return {name: nn.Linear(3, 3) for name in "abc"}


def test_a_module_without_a_gradient_is_reported_once():
    modules = towers()
    alternating = build(modules)
    with pytest.warns(UserWarning, match=r"no parameter of 'b' has a gradient.*leave it out of the turn") as caught:
        alternating.step(modules["a"](torch.ones(2, 3)).sum())
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alternating.step(modules["a"](torch.ones(2, 3)).sum())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_behind_what_is_frozen_is_reported():
    """Its input does not require grad, so nothing behind it is differentiated."""
    modules = towers()
    alternating = build(modules)
    hidden = checkpoint(modules["b"], modules["c"](torch.ones(2, 3)), use_reentrant=True)
    with pytest.warns(UserWarning, match=r"'b' has a gradient.*use_reentrant=False"):
        alternating.step((hidden + modules["a"](torch.ones(2, 3))).sum())


def test_an_always_group_may_have_no_part_in_a_turn():
    modules, always = towers(), nn.Parameter(torch.ones(()))
    alternating = build(modules, always=(always, AdamW([always])))
    alternating.step((modules["a"](torch.ones(2, 3)) + modules["b"](torch.ones(2, 3))).sum())
    assert always.item() == 1


def test_a_module_that_the_user_froze_is_not_reported():
    modules = towers()
    alternating = build(modules)
    modules["b"].requires_grad_(False)
    alternating.force("rest")
    alternating.force("pair")
    alternating.step(modules["a"](torch.ones(2, 3)).sum())
    assert modules["b"].weight.grad is None


NO_GRADIENTS = {
    "a number": (lambda modules: 1.0, r"must be a tensor, got 1.0; give it as the forward pass returned it"),
    "a constant": (lambda modules: torch.ones(()), r"reaches no parameter of 'pair', which is active: it requires no"),
    "detached": (lambda modules: modules["a"](torch.ones(2, 3)).sum().detach(), r"without no_grad\(\) and detach\(\)"),
    "what is frozen": (lambda modules: modules["c"](torch.ones(2, 3)).sum(), r"or call skip\(\) if this step has"),
    "a vector": (lambda modules: modules["a"](torch.ones(3)), r"must be a real scalar, got a torch.float32 tensor of"),
}


@pytest.mark.parametrize("case", NO_GRADIENTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_loss_without_a_gradient_is_refused_before_anything_happens(case, scaled):
    loss, message = NO_GRADIENTS[case]
    modules = towers()
    alternating = build(modules, scaler=torch.amp.GradScaler("cpu") if scaled else None, accumulate=2)
    before = alternating.state_dict()
    for step in (
        lambda: alternating.step(loss(modules)),
        lambda: alternating.step(loss(modules), {"pair": 1.0}),
        lambda: alternating.backward(loss(modules)),
    ):
        with pytest.raises(LossError, match=message) as error:
            step()
        assert "\n" not in str(error.value)
        assert alternating.state_dict() == before


def test_a_loss_of_one_element_is_a_scalar():
    modules = towers()
    alternating = build(modules)
    both = modules["a"](torch.ones(2, 3)) + modules["b"](torch.ones(2, 3))
    alternating.step(both.sum().reshape(1, 1))
    assert alternating.alternator.step == 1
