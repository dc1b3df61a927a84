"""PyTorch alone: its global random state."""

import torch


def test_building_a_model_leaves_the_callers_random_state_alone(make_model):
    torch.manual_seed(5)
    first = make_model(seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(6)
    second = make_model(seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
