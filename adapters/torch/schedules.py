"""Learning-rate schedulers of modules: after each of their updates, or at the end of epochs in which they trained."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from adapters.contract import ALWAYS, check_names
from adapters.torch.checks import each_of, parameters_of
from adapters.torch.losses import Loss, check_scalar
from adapters.torch.modules import Freezable
from alternator import ConfigurationError, LossError, StateError, UnknownModuleError
from alternator.checks import listed, to_float
from alternator.errors import quoted

Schedule = LRScheduler | tuple[LRScheduler, Literal["epoch"]]
"""A scheduler that moves after each update of its module, or ``(scheduler, "epoch")``: at the end of epochs."""
Schedulers = Mapping[str, Schedule | Sequence[Schedule]]
"""One per module, or several for its several optimizers."""


class Scheduled(NamedTuple):
    """A scheduler, and when it moves."""

    module: str
    key: str
    """Its name in states: the module's, with a number where a list was given."""
    scheduler: LRScheduler
    per_epoch: bool

    def drives(self, optimizers: Iterable[Optimizer]) -> bool:
        """Whether one of these is its optimizer."""
        return any(self.scheduler.optimizer is optimizer for optimizer in optimizers)


def list_schedulers(schedulers: Schedulers | None) -> list[Scheduled]:
    """All schedulers, in the order given.

    Raises:
        ConfigurationError: What stands beside a scheduler is not ``"epoch"``.

    Example:
        >>> import torch
        >>> constant = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        >>> listed = list_schedulers({"encoder": [(constant, "epoch"), constant], "head": (constant, "epoch")})
        >>> [(each.key, each.per_epoch) for each in listed]
        [('encoder[0]', True), ('encoder[1]', False), ('head', True)]
    """
    found = []
    for module, given in (schedulers or {}).items():
        is_one = not isinstance(given, Sequence) or (isinstance(given, tuple) and any(map(_is_when, given)))
        for number, each in enumerate([given] if is_one else each_of(given)):
            scheduler, per_epoch = _parse(module, each)
            found.append(Scheduled(module, module if is_one else f"{module}[{number}]", scheduler, per_epoch))
    return found


def _is_when(part: object) -> bool:
    return isinstance(part, str)


def _parse(module: str, given: Any) -> tuple[LRScheduler, bool]:
    if not isinstance(given, tuple):
        return given, False
    if len(given) != 2 or given[1] != "epoch" or isinstance(given[0], str):
        raise ConfigurationError(
            f'the scheduler of {module!r} must be a scheduler, or a pair (scheduler, "epoch"), got {quoted(given)}'
        )
    return given[0], True


def check_schedulers(
    groups: Mapping[str, Freezable], schedulers: Iterable[Scheduled], optimizers: list[Optimizer]
) -> None:
    """Each scheduler moves the learning rate of its own module only.

    Raises:
        ConfigurationError: It moves another's too, drives none of the optimizers, or needs a metric in each step.
    """
    every = list(schedulers)
    check_names("schedulers", dict.fromkeys(each.module for each in every), groups)
    for each in every:
        name = each.module
        if isinstance(each.scheduler, ReduceLROnPlateau) and not each.per_epoch:
            raise ConfigurationError(
                f"a scheduler must step without a metric, but {name!r} has ReduceLROnPlateau; give (scheduler, "
                '"epoch"), and its module\'s value to end_epoch()'
            )
        if not each.drives(optimizers):
            raise ConfigurationError(
                f"the scheduler of {name!r} must drive one of the optimizers given; it drives none"
            )
        driven = {id(parameter) for parameter in parameters_of(each.scheduler.optimizer)}
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


class Epochs:
    """The schedulers that move at the end of an epoch, and which of them have trained since the last one.

    Args:
        schedulers: All of them.
        modules: The names for which values may be given.
    """

    def __init__(self, schedulers: Iterable[Scheduled], modules: Collection[str]) -> None:
        self._scheduled = {each.key: each for each in schedulers if each.per_epoch}
        self._modules = tuple(modules)
        self._trained: set[str] = set()

    def note(self, scheduled: Scheduled) -> None:
        """Its optimizer has updated its module in this epoch."""
        self._trained.add(scheduled.key)

    def end(self, values: Loss | Mapping[str, Loss] | None, mean: Callable[[Loss], Loss]) -> None:
        """Advance what has trained; see `AlternatingOptimizer.end_epoch`. Nothing moves if a value is missing.

        Args:
            values: Of all modules, or by module.
            mean: The mean over the processes that train together.
        """
        named = self._check_values(values)
        due = [each for key, each in self._scheduled.items() if key in self._trained]
        metrics = {
            each.key: mean(self._value_of(each.module, named))
            for each in due
            if isinstance(each.scheduler, ReduceLROnPlateau)
        }
        for each in due:
            if isinstance(each.scheduler, ReduceLROnPlateau):
                each.scheduler.step(to_float(metrics[each.key]))
            else:
                each.scheduler.step()
        self._trained.clear()

    def _check_values(self, values: Loss | Mapping[str, Loss] | None) -> dict[str, Loss]:
        if values is None:
            return {}
        named = dict(values) if isinstance(values, Mapping) else dict.fromkeys(self._modules, values)
        for name, value in named.items():
            if name not in self._modules:
                raise UnknownModuleError(name, self._modules)
            check_scalar(name, value)
        return named

    def _value_of(self, module: str, named: Mapping[str, Loss]) -> Loss:
        if module not in named:
            raise LossError(
                f"ReduceLROnPlateau of {module!r} must be given a value at the end of an epoch in which the module "
                f"trained, got values of {tuple(named)}; call end_epoch({{{module!r}: value}}), or with one for all"
            )
        return named[module]

    def state_dict(self) -> dict[str, list[str]]:
        """Which schedulers have trained in this epoch; JSON-safe, and empty where none moves by epochs."""
        return {"trained_in_epoch": sorted(self._trained)} if self._scheduled else {}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state with schedulers that are not here; one without any, of an earlier version, is fine.

        Raises:
            StateError: Naming them.
        """
        saved = state.get("trained_in_epoch", [])
        unknown = sorted(set(saved) - set(self._scheduled))
        if unknown:
            raise StateError(
                f"the state has schedulers that move by epochs and are not here: {listed(unknown)}; build the same as "
                "when it was saved"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of that epoch; see `check_state`."""
        self._trained = set(state.get("trained_in_epoch", []))
        for key in self._trained:  # has been stepped, before it was saved: PyTorch would warn that it has not
            setattr(self._scheduled[key].scheduler.optimizer, "_opt_called", True)  # noqa: B010  unknown to mypy
