"""Checks of what the user hands to the PyTorch adapter: ownership, coverage, schedulers; each says what to do."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from adapters._ownership import ALWAYS, check_names, listed
from adapters._torch_freezing import Freezable, unwrapped
from alternator import ConfigurationError


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def check_none_left_out(model: nn.Module, groups: Mapping[str, Freezable]) -> None:
    owned = {id(parameter) for group in groups.values() for parameter in group.parameters.values()}
    left_out = [
        name
        for name, parameter in unwrapped(model).named_parameters()
        if id(parameter) not in owned and parameter.requires_grad
    ]
    if left_out:
        raise ConfigurationError(
            f"every trainable parameter of the model must belong to a module, but {listed(left_out)} belongs to none; "
            "add it to one, freeze it, or declare it with always="
        )


def check_optimizers(
    modules: Mapping[str, Freezable], optimizers: Mapping[str, Optimizer] | Optimizer, extra: Optimizer | None
) -> list[Optimizer]:
    """All optimizers, each once."""
    given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers.values())
    if not isinstance(optimizers, Optimizer):
        check_names("optimizers", optimizers, modules)
        missing = [name for name in modules if name not in optimizers]
        if missing:
            raise ConfigurationError(f"every module must have an optimizer, but {listed(missing)} has none")
    every = list({id(optimizer): optimizer for optimizer in [*given, *([extra] if extra else [])]}.values())
    for optimizer in every:
        if not isinstance(optimizer, Optimizer):
            raise ConfigurationError(f"an optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigurationError("LBFGS needs a closure and mixes all its parameters in one state; use another")
    return every


def check_coverage(
    groups: Mapping[str, Freezable], optimizers: Mapping[str, Optimizer] | Optimizer, every: list[Optimizer]
) -> dict[str, nn.Parameter]:
    """Each parameter in exactly one optimizer, its module's; those that the user froze and left out are returned."""
    uncovered: dict[str, nn.Parameter] = {}
    owned: set[int] = set()
    for module, group in groups.items():
        own = [optimizers[module]] if not isinstance(optimizers, Optimizer) and module != ALWAYS else every
        covered = {id(parameter) for optimizer in own for parameter in parameters_of(optimizer)}
        without = {key: value for key, value in group.parameters.items() if id(value) not in covered}
        never = [key for key, parameter in without.items() if parameter.requires_grad]
        if never:
            raise ConfigurationError(
                f"the optimizer of a module must cover it, but {listed(never)} of {module!r} is in none and would "
                "never train: build it over all parameters of the module (was it built while they were frozen?)"
            )
        if len(group.user_frozen) == len(group.parameters) and module != ALWAYS:
            raise ConfigurationError(
                f"a module must have something to train, but all {len(group.parameters)} parameters of {module!r} are "
                "frozen or declared always; unfreeze some, or leave the module out"
            )
        uncovered |= without
        owned |= {id(parameter) for parameter in group.parameters.values()}
    seen: set[int] = set()
    for parameter in (parameter for optimizer in every for parameter in parameters_of(optimizer)):
        if id(parameter) in seen or id(parameter) not in owned:
            fault = "is in two" if id(parameter) in seen else "belongs to no module"
            raise ConfigurationError(
                f"a parameter in an optimizer must belong to one module and be in one optimizer, but one of shape "
                f"{tuple(parameter.shape)} {fault}; take it out, add it to a module, or declare it with always="
            )
        seen.add(id(parameter))
    return uncovered


def check_schedulers(
    groups: Mapping[str, Freezable], schedulers: Mapping[str, LRScheduler], every: list[Optimizer]
) -> dict[str, LRScheduler]:
    check_names("schedulers", schedulers, groups)
    for name, scheduler in schedulers.items():
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigurationError(f"the scheduler of {name!r} needs a metric; step ReduceLROnPlateau yourself")
        if not any(scheduler.optimizer is optimizer for optimizer in every):
            raise ConfigurationError(f"the scheduler of {name!r} must drive one of the optimizers given")
        driven = {id(parameter) for parameter in parameters_of(scheduler.optimizer)}
        others = [
            other
            for other, group in groups.items()
            if other not in (name, ALWAYS) and any(id(value) in driven for value in group.parameters.values())
        ]
        if others:
            raise ConfigurationError(
                f"a scheduler must move the learning rate of its own module only, but that of {name!r} also moves "
                f"{listed(others)}; give each module an optimizer of its own"
            )
    return dict(schedulers)
