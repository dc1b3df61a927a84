"""All that trains in some turn, shown as if it trained now: for PyTorch's distributed checkpoint.

It leaves out the optimizer state of a parameter that does not require gradients, silently, and makes up one for a
parameter that has none, by a step with gradients of zero.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adapters.torch.checks import parameters_of
from adapters.torch.freezer import Freezer
from adapters.torch.shares import Share, showing


@contextmanager
def unfrozen(freezer: Freezer) -> Iterator[None]:
    """See `AlternatingOptimizer.unfrozen`."""
    freezer.check_written()
    freezer.remember()
    freezer.zero_grad()
    freezer.frozen_states.wait()
    if freezer.ranks is not None:
        freezer.ranks.reshard()
    named = [(group, key, p) for group in freezer.groups.values() for key, p in group.parameters.items()]
    before = [parameter.requires_grad for _, _, parameter in named]
    started: list[tuple[Optimizer, nn.Parameter, Any]] = []
    try:
        stepped = {
            parameter for optimizer in freezer.optimizers for parameter, state in optimizer.state.items() if state
        }
        for group, key, parameter in named:
            trains = key not in group.user_frozen or parameter in stepped
            parameter.requires_grad_(trains and not freezer.frozen_states.is_dropped(parameter))
        for optimizer in freezer.optimizers:
            new = [p for p in parameters_of(optimizer) if p.requires_grad and not optimizer.state.get(p)]
            if new:
                started += [(optimizer, *each) for each in _start(optimizer, new)]
        yield
    finally:
        for optimizer, parameter, state in started:
            if optimizer.state.get(parameter) is state:  # nothing has been loaded
                del optimizer.state[parameter]
        for (_, _, parameter), required in zip(named, before, strict=True):
            parameter.requires_grad_(required)
        freezer.zero_grad()
        freezer.accept_written()


@torch.no_grad()
def _start(optimizer: Optimizer, new: Sequence[nn.Parameter]) -> list[tuple[nn.Parameter, Any]]:
    """Give parameters that have never been stepped a state, by a step in which everything is zero; those that have one.

    What an optimizer counts is zero again, and values and groups are as before.
    """
    values = [parameter.clone() for parameter in new]
    groups = [dict(group) for group in optimizer.param_groups]
    for parameter in new:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group.update({key: group[key] * 0 for key in ("lr", "weight_decay") if key in group})
    with showing([Share(optimizer, {id(parameter) for parameter in new})]):
        optimizer.step()
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update(before)
    for parameter, value in zip(new, values, strict=True):
        parameter.copy_(value)
        parameter.grad = None
    states = [(parameter, optimizer.state[parameter]) for parameter in new if optimizer.state.get(parameter)]
    for _, state in states:
        if "step" in state:
            state["step"] *= 0
    return states
