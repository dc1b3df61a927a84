"""The naive ways to freeze in PyTorch, of `naive_torch`, under the harness of the backend; and one flaw of its own."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alternator import Alternator, Decision
from tests.conformance import naive_torch
from tests.conformance.harness import Unsupported
from tests.conformance.naive_torch import HandWritten
from tests.conformance.problem import Batch, Setup
from tests.conformance.torch_backend import TorchHarness
from tests.conformance.torch_host import MarkedHost


class NaiveHarness(TorchHarness):
    """What the naive ways have in common: one module at a time, losses read at once, nothing compiled or saved."""

    naive: type[HandWritten] = HandWritten

    def build(self) -> HandWritten:
        setup = self.setup
        if setup.turns is not None or setup.always or setup.delay or setup.compiled or setup.frozen_state != "keep":
            raise Unsupported
        if setup.frozen_mode == "batch" and self.naive not in naive_torch.BY_BATCH:
            raise Unsupported
        alternator = Alternator(setup.names, rule=setup.rule)
        arguments: dict[str, Any] = {"clip_norm": setup.clip_norm, "schedulers": self.schedulers}
        return self.naive(alternator, self.towers, self.optimizers, **arguments)

    def skip(self, reported: dict[str, Tensor] | None) -> Decision:
        losses = {} if reported is None else {name: value.item() for name, value in reported.items()}
        decision = self.alternating.alternator.observe(losses, updated=False)
        self.after(switched=decision.switched)
        return decision

    def force(self, name: str) -> None:
        self.alternating.alternator.force(name)
        self.after(switched=True)

    def after(self, *, switched: bool) -> None:
        if switched:
            self.alternating.enter()

    def save(self) -> Any:
        raise Unsupported


class RunningStatistics(TorchHarness):
    """Frozen modules run in inference mode, whatever was chosen."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, frozen_mode="inference"))


class Rounding(MarkedHost):
    def fetch(self, tensor: Tensor) -> Tensor:
        return self.mark(tensor.bfloat16().to(tensor.dtype))


class Counting(MarkedHost):
    def has(self, tensor: Tensor) -> bool:
        return hasattr(tensor, "is_on_host")

    def fetch(self, tensor: Tensor) -> Tensor:
        return self.mark(tensor.clone() if tensor.dim() else torch.zeros_like(tensor))


class Full(MarkedHost):
    def has(self, tensor: Tensor) -> bool:
        return True


class RoundsOffloaded(TorchHarness):
    """Moments come back from the host in half precision."""

    host = Rounding


class ForgetsOffloadedCount(TorchHarness):
    """Counts of steps do not come back from the host."""

    host = Counting


class NothingLeaves(TorchHarness):
    """What is to be offloaded stays on the device."""

    host = Full


class KeepsDropped(TorchHarness):
    """What is to be dropped stays."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, frozen_state="keep") if setup.frozen_state == "drop" else setup)


class DropsActive(TorchHarness):
    """A switch drops every state, also that of a module that trains in both turns."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        decision = super().step(batch, losses, updated=updated)
        if decision.switched and self.setup.frozen_state == "drop":
            for optimizer in self.optimizers.values():
                optimizer.state.clear()
        return decision


class KeepsReferences(TorchHarness):
    """A snapshot of state dicts as they are, which share their memory with what trains on."""

    def copied(self, state: Any) -> Any:
        return state

    def take(self) -> Any:
        held = [self.model, *self.optimizers.values(), *self.schedulers.values()]
        return self.copied([each.state_dict() for each in held])

    def rollback(self, kept: Any) -> None:
        held = [self.model, *self.optimizers.values(), *self.schedulers.values()]
        for each, state in zip(held, copy.deepcopy(kept), strict=True):
            each.load_state_dict(state)
        self.alternating.apply()


class KeepsWeightsAlone(KeepsReferences):
    """A snapshot of the model alone: moments, step counts and learning rates stay as the trial left them."""

    def copied(self, state: Any) -> Any:
        return copy.deepcopy(state[:1])

    def rollback(self, kept: Any) -> None:
        self.model.load_state_dict(kept[0])
        self.alternating.apply()


class KeepsParametersAlone(TorchHarness):
    """A snapshot of parameters and optimizers: buffers stay as the trial left them."""

    def rollback(self, kept: Any) -> None:
        buffers = copy.deepcopy(dict(self.model.named_buffers()))
        super().rollback(kept)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        self.alternating.apply()


def harness_of(naive: type[HandWritten]) -> type[NaiveHarness]:
    return type(naive.__name__, (NaiveHarness,), {"naive": naive, "__doc__": naive.__doc__})


_BATCH = "frozen_batch_mode"
_CASES = {
    "parameters": "frozen_parameters",
    "optimizer state": "frozen_optimizer_state",
    "learning rate": "frozen_schedule",
    "buffers": "frozen_buffers",
    "gradients": "frozen_gradients",
    "continuation": "continuation",
}
"""The case for each clause of `naive_torch.BREAKS`."""

MUTANTS: dict[type[TorchHarness], set[str]] = {
    harness_of(naive): {_CASES[clause] for clause in clauses} | ({_BATCH} if naive in naive_torch.BY_BATCH else set())
    for naive, clauses in naive_torch.BREAKS.items()
} | {
    RunningStatistics: {_BATCH},
    RoundsOffloaded: {"offloaded_state"},
    ForgetsOffloadedCount: {"offloaded_state"},
    NothingLeaves: {"offloaded_state"},
    KeepsDropped: {"dropped_state"},
    DropsActive: {"dropped_state"},
    KeepsReferences: {"rollback"},
    KeepsWeightsAlone: {"rollback"},
    KeepsParametersAlone: {"rollback"},
}
"""Per mutant the cases that are there to kill it; others may as well."""
