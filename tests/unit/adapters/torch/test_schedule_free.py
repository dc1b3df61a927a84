"""Schedule-free optimizers, whose eval() and train() write the weights that they hold, frozen ones too."""

import pytest
from schedulefree import AdamWScheduleFree

from adapters.torch import AlternatingOptimizer, FreezeError
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import same_bits, tower, tower_loss

NAMES = ("a", "b")
TURNS = ["a", "a", "b", "b", "b", "a", "a", "b"]
EVALUATED = (1, 4)
"""The steps after which the model is evaluated."""


def towers():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: AdamWScheduleFree(module.parameters(), lr=0.01) for name, module in modules.items()}
    for optimizer in optimizers.values():
        optimizer.train()
    return modules, optimizers


def evaluate(optimizers):
    for optimizer in optimizers.values():
        optimizer.eval()
        optimizer.train()


def build():
    modules, optimizers = towers()
    return modules, optimizers, AlternatingOptimizer(Alternator(NAMES, rule=Cycle((2, 3))), modules, optimizers)


def test_a_run_with_evaluations_equals_a_loop_by_hand():
    modules, optimizers, alternating = build()
    for step, turn in enumerate(TURNS):
        assert alternating.active == turn
        alternating.step(sum(tower_loss(module, name, step) for name, module in modules.items()))
        if step in EVALUATED:
            evaluate(optimizers)
            alternating.apply()
    ours = [module.state_dict() for module in modules.values()]
    modules, optimizers = towers()
    for step, name in enumerate(TURNS):
        tower_loss(modules[name], name, step).backward()
        optimizers[name].step()
        optimizers[name].zero_grad()
        if step in EVALUATED:
            evaluate(optimizers)
    assert same_bits(ours, [module.state_dict() for module in modules.values()])


def test_without_apply_the_write_is_named():
    modules, optimizers, alternating = build()
    for step in range(2):
        alternating.step(sum(tower_loss(module, name, step) for name, module in modules.items()))
    evaluate(optimizers)
    with pytest.raises(
        FreezeError, match=r"'a\.0\.weight', .*if you wrote it between steps, call apply\(\) after that"
    ):
        alternating.step(sum(tower_loss(module, name, 2) for name, module in modules.items()))
