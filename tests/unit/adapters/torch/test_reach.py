"""A module of a turn that the loss does not reach, while it reaches another: reported once, by name."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from adapters.torch import AlternatingOptimizer
from alternator import Alternator

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
