"""The freeze contract in PyTorch as a measurement: which of its clauses does an implementation break?

Two independent towers with batch normalisation and dropout, AdamW with weight decay, clipping and schedulers. Module
``a`` trains for 5 steps, is frozen for 50, trains for 5 more, and so on. Every clause is compared bit by bit.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from alternator import Alternator, Cycle, Decision

TENURES = {"a": 5, "b": 50}
NUM_STEPS = 65
CLIP_NORM = 0.05


class Alternating(Protocol):
    """What is measured."""

    @property
    def active(self) -> str: ...

    def step(self, loss: Tensor, losses: Mapping[str, Tensor]) -> Decision | None: ...


Build = Callable[..., Alternating]
"""Called with (alternator, modules, optimizers, clip_norm=..., schedulers=...)."""
MakeOptimizer = Callable[[Any], Optimizer]


def adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def tower(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def batch(step: int) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def tower_loss(module: nn.Module, name: str, step: int) -> Tensor:
    """The loss of one tower in one step; its dropout depends on the step alone."""
    torch.manual_seed(1000 * step + ord(name[0]))
    x_BD = batch(step)
    return (module(x_BD) - x_BD.sum(dim=1, keepdim=True)).square().mean()


def tensors(tree: Any) -> Iterator[Any]:
    """The leaves of nested dicts and lists."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors(value)
    else:
        yield tree


def same_bits(left: Any, right: Any) -> bool:
    """Whether two trees have equal leaves, tensors bit by bit."""
    lefts, rights = list(tensors(left)), list(tensors(right))
    return len(lefts) == len(rights) and all(
        torch.equal(one, two) if isinstance(one, Tensor) and isinstance(two, Tensor) else one == two
        for one, two in zip(lefts, rights, strict=True)
    )


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> list[Any]:
    """Moments and step counts of a module's parameters, whichever optimizer holds them."""
    return [dict(optimizer.state.get(parameter, {})) for parameter in module.parameters()]


def group_state(optimizer: Optimizer, module: nn.Module) -> list[Any]:
    """What an optimizer counts per group, of the groups that hold parameters of this module alone."""
    own = {id(parameter) for parameter in module.parameters()}
    groups = [group for group in optimizer.param_groups if own >= {id(parameter) for parameter in group["params"]}]
    return [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in groups]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is trained, how long, and with what."""

    make_towers: Callable[[], dict[str, nn.Module]] = lambda: {"a": tower(0), "b": tower(1)}
    """Builds the two modules, the same each time."""
    make_optimizer: MakeOptimizer = adamw
    """The kind of optimizer."""
    one_optimizer: bool = False
    """One optimizer over both modules, without schedulers, in place of one per module."""
    grouped: bool = False
    """Whether that one has a parameter group per module."""
    clip_norm: float | None = CLIP_NORM
    """The total norm to which gradients are clipped."""
    tenures: Mapping[str, int] = field(default_factory=lambda: dict(TENURES))
    """The steps that each module trains in a row."""
    num_steps: int = NUM_STEPS
    """The number of steps in all."""

    def make_optimizers(self, modules: Mapping[str, nn.Module]) -> tuple[dict[str, Optimizer], dict[str, LRScheduler]]:
        if self.one_optimizer:
            groups = [list(module.parameters()) for module in modules.values()]
            given = [{"params": group} for group in groups] if self.grouped else [p for group in groups for p in group]
            return dict.fromkeys(modules, self.make_optimizer(given)), {}
        optimizers = {name: self.make_optimizer(list(module.parameters())) for name, module in modules.items()}
        return optimizers, {name: ExponentialLR(optimizer, gamma=0.99) for name, optimizer in optimizers.items()}

    def turns(self) -> list[str]:
        """The module that trains in each step."""
        cycle = [name for name, tenure in self.tenures.items() for _ in range(tenure)]
        return [cycle[step % len(cycle)] for step in range(self.num_steps)]


def broken_clauses(build: Build, make_optimizer: MakeOptimizer = adamw, *, one_optimizer: bool = False) -> set[str]:
    """Run an implementation through frozen and active tenures; the clauses of the contract that it broke.

    Args:
        build: Builds it.
        make_optimizer: The kind of optimizer.
        one_optimizer: One optimizer over both modules, without schedulers, in place of one per module.
    """
    return measure(build, Measured(make_optimizer=make_optimizer, one_optimizer=one_optimizer))


def measure(build: Build, measured: Measured) -> set[str]:
    """The clauses of the contract that an implementation broke."""
    modules = measured.make_towers()
    computed = count_gradients(modules)
    optimizers, schedulers = measured.make_optimizers(modules)
    alternating = build(
        Alternator(modules, rule=Cycle(tuple(measured.tenures.values()))),
        modules,
        optimizers["a"] if measured.one_optimizer else optimizers,
        clip_norm=measured.clip_norm,
        schedulers=schedulers,
    )
    broken: set[str] = set()
    kept: dict[str, Any] = {}
    frozen = ""
    for step in range(measured.num_steps):
        if frozen != _other(alternating.active):
            frozen = _other(alternating.active)
            kept = copy.deepcopy(what_stays(modules[frozen], optimizers[frozen], schedulers.get(frozen)))
        losses = {name: tower_loss(module, name, step) for name, module in modules.items()}
        computed.clear()
        alternating.step(losses["a"] + losses["b"], losses)
        stays = what_stays(modules[frozen], optimizers[frozen], schedulers.get(frozen))
        broken |= {clause for clause in kept if not same_bits(kept[clause], stays[clause])}
        if frozen in computed or any(parameter.grad is not None for parameter in modules[frozen].parameters()):
            broken.add("gradients")
    trained = states(modules, optimizers)
    return broken | (set() if same_bits(trained, train_alone(measured)) else {"continuation"})


def train_alone(measured: Measured) -> dict[str, Any]:
    """The same steps by hand, with an optimizer per module, and the frozen module not even there."""
    modules = measured.make_towers()
    optimizers, schedulers = replace(measured, one_optimizer=False).make_optimizers(modules)
    for step, name in enumerate(measured.turns()):
        tower_loss(modules[name], name, step).backward()
        if measured.clip_norm is not None:
            nn.utils.clip_grad_norm_(modules[name].parameters(), measured.clip_norm)
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        if not measured.one_optimizer:
            schedulers[name].step()
    return states(modules, optimizers)


def count_gradients(modules: Mapping[str, nn.Module]) -> list[str]:
    """A list to which each gradient that autograd computes for a parameter adds the module's name."""
    computed: list[str] = []
    for name, module in modules.items():
        for parameter in filter(lambda each: each.requires_grad, module.parameters()):
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: computed.append(name))
    return computed


def what_stays(module: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Everything that must not change while the module is frozen, by clause of the contract."""
    return {
        "parameters": list(module.parameters()),
        "buffers": list(module.buffers()),
        "optimizer state": [optimizer_state(optimizer, module), group_state(optimizer, module)],
        "learning rate": None if scheduler is None else [scheduler.last_epoch, scheduler.get_last_lr()],
    }


def _other(name: str) -> str:
    return "b" if name == "a" else "a"


def states(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    return {name: [module.state_dict(), optimizer_state(optimizers[name], module)] for name, module in modules.items()}
