"""The states of optimizers, schedulers and scaler: saved by the names of modules and parameters, loaded whole or not.

PyTorch itself matches an optimizer's state by position: equal towers built in another order would swap their moments.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from adapters.torch.checks import parameters_of
from adapters.torch.freezer import Freezer
from adapters.torch.schedules import Schedulers, list_schedulers
from alternator import StateError
from alternator.checks import listed

REMEDY = "build the same as when it was saved"


class States:
    """Saves and loads what steps: optimizers, schedulers and scaler.

    An optimizer is known by the modules whose parameters it holds (``"a"``, or ``"a+b"`` over both), or by its first
    parameter if there are several of these modules; a parameter by its name in its module (``"a.0.weight"``).

    Args:
        freezer: Knows the names and holds the optimizers.
        schedulers: Per module name a scheduler or several.
        scaler: The GradScaler.
    """

    def __init__(self, freezer: Freezer, schedulers: Schedulers | None, scaler: GradScaler | None) -> None:
        self._freezer = freezer
        self._schedulers = {each.key: each.scheduler for each in list_schedulers(schedulers)}
        self._scaler = scaler

    def state_dict(self) -> dict[str, Any]:
        """The states, with tensors in them, so not JSON; see `load_state_dict`."""
        names = self._names()
        self._freezer.frozen_states.wait()
        return {
            "optimizers": {key: by_name(optimizer, names) for key, optimizer in self._optimizers(names).items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self._schedulers.items()},
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            StateError: Something has a state and is not here, or is here and has none; nothing has been changed then.
                After any other error see `undone_on_error`.
        """
        names = self._names()
        optimizers = self._optimizers(names)
        _check_names("optimizers", state["optimizers"], optimizers)
        _check_names("schedulers", state["schedulers"], self._schedulers)
        scalers = [["GradScaler"] if each else [] for each in (state["scaler"], self._scaler is not None)]
        _check_names("scaler", *scalers)
        saved = {key: by_position(state["optimizers"][key], each, names) for key, each in optimizers.items()}
        for key, optimizer in optimizers.items():
            optimizer.load_state_dict(saved[key])
        for name, scheduler in self._schedulers.items():
            scheduler.load_state_dict(state["schedulers"][name])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """All as it was before, if what is done within fails: loading replaces states, and writes to none of them."""
        optimizers = [(each, each.state, each.param_groups) for each in self._freezer.optimizers]
        schedulers = [(each, each.state_dict()) for each in self._schedulers.values()]
        scale = None if self._scaler is None else self._scaler.state_dict()
        try:
            yield
        except BaseException:
            for optimizer, state, param_groups in optimizers:
                optimizer.state, optimizer.param_groups = state, param_groups
            for scheduler, before in schedulers:
                scheduler.load_state_dict(before)
            if self._scaler is not None and scale is not None:
                self._scaler.load_state_dict(scale)
            raise

    def _names(self) -> dict[int, str]:
        """By ``id`` the name of each parameter."""
        self._freezer.take_new_groups()
        return {id(p): key for group in self._freezer.groups.values() for key, p in group.parameters.items()}

    def _optimizers(self, names: Mapping[int, str]) -> dict[str, Optimizer]:
        """The optimizers by the modules whose parameters they hold."""
        owners = {id(p): name for name, group in self._freezer.groups.items() for p in group.parameters.values()}
        keys = ["+".join(sorted({owners[id(p)] for p in parameters_of(each)})) for each in self._freezer.optimizers]
        counts = Counter(keys)
        return {
            key if counts[key] == 1 else min(names[id(parameter)] for parameter in parameters_of(optimizer)): optimizer
            for key, optimizer in zip(keys, self._freezer.optimizers, strict=True)
        }


def by_name(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """The optimizer's state dict, with names where PyTorch has numbers.

    Args:
        optimizer: Its ``state_dict`` is taken.
        names: By ``id`` the name of each of its parameters.
    """
    state = optimizer.state_dict()
    pairs = list(zip(state["param_groups"], optimizer.param_groups, strict=True))
    name_of = {
        number: names[id(parameter)]
        for saved, group in pairs
        for number, parameter in zip(saved["params"], group["params"], strict=True)
    }
    return {
        **state,
        "state": {name_of.get(key, key): value for key, value in state["state"].items()},
        "param_groups": [{**saved, "params": [name_of[number] for number in saved["params"]]} for saved, _ in pairs],
    }


def by_position(state: Mapping[str, Any], optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """What `by_name` returned, for the ``load_state_dict`` of an optimizer that holds the same parameters.

    Its groups, and the parameters in them, may be in another order.

    Raises:
        StateError: It holds others, or other groups of them.
    """
    here = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    number_of = {name: number for number, name in enumerate(name for group in here for name in group)}
    saved_groups = {frozenset(group["params"]): group for group in state["param_groups"]}
    _check_names("parameters", [name for names in saved_groups for name in names], number_of)
    if len(state["param_groups"]) != len(here) or any(frozenset(own) not in saved_groups for own in here):
        raise StateError(f"the state must have the same parameters in each parameter group as there are here; {REMEDY}")
    param_groups = []
    for own, group in zip(here, optimizer.param_groups, strict=True):
        saved = {key: value for key, value in saved_groups[frozenset(own)].items() if key != "param_names"}
        names_here = {"param_names": group["param_names"]} if "param_names" in group else {}
        param_groups.append({**saved, **names_here, "params": [number_of[name] for name in own]})
    loaded = {number_of.get(key, key): value for key, value in state["state"].items()}
    return {**state, "state": loaded, "param_groups": param_groups}


def _check_names(what: str, saved: Collection[str], here: Collection[str]) -> None:
    """Refuse a state that does not hold exactly what is here."""
    if not all(isinstance(name, str) for name in saved):
        raise StateError(f"the state must hold the {what} by name, not by position; save it again")
    for names, others, place in ((here, saved, "here, not in the state"), (saved, here, "in the state, not here")):
        extra = sorted(set(names) - set(others))
        if extra:
            raise StateError(
                f"the state must have the same {what} as are here, but {listed(extra)} is {place}; {REMEDY}"
            )
