"""The alternator knows which modules each of its names trains, so that it can name one that starves."""

import pytest
import torch

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle


def test_a_module_that_only_another_name_trains_starves():
    modules = {"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in modules.items()}
    turns = {"both": ("a", "b"), "a": "a"}
    alternator = Alternator(turns, Cycle((100, 20)), num_steps=1000)
    alternating = AlternatingOptimizer(alternator, modules, optimizers, turns=turns)

    def step(name=None):
        alternating.step(sum(module(torch.ones(1, 2)).sum() for module in modules.values()))
        if name is not None:
            alternating.force(name)

    for _ in range(220):  # "a" trains in either turn, and "b" in most
        step()
    alternating.force("a")
    for _ in range(101):
        step("a")
    with pytest.warns(UserWarning, match="'b' has not trained for 101 of 1,000 planned steps"):
        step()
