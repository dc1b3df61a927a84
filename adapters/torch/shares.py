"""Optimizers see only what trains: not all of them skip a parameter whose gradient is None.

Published implementations of Muon and optimizers written by hand decay weights, or move them by their momentum, before
they look for a gradient. So while one steps, its ``param_groups`` hold its share alone; nothing else of it is touched.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from adapters.torch.freezer import Freezer
from alternator import ConfigurationError
from alternator.checks import listed


class Share:
    """What of one optimizer trains.

    Args:
        optimizer: Its groups as they are now.
        training: The ``id`` of every parameter that trains.
        frozen: The ``id`` of every parameter of a frozen module.
    """

    def __init__(self, optimizer: Optimizer, training: Collection[int], frozen: Collection[int] = ()) -> None:
        self.optimizer = optimizer
        groups = optimizer.param_groups
        self._mixed = [
            group
            for group in groups
            if any(id(p) in frozen for p in group["params"]) and any(id(p) in training for p in group["params"])
        ]
        self._options: list[dict[str, Any]] = []
        self._shown = [[p for p in group["params"] if id(p) in training] for group in optimizer.param_groups]
        self.parameters: list[nn.Parameter] = [parameter for shown in self._shown for parameter in shown]
        """Those of its parameters that train."""
        num_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
        self.is_partial = len(self.parameters) < num_parameters and not _skips_missing_gradients(optimizer)
        """Whether there is something to hide from it."""
        self._whole: list[tuple[dict[str, Any], list[nn.Parameter]]] = []

    def show(self) -> None:
        """Leave in the groups only what trains, and leave out groups of which nothing does."""
        if not self.is_partial or self._whole:
            return
        groups = self.optimizer.param_groups
        self._whole = [(group, group["params"]) for group in groups]
        for group, shown in zip(groups, self._shown, strict=True):
            group["params"] = shown
        groups[:] = [group for group in groups if group["params"]]
        self._options = [dict(group) for group in self._mixed]

    def hide(self) -> None:
        """The groups are whole again, followed by those that have been added meanwhile."""
        if not self._whole:
            return
        for group, whole in self._whole:
            group["params"] = whole
        known = {id(group) for group, _ in self._whole}
        groups = self.optimizer.param_groups
        groups[:] = [group for group, _ in self._whole] + [group for group in groups if id(group) not in known]
        self._whole = []

    def check_options(self) -> None:
        """Refuse an optimizer that counts per group where a group holds parameters of a frozen module too.

        To be called after a step and `hide`.

        Raises:
            ConfigurationError: With what it counts.
        """
        pairs = list(zip(self._mixed, self._options, strict=False))  # none if the optimizer was not shown a share
        self._options = []
        counted = sorted({key for group, old in pairs for key in group if key != "params" and _differ(group, old, key)})
        if counted:
            raise ConfigurationError(
                "a parameter group must belong to one module if its optimizer counts per group, but "
                f"{type(self.optimizer).__name__} counts {listed(counted)}, also for what is frozen: give each module "
                "a group, or an optimizer, of its own"
            )


def _differ(group: Mapping[str, Any], old: Mapping[str, Any], key: str) -> bool:
    """Whether an option has been replaced; tensors are not read, they may be on a device."""
    now, before = group[key], old.get(key)
    return now is not before and (isinstance(now, Tensor) or isinstance(before, Tensor) or bool(now != before))


class Shares:
    """The shares of the applied turn, found again when it changes.

    Args:
        freezer: Knows what trains.
    """

    def __init__(self, freezer: Freezer) -> None:
        self._freezer = freezer
        self._num_changes = -1
        self._every: dict[Optimizer, Share] = {}
        self._found: list[Share] = []

    def find(self) -> list[Share]:
        """One per optimizer that has something to train."""
        self._look()
        return self._found

    def of(self, optimizer: Optimizer) -> Share:
        """That of one optimizer, which may be nothing."""
        self._look()
        return self._every[optimizer]

    def _look(self) -> None:
        if self._num_changes == self._freezer.num_changes:
            return
        training = self._freezer.training()
        frozen = {id(parameter) for parameter in self._freezer.turn.frozen_parameters}
        self._every = {optimizer: Share(optimizer, training, frozen) for optimizer in self._freezer.optimizers}
        self._found = [share for share in self._every.values() if share.parameters]
        self._num_changes = self._freezer.num_changes


def showing(shares: Iterable[Share]) -> AbstractContextManager[None]:
    """Within it the optimizers see what trains and nothing else."""
    shown = [share for share in shares if share.is_partial]
    return _showing(shown) if shown else nullcontext()


@contextmanager
def _showing(shares: Iterable[Share]) -> Iterator[None]:
    try:
        for share in shares:
            share.show()
        yield
    finally:
        for share in shares:
            share.hide()
    for share in shares:
        share.check_options()


class ShownSteps:
    """Shows an optimizer its share in steps that something else makes. A closure that it is given sees it whole.

    Args:
        optimizer: Watched until `close`.
        freezer: Holds it, and knows what trains.
    """

    def __init__(self, optimizer: Optimizer, freezer: Freezer) -> None:
        self._optimizer = optimizer
        self._freezer = freezer
        self._shares = Shares(freezer)
        self._shown: Share | None = None
        self._depth = 0
        self._hooks = (
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        )

    @property
    def trains(self) -> bool:
        """Whether something of the optimizer trains."""
        return bool(self._shares.of(self._optimizer).parameters)

    def reset(self) -> None:
        """The optimizer is whole again after a step that failed, which calls no hook."""
        self._depth = 0
        self._hide()

    def close(self) -> None:
        """Stop watching."""
        self.reset()
        for hook in self._hooks:
            hook.remove()

    def _enter(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._depth += 1  # more than 1 in the super().step() of a step
        self._show()
        given = (args[0], *(self._seeing_all(each) for each in args[1:]))
        return given, {name: self._seeing_all(each) for name, each in kwargs.items()}

    def _leave(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            shown = self._shown
            self._hide()
            if shown is not None:
                shown.check_options()

    def _seeing_all(self, given: Any) -> Any:
        if not callable(given):
            return given
        closure: Callable[[], Any] = given

        def seeing_all() -> Any:
            self._hide()
            result = closure()
            self._show()
            return result

        return seeing_all

    def _show(self) -> None:
        if self._shown is not None:
            return
        self._freezer.take_new_groups()
        self._shown = self._shares.of(self._optimizer)
        self._shown.show()

    def _hide(self) -> None:
        if self._shown is not None:
            self._shown.hide()
        self._shown = None


def _skips_missing_gradients(optimizer: Optimizer) -> bool:
    """Whether it is PyTorch's own: all of these do."""
    return type(optimizer).__module__.startswith("torch.optim.")
