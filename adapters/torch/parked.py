"""The optimizer state of one optimizer that is on the host: away from its device, and back to the bit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adapters.torch.checks import parameters_of
from adapters.torch.host import Host

Path = tuple[Any, ...]
"""The keys from the state of a parameter to a tensor in it."""


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
        self._withheld: dict[Tensor, Any] = {}
        self._returns = self._is_coming = self._is_released = False
        optimizer.register_step_pre_hook(self)
        optimizer.register_state_dict_pre_hook(lambda _: self.host.wait())
        optimizer.register_load_state_dict_pre_hook(self._before_loading)
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
        self.finish()
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
        self.finish()
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)
            self._homes.pop(parameter, None)

    def let_go(self) -> None:
        """Free what has been copied, which is on the host from here on."""
        if not self._leaving:
            return
        self.host.finish()
        while self._leaving:
            holder, key, tensor, copied = self._leaving.pop()
            if (isinstance(holder, list) or key in holder) and holder[key] is tensor:  # else another has been loaded
                holder[key] = copied

    def bring_back(self) -> None:
        """Begin to bring back what is not to be away; to be called after `let_go`."""
        if not self._returns:
            return
        self._returns, self._is_coming = False, True
        for parameter in [each for each in self._homes if each not in self._away]:
            homes = self._homes.pop(parameter)
            for path, holder, tensor in _tensors_in(self.optimizer.state.get(parameter)):
                if path in homes and self.host.has(tensor):
                    holder[path[-1]] = self.host.send(tensor, homes[path])

    def finish(self) -> None:
        """Have the device wait for what has begun to come back."""
        if self._is_coming:
            self.host.finish()
        self._is_coming = False

    def release(self) -> None:
        """Bring everything back in the next step."""
        self.leave(frozenset())
        self._is_released = True

    def _before_loading(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Withhold what is to be on the host from a loading that would put all on the device."""
        self.host.wait()
        self._withheld = {}
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        parameters = parameters_of(optimizer)
        if type(optimizer).load_state_dict is not Optimizer.load_state_dict or len(numbers) != len(parameters):
            return state
        away = {number: p for number, p in zip(numbers, parameters, strict=True) if p in self._away}
        withheld = {number: each for number, each in state["state"].items() if number in away}
        self._withheld = _loaded_on_host(optimizer, {**state, "state": withheld})
        self._homes = {p: homes for p, homes in self._homes.items() if p not in self._away}
        for parameter, loaded in self._withheld.items():
            self._homes[parameter] = _homes_of(parameter, loaded, optimizer)
        return {**state, "state": {number: each for number, each in state["state"].items() if number not in away}}

    def _after_loading(self, optimizer: Optimizer) -> None:
        self.is_loaded = True
        optimizer.state.update(self._withheld)
        self._withheld = {}
        self.leave(self._away)

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a step that no adapter has prepared."""
        if self._is_released:
            self.let_go()
            self.bring_back()
            self.finish()


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


class _StandIn(Optimizer):
    """Loads a state as every optimizer does, and steps nothing."""


def _loaded_on_host(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[Tensor, Any]:
    """What PyTorch would load for these parameters if they were on the host, by parameter."""
    stand_ins = {p: torch.empty(0, dtype=p.dtype) for p in parameters_of(optimizer)}
    groups = [[stand_ins[p] for p in group["params"]] for group in optimizer.param_groups]
    other = _StandIn([{"params": group} for group in groups], {})
    other.load_state_dict(dict(state))
    return {p: other.state[stand_in] for p, stand_in in stand_ins.items() if stand_in in other.state}


def _homes_of(parameter: Tensor, state: Any, optimizer: Optimizer) -> dict[Path, torch.device]:
    """Where PyTorch would have put the tensors of a loaded state: all with their parameter, but for some counts."""
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    counts_there = group.get("capturable", False) or group.get("fused", False)
    found = _tensors_in(state)
    return {path: parameter.device for path, _, _ in found if path[-1] != "step" or counts_there}
