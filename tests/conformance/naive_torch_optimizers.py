"""Optimizers that do not skip a parameter without a gradient: a None there does not freeze it.

Each stands for a way in which published implementations of Muon, and optimizers written by hand, are written. Trained
by themselves, with a gradient for everything, they are right.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer


class DecayFirst(Optimizer):
    """Decays every weight that it holds, then looks for a gradient."""

    def __init__(self, params: Iterable[Any], lr: float = 0.01, weight_decay: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group)
        return loss

    def step_group(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if parameter.grad is not None:
                parameter.sub_(self.momentum(parameter, parameter.grad, group), alpha=group["lr"])

    def momentum(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        state["momentum"] = state.get("momentum", torch.zeros_like(parameter)) * group["beta"] + gradient
        return state["momentum"]


class MomentumFirst(DecayFirst):
    """Moves every parameter by its momentum, through ``.data``, then adds the gradient to that."""

    def step_group(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if "momentum" in self.state[parameter]:
                parameter.data -= group["lr"] * self.state[parameter]["momentum"]
            if parameter.grad is not None:
                self.momentum(parameter, parameter.grad, group)


class ZerosForNone(DecayFirst):
    """Takes a missing gradient for zeros, and makes the momentum of matrices orthogonal."""

    def step_group(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            update = self.momentum(parameter, parameter.grad, group)
            parameter.sub_(orthogonal(update) if update.ndim == 2 else update, alpha=group["lr"])


def orthogonal(matrix: Tensor, num_steps: int = 5) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrix."""
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(num_steps):
        matrix = 1.5 * matrix - 0.5 * matrix @ matrix.T @ matrix
    return matrix


class WholeGroups(DecayFirst):
    """Handles all parameters of a group at once, of which there must be some, and counts its steps per group."""

    def step_group(self, group: dict[str, Any]) -> None:
        group["count"] = group.get("count", 0) + 1
        torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"] / group["count"])
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.sub_(self.momentum(parameter, parameter.grad, group), alpha=group["lr"])


class AroundAdamW(AdamW):
    """PyTorch's AdamW with a decay of its own before the step, and another after."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.decay()
        loss = super().step(closure)
        self.decay()
        return loss

    @torch.no_grad()
    def decay(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - 0.1 * group["lr"])


NAIVE: dict[str, Callable[[Iterable[Any]], Optimizer]] = {
    "decay first": DecayFirst,
    "momentum first": MomentumFirst,
    "zeros for None": ZerosForNone,
    "whole groups": WholeGroups,
    "around foreach AdamW": lambda parameters: AroundAdamW(parameters, lr=0.01, foreach=True),
    "around fused AdamW": lambda parameters: AroundAdamW(parameters, lr=0.01, fused=True),
}
