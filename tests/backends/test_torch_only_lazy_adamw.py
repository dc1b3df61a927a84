"""LazyAdamW: on the rows that a gradient has it is AdamW, and the others do not move."""

import torch

from ur4rec_torch.lazy_adamw import LazyAdamW

SETTINGS = {"lr": 0.1, "weight_decay": 0.2, "fused": True}


def table(sparse):
    return torch.nn.Embedding.from_pretrained(torch.arange(12.0).reshape(6, 2) / 10, freeze=False, sparse=sparse)


def train(embedding, optimizer, steps):
    for rows in steps:
        optimizer.zero_grad()
        embedding(torch.tensor(rows)).square().sum().backward()
        optimizer.step()


def test_rows_used_in_every_step_are_those_of_adamw_and_the_others_keep_every_bit():
    lazy, dense = table(sparse=True), table(sparse=False)
    before = lazy.weight.detach().clone()
    optimizer = LazyAdamW(lazy.parameters(), **SETTINGS)
    steps = [[1, 4, 4], [4, 1], [1, 1, 4]]
    train(lazy, optimizer, steps)
    train(dense, torch.optim.AdamW(dense.parameters(), **SETTINGS), steps)
    torch.testing.assert_close(lazy.weight[[1, 4]], dense.weight[[1, 4]])
    assert torch.equal(lazy.weight[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    moments = optimizer.state[lazy.weight]["exp_avg"]
    assert moments[[1, 4]].abs().min() > 0
    assert not moments[[0, 2, 3, 5]].any()


def test_dense_gradients_are_adamws_to_the_bit():
    ours, theirs = table(sparse=False), table(sparse=False)
    train(ours, LazyAdamW(ours.parameters(), **SETTINGS), [[0, 1], [2]])
    train(theirs, torch.optim.AdamW(theirs.parameters(), **SETTINGS), [[0, 1], [2]])
    assert torch.equal(ours.weight, theirs.weight)


def test_found_inf_leaves_rows_and_state_alone():
    embedding = table(sparse=True)
    optimizer = LazyAdamW(embedding.parameters(), **SETTINGS)
    train(embedding, optimizer, [[1, 4]])
    before = embedding.weight.detach().clone()
    optimizer.found_inf = torch.ones(())
    train(embedding, optimizer, [[1, 4]])
    assert torch.equal(embedding.weight, before)
    assert optimizer.state[embedding.weight]["step"] == 1
