"""Sparse gradients, and modules whose parts need optimizers of their own: tables SparseAdam, matrices Muon."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import same_bits

ROWS_BD = torch.tensor([[1, 1, 2], [3, 1, 0]])


class Tower(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(5, 4, sparse=True)
        self.head = nn.Linear(4, 1)

    def forward(self, rows_BD):
        return self.head(self.table(rows_BD).sum(1))


@pytest.mark.parametrize("clip_norm", [0.01, 100.0])
def test_the_norm_of_sparse_gradients_is_that_of_dense_ones(clip_norm):
    """A row that is looked up twice counts once."""
    norms, gradients = [], []
    for sparse in (True, False):
        modules = {"a": nn.Embedding(5, 4, sparse=sparse), "b": nn.Linear(4, 1)}
        torch.manual_seed(0)
        nn.init.normal_(modules["a"].weight)
        seen = []
        optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in modules.items()}
        optimizers["a"].register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(optimizer.param_groups[0]["params"][0].grad.to_dense().clone())
        )
        alternating = AlternatingOptimizer(
            Alternator(modules, rule=Cycle(100)), modules, optimizers, clip_norm=clip_norm
        )
        alternating.step(modules["a"](ROWS_BD).square().sum())
        norms.append(alternating.grad_norm)
        gradients.append(seen[0])
    torch.testing.assert_close(*norms)
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() <= clip_norm * 1.001 or clip_norm == 100.0
    assert same_bits([each.count_nonzero() for each in gradients], [gradients[1].count_nonzero()] * 2)


TURNS = ["a", "a", "b", "b", "b", "a", "a", "b", "b", "b"]


def parts(tower, main=torch.optim.SparseAdam):
    return [main(tower.table.parameters(), lr=0.05), torch.optim.AdamW(tower.head.parameters(), lr=0.05)]


class Run:
    """Towers with an optimizer, and a scheduler, for each part."""

    def __init__(self, **options):
        self.towers = {"a": Tower(0), "b": Tower(1)}
        self.optimizers = {name: parts(tower) for name, tower in self.towers.items()}
        schedulers = {name: [ExponentialLR(each, 0.9) for each in pair] for name, pair in self.optimizers.items()}
        self.alternating = AlternatingOptimizer(
            Alternator(("a", "b"), rule=Cycle((2, 3))),
            self.towers,
            self.optimizers,
            schedulers=schedulers,
            clip_norm=0.5,
            **options,
        )

    def train(self, start, stop):
        for step in range(start, stop):
            assert self.alternating.active == TURNS[step]
            self.alternating.step(sum(loss(tower, step) for tower in self.towers.values()))
        return self

    def states(self):
        rates = [each.param_groups[0]["lr"] for pair in self.optimizers.values() for each in pair]
        return [{name: tower.state_dict() for name, tower in self.towers.items()}, rates]


def loss(tower, step):
    return (tower((ROWS_BD + step) % 5) - step).square().mean()


def by_hand():
    towers = {"a": Tower(0), "b": Tower(1)}
    optimizers = {name: parts(tower) for name, tower in towers.items()}
    schedulers = {name: [ExponentialLR(each, 0.9) for each in pair] for name, pair in optimizers.items()}
    for step, name in enumerate(TURNS):
        loss(towers[name], step).backward()
        sparse = towers[name].table.weight
        sparse.grad = sparse.grad.coalesce()
        dense = [parameter.grad for parameter in towers[name].head.parameters()]
        norm = nn.utils.get_total_norm([sparse.grad.values(), *dense])
        for gradient in (sparse.grad, *dense):
            gradient.mul_(torch.clamp(0.5 / (norm + 1e-6), max=1.0))
        for each in (*optimizers[name], *schedulers[name]):
            each.step()
        for optimizer in optimizers[name]:
            optimizer.zero_grad()
    return [
        {name: tower.state_dict() for name, tower in towers.items()},
        [each.get_last_lr()[0] for pair in schedulers.values() for each in pair],
    ]


def test_a_table_with_sparse_gradients_beside_dense_layers():
    assert same_bits(Run().train(0, len(TURNS)).states(), by_hand())


@pytest.mark.parametrize("stop", [1, 4])
def test_all_optimizers_of_a_module_are_saved_by_name(stop):
    whole, first, second = Run().train(0, len(TURNS)), Run().train(0, stop), Run()
    state = copy.deepcopy(first.alternating.state_dict(include_optimizers=True))
    assert sorted(state["optimizers"]) == ["a.head.bias", "a.table.weight", "b.head.bias", "b.table.weight"]
    assert sorted(state["schedulers"]) == ["a[0]", "a[1]", "b[0]", "b[1]"]
    for name, tower in second.towers.items():
        tower.load_state_dict(first.towers[name].state_dict())
    second.alternating.load_state_dict(state)
    assert same_bits(second.train(stop, len(TURNS)).states(), whole.states())


def test_what_none_of_them_holds_is_named():
    towers = {"a": Tower(0), "b": Tower(1)}
    optimizers = {"a": parts(towers["a"])[:1], "b": parts(towers["b"])}
    with pytest.raises(ConfigurationError, match=r"the optimizer of 'a' must cover it, but 'a\.head\.weight'"):
        AlternatingOptimizer(Alternator(("a", "b")), towers, optimizers)
    with pytest.raises(ConfigurationError, match=r"every module must have an optimizer, but 'a' has none"):
        AlternatingOptimizer(Alternator(("a", "b")), towers, {**optimizers, "a": []})
