"""The PyTorch backend: the problem under `adapters.torch.AlternatingOptimizer`."""

import copy
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Decision
from tests.conformance.harness import Snapshot
from tests.conformance.problem import (
    ALWAYS,
    BETAS,
    DECAY,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Batch,
    Setup,
    initial_weights,
)
from tests.conformance.torch_host import MarkedHost


class Tower(nn.Module):
    """One module of the problem. PyTorch's own normalisation, at its input's scale: the problem's only centres."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights["weight"]))
        self.bias = nn.Parameter(torch.tensor(weights["bias"]))
        self.norm = nn.BatchNorm1d(len(weights["mean"]), momentum=MOMENTUM, affine=False)
        self.norm.running_mean = torch.tensor(weights["mean"])

    def forward(self, inputs_BD: Tensor) -> Tensor:
        normed_BD = self.norm(inputs_BD)
        return (normed_BD * (inputs_BD.std(0) / normed_BD.std(0))) @ self.weight + self.bias


class Model(nn.Module):
    """All towers and the mix."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.coupled = setup.coupled
        self.towers = nn.ModuleDict({name: Tower(weights) for name, weights in initial_weights(setup).items()})
        self.mix = nn.Parameter(torch.ones(len(setup.modules)), requires_grad=setup.always)

    def forward(self, inputs_NBD: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, each module's own loss, and the scores."""
        predictions_NB = torch.stack(
            [tower(x_BD) for tower, x_BD in zip(self.towers.values(), inputs_NBD, strict=True)]
        )
        own_N = (predictions_NB - targets_B).square().mean(1)
        scores_B = self.mix @ predictions_NB
        return (scores_B - targets_B).square().mean() if self.coupled else own_N.sum(), own_N, scores_B


class TorchHarness:
    """See `harness.Harness`."""

    host: type[MarkedHost] = MarkedHost

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self.setup = setup
        self.model = Model(setup)
        self.towers = {name: self.model.towers[name] for name in setup.modules}
        self.optimizers = {name: self.adamw(self.parameters(name)) for name in setup.groups}
        self.schedulers = {name: ExponentialLR(each, gamma=DECAY) for name, each in self.optimizers.items()}
        self.graphs: list[Any] = []
        self.seen: set[str] = set()
        for name in setup.groups:
            for parameter in self.parameters(name):
                parameter.register_post_accumulate_grad_hook(lambda p, name=name: self.saw(name, p))
        self.alternating = self.build()
        if setup.compiled:
            torch._dynamo.reset()
            self.model.compile(backend=self.count)

    def build(self) -> Any:
        with patch("adapters.torch.parked.Host", self.host):  # there may be no device but the host
            return self.build_alternating()

    def build_alternating(self) -> Any:
        setup = self.setup
        return AlternatingOptimizer(
            Alternator(setup.names, rule=setup.rule),
            self.towers,
            {name: self.optimizers[name] for name in setup.modules},
            model=self.model,
            turns=setup.turns,
            always=([self.model.mix], self.optimizers[ALWAYS]) if setup.always else None,
            schedulers=self.schedulers,
            clip_norm=setup.clip_norm,
            delay=setup.delay,
            frozen_mode=setup.frozen_mode,
            frozen_state=setup.frozen_state,
        )

    @staticmethod
    def adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)

    def parameters(self, name: str) -> list[nn.Parameter]:
        return [self.model.mix] if name == ALWAYS else list(self.towers[name].parameters())

    def saw(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.grad is not None and parameter.grad.any():
            self.seen.add(name)

    @property
    def active(self) -> str:
        return str(self.alternating.active)

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        reported = None if losses is None else {name: torch.tensor(value) for name, value in losses.items()}
        self.seen.clear()
        if not updated:
            return self.skip(reported)
        loss, own_N, _ = self.forward(batch)
        if reported is None:
            own = dict(zip(self.setup.modules, own_N, strict=True))
            reported = {
                name: torch.stack([own[module] for module in self.setup.trains(name) if module != ALWAYS]).sum()
                for name in self.setup.names
            }
        decision: Decision = self.alternating.step(loss, reported)
        self.seen |= {name for name in self.setup.groups if any(p.grad is not None for p in self.parameters(name))}
        return decision

    def skip(self, reported: dict[str, Tensor] | None) -> Decision:
        decision: Decision = self.alternating.skip(reported)
        return decision

    def forward(self, batch: Batch) -> Any:
        return self.model(torch.tensor(batch.inputs_NBD), torch.tensor(batch.targets_B))

    def force(self, name: str) -> None:
        self.alternating.force(name)

    def snapshot(self) -> Snapshot:
        taken: Snapshot = {}
        for name in self.setup.groups:
            keys = ("mix",) if name == ALWAYS else ("weight", "bias")
            taken[name] = {}
            for key, parameter in zip(keys, self.parameters(name), strict=True):
                taken[name][f"parameters/{key}"] = array(parameter)
                state = self.optimizers[name].state.get(parameter, {})
                for moment in ("exp_avg", "exp_avg_sq", "step"):
                    none = torch.zeros(()) if moment == "step" else torch.zeros_like(parameter)
                    taken[name][f"optimizer/{moment}/{key}"] = array(state.get(moment, none))
            taken[name]["schedule/count"] = np.array(self.schedulers[name].last_epoch)
            taken[name]["schedule/rate"] = np.array(self.optimizers[name].param_groups[0]["lr"])
            if name != ALWAYS:
                taken[name] |= {f"buffers/{key}": array(value) for key, value in self.towers[name].named_buffers()}
        return taken

    def held(self) -> set[str]:
        found = set()
        for name in self.setup.groups:
            states = [self.optimizers[name].state.get(parameter, {}) for parameter in self.parameters(name)]
            if any(each.dim() and not MarkedHost().has(each) for state in states for each in state.values()):
                found.add(name)
        return found

    def computed(self) -> set[str]:
        return set(self.seen)

    @torch.no_grad()
    def inferred(self, batch: Batch) -> Any:
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        results = self.forward(batch)
        for module, training in modes.items():
            module.training = training
        return results

    def own_losses(self, batch: Batch) -> dict[str, float]:
        return dict(zip(self.setup.modules, self.inferred(batch)[1].tolist(), strict=True))

    def scores(self, batch: Batch) -> np.ndarray:
        return array(self.inferred(batch)[2])

    def save(self) -> Any:
        return copy.deepcopy((self.model.state_dict(), self.alternating.state_dict(include_optimizers=True)))

    def load(self, saved: Any) -> None:
        model, alternating = copy.deepcopy(saved)
        self.model.load_state_dict(model)
        self.alternating.load_state_dict(alternating)

    def take(self) -> Any:
        return self.alternating.snapshot()

    def rollback(self, kept: Any) -> None:
        self.alternating.rollback(kept)

    def num_traces(self) -> int | None:
        return len(self.graphs)

    def count(self, graph: Any, _: Any) -> Any:
        """A compiler that compiles nothing, but counts what it is given."""
        self.graphs.append(graph)
        return graph.forward


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().copy()
