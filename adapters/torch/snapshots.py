"""Snapshots of all that training changes, in memory: to try something, undo it, and go on to the bit."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from adapters.torch.freezer import Freezer
from adapters.torch.storage import buffers_of
from alternator import StateError


class Stateful(Protocol):
    """What has a state to save, such as a scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take a state over."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """What `Snapshots.take` found. Nothing of it is shared with what trains on."""

    tensors: Mapping[str, Tensor]
    """Parameters and buffers by name."""
    optimizers: list[tuple[dict[Any, Any], list[dict[str, Any]]]]
    """The state of each optimizer, and what its parameter groups say."""
    others: list[tuple[Stateful, dict[str, Any]]]
    """Schedulers and scaler, each with its state."""
    random: list[Tensor]
    """The states of PyTorch's random generators: the CPU's, then those of CUDA devices."""


class Snapshots:
    """Takes snapshots of modules, optimizers, schedulers, scaler and PyTorch's random state, and goes back to them.

    Args:
        freezer: Knows the modules and holds the optimizers.
    """

    def __init__(self, freezer: Freezer) -> None:
        self._freezer = freezer

    def take(self, others: Iterable[Stateful] = ()) -> Snapshot:
        """All as it is now, copied where it is.

        Args:
            others: What training changes besides modules and optimizers: schedulers, a GradScaler.
        """
        self._reshard()
        self._freezer.frozen_states.wait()
        return Snapshot(
            tensors={name: tensor.detach().clone() for name, tensor in self._tensors()},
            optimizers=[(_copied(each.state), _options_of(each)) for each in self._freezer.optimizers],
            others=[(each, copy.deepcopy(each.state_dict())) for each in others],
            random=_random_states(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, which stays as it is. Parameters and buffers are written in place.

        Raises:
            StateError: Modules or optimizers have changed since, other than by training; nothing has been changed then.
        """
        self._reshard()
        self._freezer.frozen_states.wait()
        here = dict(self._tensors())
        shapes = {name: tensor.shape for name, tensor in here.items()}
        if shapes != {name: tensor.shape for name, tensor in snapshot.tensors.items()} or len(
            snapshot.optimizers
        ) != len(self._freezer.optimizers):
            raise StateError("a snapshot must be of the same modules and optimizers as there are; take it again")
        with torch.no_grad():
            for name, tensor in here.items():
                tensor.copy_(snapshot.tensors[name])
        for optimizer, (state, options) in zip(self._freezer.optimizers, snapshot.optimizers, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(state))
            for group, before in zip(optimizer.param_groups, options, strict=True):
                group.update(_copied(before))
        for each, before in snapshot.others:
            each.load_state_dict(copy.deepcopy(before))
        _set_random_states(snapshot.random)
        self._freezer.zero_grad()

    def _reshard(self) -> None:
        """Put the parameters back that optimizers know."""
        if self._freezer.ranks is not None:
            self._freezer.ranks.reshard()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter and buffer once, by a name of its own."""
        self._freezer.take_new_groups()
        seen: set[int] = set()
        for name, tensor in self._named_tensors():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, group in self._freezer.groups.items():
            for key, tensor in (*group.parameters.items(), *buffers_of(group).items()):
                yield f"{name}: {key}", tensor
        if self._freezer.model is not None:
            yield from self._freezer.model.named_buffers(prefix="model: ")


def _options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = optimizer.param_groups
    return [{key: _copied(value) for key, value in group.items() if key != "params"} for group in groups]


def _copied(values: Any) -> Any:
    """A copy of nested values, whose tensors keep their device; keys, which may be parameters, stay what they are."""
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    if isinstance(values, Tensor):
        return values.detach().clone()
    return copy.deepcopy(values)


def _random_states() -> list[Tensor]:
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *on_cuda]


def _set_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])
