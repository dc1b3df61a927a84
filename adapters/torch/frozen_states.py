"""The optimizer state of what is frozen: kept where it is, on the host, or dropped.

Design constraints:

1. State is made, or comes back, in updates, and only after that of what is frozen has left the device.
2. A state is in ``optimizer.state`` at all times, wherever its tensors are: whatever saves or copies it finds it whole.
3. What was on the host all along (``step``, mostly) stays there; all else comes back to its device, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Adagrad, Optimizer

from adapters.contract import FrozenState
from adapters.torch.modules import Freezable
from adapters.torch.parked import Parked


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
        self._waits = self._is_new = False

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
        self._waits, self._is_new = tentative, True
        if not tentative:
            self._drop()
        away = {p for group in frozen if modes[group.name] != "keep" for p in group.parameters.values()}
        for parked in self._parked:
            parked.leave(away)

    def prepare(self) -> None:
        """Before a backward pass: let what trains come back beside it, if what is frozen has left already."""
        if not self._waits and all(parked.host.is_done() for parked in self._parked):
            self._exchange()

    def settle(self) -> None:
        """Before an update: what is frozen has left for good, and what trains is on its device."""
        is_loaded = any(parked.is_loaded for parked in self._parked)
        if self._waits or is_loaded:
            self._drop()
        self._exchange()
        for parked in self._parked:
            parked.finish()
            if isinstance(parked.optimizer, Adagrad) and (self._is_new or is_loaded):
                _start_anew(parked.optimizer, self._active)
        self._waits = self._is_new = False

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

    def _exchange(self) -> None:
        for parked in self._parked:
            parked.let_go()
        for parked in self._parked:  # only then, so that the two are never on the device together
            parked.bring_back()

    def _drop(self) -> None:
        for parked in self._parked:
            parked.drop(self._dropped)
            parked.is_loaded = False


def _start_anew(optimizer: Adagrad, active: Iterable[Freezable]) -> None:
    """Give what trains and has no state the one that this optimizer, unlike others, makes only when it is built."""
    training = {parameter for group in active for parameter in group.parameters.values()}
    for group in optimizer.param_groups:
        new = [p for p in group["params"] if p in training and not optimizer.state.get(p)]
        if new:
            options = {key: value for key, value in group.items() if key != "param_names"}
            optimizer.state.update(type(optimizer)([{**options, "params": new}]).state)
