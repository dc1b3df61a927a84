"""Sparse gradients: tables that SparseAdam steps."""

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import same_bits

ROWS_BD = torch.tensor([[1, 1, 2], [3, 1, 0]])


class Tower(nn.Module):
    def __init__(self, seed, *, sparse):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(5, 4, sparse=sparse)
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
