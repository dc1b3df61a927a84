"""Checks of what the user gives the PyTorch adapter: ownership, coverage; each error has the remedy."""

import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn
from torch.optim import LBFGS, Optimizer

from adapters.contract import ALWAYS, check_names
from adapters.torch.modules import Freezable
from adapters.torch.optimizers import check_optimizer
from adapters.torch.wrappers import unwrapped
from alternator import ConfigurationError
from alternator.checks import listed

T = TypeVar("T")
Optimizers = Mapping[str, Optimizer | Sequence[Optimizer]] | Optimizer
"""One per module, or several that each hold a part of it; or one over all."""


def check_ownership(groups: Mapping[str, Freezable], model: nn.Module | None) -> None:
    """Each trainable parameter of the model has an owner, and each parameter and submodule a name of its own.

    Raises:
        ConfigurationError: One has no owner, or two have one name.
    """
    _check_distinct([key for group in groups.values() for key in (*group.parameters, *group.submodules)])
    owned = {id(parameter) for group in groups.values() for parameter in group.parameters.values()}
    named = [] if model is None else unwrapped(model).named_parameters()
    orphans = [name for name, parameter in named if parameter.requires_grad and id(parameter) not in owned]
    if orphans:
        raise ConfigurationError(
            f"every trainable parameter of the model must belong to a module, but {listed(orphans)} belongs to none; "
            "add it to one, freeze it, or declare it with always="
        )


def _check_distinct(names: Collection[str]) -> None:
    """States and messages know parameters and submodules by name: ``head`` of ``net`` is that of ``net.head``."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigurationError(
            f"parameters must have different names, but two modules have {listed(twice)}; give one of them another name"
        )


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def each_of(given: T | Sequence[T]) -> Sequence[T]:
    """Several as they are, one as a sequence of it."""
    return given if isinstance(given, Sequence) else [given]


def optimizers_of(module: str, optimizers: Optimizers) -> Sequence[Optimizer]:
    """The optimizers of a module."""
    return each_of(optimizers[module]) if isinstance(optimizers, Mapping) else [optimizers]


def check_optimizers(
    modules: Collection[str], optimizers: Optimizers, extra: Optimizer | None, *, with_closure: bool = False
) -> list[Optimizer]:
    """All optimizers, each once: one per module or one over all, and the always group's own.

    Args:
        modules: Their names.
        optimizers: One per module, or one over all.
        extra: The always group's own.
        with_closure: Whether steps are given a closure.

    Raises:
        ConfigurationError: A module has none, a name is unknown, or one is of a kind that cannot keep the contract.
    """
    if isinstance(optimizers, Mapping):
        check_names("optimizers", optimizers, modules)
        missing = [name for name in modules if not optimizers.get(name)]
        if missing:
            raise ConfigurationError(f"every module must have an optimizer, but {listed(missing)} has none; give one")
    given = [each for module in modules for each in optimizers_of(module, optimizers)]
    unique = list({id(optimizer): optimizer for optimizer in [*given, *([extra] if extra else [])]}.values())
    for optimizer in unique:
        check_optimizer(optimizer)
        if isinstance(optimizer, LBFGS) or (not with_closure and _needs_closure(optimizer)):
            raise ConfigurationError(needs_no_closure([optimizer], "got one that needs it"))
    return unique


def needs_no_closure(optimizers: Iterable[Optimizer], what: str) -> str:
    """What an optimizer that evaluates the loss itself is refused with."""
    names = listed(sorted({type(optimizer).__name__ for optimizer in optimizers}))
    return (
        f"an optimizer must step without a closure, {what}: {names}; use a first-order one that takes the gradients "
        "that are there (no LBFGS, line search or sharpness-aware method)"
    )


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether its ``step`` must be given something; the class's, as schedulers replace the object's."""
    given = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    return any(
        each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in given
    )


def check_coverage(
    groups: Mapping[str, Freezable], optimizers: Optimizers, every: list[Optimizer]
) -> dict[str, nn.Parameter]:
    """Each parameter is in exactly one optimizer, its module's; returned are those that the user froze and left out.

    Raises:
        ConfigurationError: One is in none, in two, or in no module.
    """
    uncovered: dict[str, nn.Parameter] = {}
    for module, group in groups.items():
        uncovered |= _check_group(module, group, every if module == ALWAYS else optimizers_of(module, optimizers))
    _check_once([parameter for optimizer in every for parameter in parameters_of(optimizer)], groups)
    return uncovered


def _check_group(module: str, group: Freezable, optimizers: Iterable[Optimizer]) -> dict[str, nn.Parameter]:
    covered = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
    without = {key: parameter for key, parameter in group.parameters.items() if id(parameter) not in covered}
    never = [key for key, parameter in without.items() if parameter.requires_grad]
    if never:
        raise ConfigurationError(
            f"the optimizer of {module!r} must cover it, but {listed(never)} is not in it and would never train: build "
            "it over all parameters of the module (was it built while they were frozen?)"
        )
    return without


def check_trainable(groups: Mapping[str, Freezable]) -> None:
    """Each module has something to train.

    Raises:
        ConfigurationError: Everything in one is frozen, or declared always.
    """
    for module, group in groups.items():
        if len(group.user_frozen) == len(group.parameters) and module != ALWAYS:
            raise ConfigurationError(
                f"a module must have something to train, but every parameter of {module!r} is frozen or declared "
                "always; unfreeze some before this is built (release() of an earlier AlternatingOptimizer does), or "
                "leave it out"
            )


def _check_once(parameters: list[nn.Parameter], groups: Mapping[str, Freezable]) -> None:
    owned = {id(parameter) for group in groups.values() for parameter in group.parameters.values()}
    seen: set[int] = set()
    for parameter in parameters:
        fault = "is in two" if id(parameter) in seen else "" if id(parameter) in owned else "belongs to no module"
        if fault:
            raise ConfigurationError(
                f"a parameter in an optimizer must be in one only and belong to a module, but one of shape "
                f"{tuple(parameter.shape)} {fault}; take it out, add it to a module, or declare it with always="
            )
        seen.add(id(parameter))


def warn_of_recompiles(modules: Iterable[object], num_graphs: int) -> None:
    """Warn if compiled modules need more graphs (one per set of active modules) than dynamo keeps."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or not any(_is_compiled(module) for module in modules):
        return
    name = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"
    limit = getattr(dynamo.config, name)
    if num_graphs > limit:
        warnings.warn(
            f"a compiled model needs one graph per turn, but {num_graphs} turns exceed torch._dynamo.config.{name} = "
            f"{limit}, so some would run uncompiled; raise it to {num_graphs + 1} or more",
            stacklevel=3,
        )


def _is_compiled(module: object) -> bool:
    return isinstance(module, nn.Module) and any(
        hasattr(submodule, "_orig_mod") or submodule._compiled_call_impl is not None for submodule in module.modules()
    )
