"""The naive ways to freeze a module in PyTorch, each of which breaks the freeze contract. The mutants of its tests.

`HandWritten` keeps the contract (for one optimizer per module); every other class departs from it in one respect, and
has the constructor and the `step` of `adapters.torch.AlternatingOptimizer`. `BREAKS` says which clauses each one
breaks, in the words of `tests.conformance.freeze_contract_torch`.
"""

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from alternator import Alternator, Decision


class HandWritten:
    """What a careful author writes by hand for one optimizer per module."""

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        *,
        clip_norm: float | None = None,
        schedulers: Mapping[str, LRScheduler] | None = None,
    ) -> None:
        self.alternator = alternator
        self.modules = dict(modules)
        self.optimizers = dict(optimizers)
        self.schedulers = dict(schedulers or {})
        self.clip_norm = clip_norm
        self.enter()

    @property
    def active(self) -> str:
        return self.alternator.active

    def step(self, loss: Tensor, losses: Mapping[str, Tensor] | None = None) -> Decision:
        loss.backward()
        self.update()
        named = {self.active: loss} if losses is None else losses
        decision = self.alternator.observe({name: value.item() for name, value in named.items()})
        if decision.switched:
            self.enter()
        return decision

    def enter(self) -> None:
        """At the start and at every switch."""
        for name, module in self.modules.items():
            self.set_gradients(module, name == self.active)
            module.train(name == self.active)

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        module.requires_grad_(active)
        module.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Clip and step what is active."""
        self.clip([self.active])
        self.optimizers[self.active].step()
        self.advance_schedulers([self.active])
        self.optimizers[self.active].zero_grad(set_to_none=True)

    def clip(self, names: Iterable[str]) -> None:
        if self.clip_norm is not None:
            parameters = [parameter for name in names for parameter in self.modules[name].parameters()]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def advance_schedulers(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.schedulers:
                self.schedulers[name].step()

    def frozen(self) -> list[str]:
        return [name for name in self.modules if name != self.active]


class ZeroGradients(HandWritten):
    """Sets frozen gradients to zero and steps every optimizer: moments and weight decay still move parameters."""

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        pass

    def update(self) -> None:
        for name in self.frozen():
            for parameter in self.modules[name].parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.clip([self.active])
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.advance_schedulers([self.active])


class StaleGradients(HandWritten):
    """requires_grad=False alone, every optimizer stepped: the gradient of the last active step is applied again."""

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        module.requires_grad_(active)

    def update(self) -> None:
        self.clip([self.active])
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.advance_schedulers([self.active])

    def step(self, loss: Tensor, losses: Mapping[str, Tensor] | None = None) -> Decision:
        self.optimizers[self.active].zero_grad(set_to_none=True)
        return super().step(loss, losses)


class DecayBeforeGradient(HandWritten):
    """Leaves frozen gradients None under an optimizer that decays all that it holds before it looks for one."""

    @torch.no_grad()
    def update(self) -> None:
        for name in self.frozen():
            for group in self.optimizers[name].param_groups:
                for parameter in group["params"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
        super().update()


class ZeroLearningRate(HandWritten):
    """Steps every optimizer, the frozen ones at lr=0: their moments and step counts continue."""

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        pass

    def update(self) -> None:
        self.clip([self.active])
        groups = [group for name in self.frozen() for group in self.optimizers[name].param_groups]
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.advance_schedulers([self.active])


class RestoredParameters(HandWritten):
    """Steps everything and copies the frozen parameters back: their moments and step counts have moved."""

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        pass

    def update(self) -> None:
        frozen = [parameter for name in self.frozen() for parameter in self.modules[name].parameters()]
        saved = [parameter.detach().clone() for parameter in frozen]
        self.clip([self.active])
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for parameter, value in zip(frozen, saved, strict=True):
            parameter.data.copy_(value)
        self.advance_schedulers([self.active])


class EverythingClipped(HandWritten):
    """Computes all gradients and clips them together: the frozen ones shrink the step of the active module."""

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        pass

    def update(self) -> None:
        self.clip(self.modules)
        self.optimizers[self.active].step()
        self.advance_schedulers([self.active])
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)


class GradientsPileUp(HandWritten):
    """Two optimizers, each zeroed after its own step only: frozen gradients pile up for the first step back."""

    def set_gradients(self, module: nn.Module, active: bool) -> None:
        pass


class TrainingMode(HandWritten):
    """Leaves frozen modules in training mode: dropout stays on and normalisation statistics move."""

    def enter(self) -> None:
        for name, module in self.modules.items():
            self.set_gradients(module, name == self.active)


class ZeroMomentum(HandWritten):
    """Leaves frozen modules in training mode with BatchNorm's momentum at 0: its count of batches moves."""

    def enter(self) -> None:
        for name, module in self.modules.items():
            self.set_gradients(module, name == self.active)
            for norm in (each for each in module.modules() if isinstance(each, nn.BatchNorm1d)):
                norm.momentum = 0.1 if name == self.active else 0.0


class EveryScheduler(HandWritten):
    """Advances every scheduler in every step: a module's share changes its annealing."""

    def advance_schedulers(self, names: Iterable[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch notices that the frozen optimizer has not stepped
            super().advance_schedulers(self.modules)


class FreshOptimizer(HandWritten):
    """Builds a new optimizer at each switch: moments and step counts are forgotten."""

    def enter(self) -> None:
        super().enter()
        self.optimizers[self.active].state.clear()


class BuiltWhileFrozen(HandWritten):
    """Builds the optimizers over what requires gradients at that moment: a module frozen then never trains."""

    def enter(self) -> None:
        first_time = all(
            parameter.requires_grad for module in self.modules.values() for parameter in module.parameters()
        )
        super().enter()
        if first_time:
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]


BREAKS: dict[type[HandWritten], set[str]] = {
    ZeroGradients: {"parameters", "optimizer state", "gradients", "continuation"},
    StaleGradients: {"parameters", "optimizer state", "gradients", "continuation"},
    DecayBeforeGradient: {"parameters", "continuation"},
    ZeroLearningRate: {"optimizer state", "gradients", "continuation"},
    RestoredParameters: {"optimizer state", "gradients", "continuation"},
    EverythingClipped: {"gradients", "continuation"},
    GradientsPileUp: {"gradients", "continuation"},
    TrainingMode: {"buffers", "continuation"},
    ZeroMomentum: {"buffers", "continuation"},
    EveryScheduler: {"learning rate", "continuation"},
    FreshOptimizer: {"optimizer state", "continuation"},
    BuiltWhileFrozen: {"continuation"},
}
BY_BATCH = (TrainingMode, ZeroMomentum)
"""The naive ways in which frozen modules normalise by the batch."""
"""Per naive way the clauses of the contract that it breaks."""
