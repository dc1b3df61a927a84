"""The naive ways to freeze in PyTorch, of `naive_torch`, under the harness of the backend; and one flaw of its own."""

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from alternator import Alternator, Decision
from tests.conformance import naive_torch
from tests.conformance.harness import Unsupported
from tests.conformance.naive_torch import HandWritten
from tests.conformance.problem import Setup
from tests.conformance.torch_backend import TorchHarness


class NaiveHarness(TorchHarness):
    """What the naive ways have in common: one module at a time, losses read at once, nothing compiled or saved."""

    naive: type[HandWritten] = HandWritten

    def build(self) -> HandWritten:
        setup = self.setup
        if setup.turns is not None or setup.always or setup.delay or setup.compiled:
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
    KeepsReferences: {"rollback"},
    KeepsWeightsAlone: {"rollback"},
    KeepsParametersAlone: {"rollback"},
}
"""Per mutant the cases that are there to kill it; others may as well."""
