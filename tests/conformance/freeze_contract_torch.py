"""The freeze contract in PyTorch as a measurement: which of its clauses does an implementation break?

Two independent towers with batch normalisation and dropout, AdamW with weight decay, clipping and schedulers. Module
``a`` trains for 5 steps, is frozen for 50, trains for 5 more, and so on. Every clause is compared bit by bit.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
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


def broken_clauses(build: Build, make_optimizer: MakeOptimizer = adamw, *, one_optimizer: bool = False) -> set[str]:
    """Run an implementation through frozen and active tenures; the clauses of the contract that it broke.

    Args:
        build: Builds it.
        make_optimizer: The kind of optimizer.
        one_optimizer: One optimizer over both modules, without schedulers, in place of one per module.
    """
    modules = towers()
    computed = count_gradients(modules)
    optimizers, schedulers = make_optimizers(modules, make_optimizer, one_optimizer=one_optimizer)
    alternating = build(
        Alternator(modules, rule=Cycle(tuple(TENURES.values()))),
        modules,
        optimizers["a"] if one_optimizer else optimizers,
        clip_norm=CLIP_NORM,
        schedulers=schedulers,
    )
    broken: set[str] = set()
    kept: dict[str, Any] = {}
    frozen = ""
    for step in range(NUM_STEPS):
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
    reference = train_alone(make_optimizer, one_optimizer=one_optimizer)
    return broken | ({"continuation"} if not same_bits(states(modules, optimizers), reference) else set())


def towers() -> dict[str, nn.Module]:
    return {"a": tower(0), "b": tower(1)}


def make_optimizers(
    modules: Mapping[str, nn.Module], make_optimizer: MakeOptimizer, *, one_optimizer: bool
) -> tuple[dict[str, Optimizer], dict[str, LRScheduler]]:
    if one_optimizer:
        optimizer = make_optimizer([parameter for module in modules.values() for parameter in module.parameters()])
        return dict.fromkeys(modules, optimizer), {}
    optimizers = {name: make_optimizer(module.parameters()) for name, module in modules.items()}
    return optimizers, {name: ExponentialLR(optimizer, gamma=0.99) for name, optimizer in optimizers.items()}


def train_alone(make_optimizer: MakeOptimizer, *, one_optimizer: bool) -> dict[str, Any]:
    """The same steps by hand, with the frozen module not even there."""
    modules = towers()
    optimizers, schedulers = make_optimizers(modules, make_optimizer, one_optimizer=one_optimizer)
    for step, name in enumerate(turns()):
        tower_loss(modules[name], name, step).backward()
        nn.utils.clip_grad_norm_(modules[name].parameters(), CLIP_NORM)
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        if name in schedulers:
            schedulers[name].step()
    return states(modules, optimizers)


def turns() -> list[str]:
    """The module that trains in each step."""
    cycle = [name for name, tenure in TENURES.items() for _ in range(tenure)]
    return [cycle[step % len(cycle)] for step in range(NUM_STEPS)]


def count_gradients(modules: Mapping[str, nn.Module]) -> list[str]:
    """A list to which each gradient that autograd computes for a parameter adds the module's name."""
    computed: list[str] = []
    for name, module in modules.items():
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: computed.append(name))
    return computed


def what_stays(module: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Everything that must not change while the module is frozen, by clause of the contract."""
    return {
        "parameters": list(module.parameters()),
        "buffers": list(module.buffers()),
        "optimizer state": optimizer_state(optimizer, module),
        "learning rate": None if scheduler is None else [scheduler.last_epoch, scheduler.get_last_lr()],
    }


def _other(name: str) -> str:
    return "b" if name == "a" else "a"


def states(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    return {name: [module.state_dict(), optimizer_state(optimizers[name], module)] for name, module in modules.items()}
