"""The core's alternator for losses that are still on the device, and read late."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax

from adapters.contract import refuse_loss
from adapters.jax.losses import Losses, check_scalar
from alternator import Alternator, Decision, LossError, Rule, StateError, UnknownModuleError
from alternator.checks import check_integer, listed
from alternator.errors import quoted

VERSION = 1
"""The version of the saved state."""


class HostAlternator:
    """The core's `Alternator` for losses that are still on the device: it reads them late.

    Call `observe` with the arrays of each step right after starting it; the host then continues with the next step
    while the device works, and reads the losses ``delay`` steps later, when they have arrived.

    Args:
        alternator: Decides.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.

    Raises:
        ConfigurationError: The delay is negative.

    Example:
        >>> from alternator import Cycle
        >>> machine = HostAlternator(Alternator(("encoder", "head"), rule=Cycle(2)))
        >>> [machine.observe(jax.numpy.array(0.7)).active for step in range(3)]
        ['encoder', 'head', 'head']
        >>> machine.alternator.stats().modules["encoder"].training_steps
        2
    """

    def __init__(self, alternator: Alternator, *, delay: int = 1) -> None:
        self.alternator = alternator
        self._delay = check_integer("delay", delay, 0)
        self._pending: deque[tuple[int, dict[str, Any]]] = deque()

    @property
    def modules(self) -> tuple[str, ...]:
        """The names, in order."""
        return self.alternator.modules

    @property
    def rule(self) -> Rule:
        """The switching rule."""
        return self.alternator.rule

    @property
    def active(self) -> str:
        """The module that trains next."""
        return self.alternator.active

    def observe(self, losses: Losses, *, updated: bool = True) -> Decision:
        """Set the losses of a step on their way to the host, record those that are due, and decide who trains next.

        An empty mapping gives the alternator no losses: you record what it needs.

        Raises:
            UnknownModuleError: A name that is no module.
            LossError: The active module's loss is missing, a loss is not a real scalar, or one is given to a rule that
                decides by payoffs; nothing is counted then.
        """
        if not isinstance(losses, Mapping):
            refuse_loss(self.alternator.rule)
        named = dict(losses) if isinstance(losses, Mapping) else {self.active: losses}
        for name, value in named.items():
            if name not in self.alternator.modules:
                raise UnknownModuleError(name, self.alternator.modules)
            check_scalar(repr(name), value)
            if isinstance(value, jax.core.Tracer):
                raise LossError(
                    f"the loss of {name!r} must have been computed, got a traced one; call observe outside jit, or use "
                    "DeviceAlternator inside it"
                )
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        if named and self.active not in named:
            raise LossError(f"the loss of the active module {self.active!r} is missing; got only {tuple(named)}")
        self._pending.append((self.alternator.step + 1, named))
        self._record(self._delay)
        return self.alternator.advance(updated=updated)

    def flush(self) -> None:
        """Record the losses that are still under way; call it at the end of training to see them all."""
        self._record(0)

    def state_dict(self) -> dict[str, Any]:
        """The alternator's state and the losses under way, JSON-safe."""
        pending = [{name: repr(float(value)) for name, value in losses.items()} for _, losses in self._pending]
        return {"version": VERSION, "alternator": self.alternator.state_dict(), "pending_losses": pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken, here or in `adapters.torch.AlternatingOptimizer`.

        Raises:
            StateError: The state is of another configuration, or damaged; nothing has been changed then.
        """
        try:
            version, saved = state["version"], state["alternator"]
            pending = [{name: float(value) for name, value in step.items()} for step in state["pending_losses"]]
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise StateError(f"the state is damaged ({type(error).__name__}: {error}); load an intact one") from error
        if version != VERSION:
            raise StateError(f"state version must be {VERSION}, got {quoted(version)}; load it with that release")
        unknown = {name for losses in pending for name in losses} - {*self.alternator.modules}
        if unknown:
            raise StateError(f"the state is damaged: pending losses of {listed(map(str, unknown))}, which is no module")
        self.alternator.load_state_dict(saved)
        self._pending = deque(enumerate(pending, self.alternator.step - len(pending) + 1))

    def _record(self, keep: int) -> None:
        while len(self._pending) > keep:
            step, losses = self._pending.popleft()
            for name, value in losses.items():
                self.alternator.record(name, float(value), step=step)
