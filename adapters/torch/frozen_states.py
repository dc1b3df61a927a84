"""The optimizer state of what is frozen: kept where it is, on the host, or dropped.

Design constraints:

1. State is made, or comes back, in updates, and only after that of what is frozen has left the device.
2. A state is in ``optimizer.state`` at all times, wherever its tensors are: whatever saves or copies it finds it whole.
3. What was on the host all along (``step``, mostly) stays there; all else comes back to its device, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad, Optimizer

from adapters.contract import FrozenState
from adapters.torch.checks import parameters_of
from adapters.torch.host import Host
from adapters.torch.modules import Freezable

Path = tuple[Any, ...]
"""The keys from the state of a parameter to a tensor in it."""


class FrozenStates:
    """Moves the states of modules off their device while they are frozen, and back for their updates.

    Args:
        modes: Per module what becomes of its state.
        optimizers: All optimizers.
    """

    def __init__(self, modes: Mapping[str, FrozenState], optimizers: Sequence[Optimizer]) -> None:
        self._modes = modes
        leaves = any(mode != "keep" for mode in modes.values())
        self._parked = [Parked.of(optimizer) for optimizer in optimizers] if leaves else []
        self._active: tuple[Freezable, ...] = ()
        self._dropped: frozenset[Tensor] = frozenset()
        self._waits = False

    def apply(self, active: tuple[Freezable, ...], frozen: Iterable[Freezable], *, tentative: bool) -> None:
        """Begin to move away the states of what is frozen, and drop those that are to be dropped.

        Args:
            active: What trains.
            frozen: What does not.
            tentative: What is frozen may yet be active in the next update (a state has been loaded): what is to be
                dropped waits on the host until then.
        """
        if not self._parked:
            return
        modes = {group.name: self._modes.get(group.name, "keep") for group in frozen}
        self._active = active
        dropped = [group for group in frozen if modes[group.name] == "drop"]
        self._dropped = frozenset(p for group in dropped for p in group.parameters.values())
        self._waits = tentative
        if not tentative:
            self._drop()
        away = {p for group in frozen if modes[group.name] != "keep" for p in group.parameters.values()}
        for parked in self._parked:
            parked.leave(away)

    def settle(self) -> None:
        """Before an update: what is frozen has left for good, and what trains is on its device."""
        if self._waits or any(parked.is_loaded for parked in self._parked):
            self._drop()
            self._waits = False
        for parked in self._parked:
            parked.let_go()
        for parked in self._parked:  # only then, so that the two are never on the device together
            parked.bring_back()
            if isinstance(parked.optimizer, Adagrad):
                _start_anew(parked.optimizer, self._active)

    def is_dropped(self, parameter: Tensor) -> bool:
        """Whether the state of a parameter is dropped now, or will be in the next update."""
        return parameter in self._dropped

    def wait(self) -> None:
        """Wait until states that are on the host can be read there."""
        for parked in self._parked:
            parked.host.wait()

    def release(self) -> None:
        """Let all come back in the next step of its optimizer, whoever calls that."""
        for parked in self._parked:
            parked.release()
        self._dropped, self._waits = frozenset(), False

    def _drop(self) -> None:
        for parked in self._parked:
            parked.drop(self._dropped)
            parked.is_loaded = False


class Parked:
    """The states of one optimizer that are on the host. It is found again by another adapter (see `of`).

    Args:
        optimizer: Its states are moved.
        host: Where to.
    """

    def __init__(self, optimizer: Optimizer, host: Host | None = None) -> None:
        self.optimizer = optimizer
        self.host = Host() if host is None else host
        self.is_loaded = False
        """Whether a state has been loaded since what is to be dropped last was."""
        self._away: Collection[Tensor] = frozenset()
        self._homes: dict[Tensor, dict[Path, torch.device]] = {}
        self._leaving: list[tuple[Any, Any, Tensor, Tensor]] = []
        self._returns = self._is_released = False
        optimizer.register_step_pre_hook(self)
        optimizer.register_state_dict_pre_hook(lambda _: self.host.wait())
        optimizer.register_load_state_dict_post_hook(self._after_loading)

    @classmethod
    def of(cls, optimizer: Optimizer) -> Parked:
        """The one of an optimizer, that of an adapter before this one if there was such."""
        hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
        parked = next((hook for hook in hooks if isinstance(hook, cls)), None)
        if parked is None:
            return cls(optimizer)
        parked._is_released = False
        return parked

    def leave(self, away: Collection[Tensor]) -> None:
        """Begin to copy the states of these parameters to the host; all others come back with `bring_back`."""
        self._away = away
        self._leaving = []
        for parameter in parameters_of(self.optimizer):
            if parameter not in away:
                continue
            for path, holder, tensor in _tensors_in(self.optimizer.state.get(parameter)):
                if not self.host.has(tensor):
                    self._homes.setdefault(parameter, {})[path] = tensor.device
                    self._leaving.append((holder, path[-1], tensor, self.host.fetch(tensor)))
        self._returns = any(parameter not in away for parameter in self._homes)

    def drop(self, parameters: Iterable[Tensor]) -> None:
        """Forget the states of these parameters."""
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)
            self._homes.pop(parameter, None)

    def let_go(self) -> None:
        """Free what has been copied, which is on the host from here on."""
        if self._leaving:
            self.host.finish()
        while self._leaving:
            holder, key, tensor, copied = self._leaving.pop()
            if (isinstance(holder, list) or key in holder) and holder[key] is tensor:  # else another has been loaded
                holder[key] = copied

    def bring_back(self) -> None:
        """Bring back what is not to be away; to be called after `let_go`."""
        if not self._returns:
            return
        self._returns = False
        for parameter in [each for each in self._homes if each not in self._away]:
            homes = self._homes.pop(parameter)
            for path, holder, tensor in _tensors_in(self.optimizer.state.get(parameter)):
                if path in homes and self.host.has(tensor):
                    holder[path[-1]] = self.host.send(tensor, homes[path])

    def release(self) -> None:
        """Bring everything back in the next step."""
        self.leave(frozenset())
        self._is_released = True

    def _after_loading(self, _: Optimizer) -> None:
        self.is_loaded = True
        self.leave(self._away)

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a step that no adapter has prepared."""
        if self._is_released:
            self.let_go()
            self.bring_back()


def _tensors_in(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Tensor]]:
    """The tensors of a state, each with its path and the mapping or list that holds it."""
    if isinstance(state, Mapping):
        items: list[tuple[Any, Any]] = list(state.items())
    else:
        items = list(enumerate(state)) if isinstance(state, list) else []
    for key, value in items:
        if isinstance(value, Tensor):
            yield (*path, key), state, value
        else:
            yield from _tensors_in(value, (*path, key))


def _start_anew(optimizer: Adagrad, active: Iterable[Freezable]) -> None:
    """Give what trains and has no state the one that this optimizer, unlike others, makes only when it is built."""
    training = {parameter for group in active for parameter in group.parameters.values()}
    for group in optimizer.param_groups:
        new = [p for p in group["params"] if p in training and not optimizer.state.get(p)]
        if new:
            options = {key: value for key, value in group.items() if key != "param_names"}
            optimizer.state.update(type(optimizer)([{**options, "params": new}]).state)
