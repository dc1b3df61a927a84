"""Losses to the alternator, decisions to the freezer: what surrounds an update, whoever steps the optimizers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from adapters.contract import FreezeError, refuse_loss
from adapters.torch.freezer import Freezer
from adapters.torch.losses import LocalLosses, Loss, PendingLosses, check_scalar
from adapters.torch.schedules import Epochs
from alternator import Alternator, ConfigurationError, Decision, LossError, StateError, UnknownModuleError
from alternator.checks import listed

VERSION = 1
LISTENERS: ContextVar[tuple[Callable[["Decisions"], None], ...]] = ContextVar("LISTENERS", default=())
"""Called with each `Decisions` that is built in this context."""


class Decisions:
    """Records losses late, lets the alternator decide, and has the freezer apply what it decided.

    Args:
        alternator: Decides who trains.
        freezer: Applies the decisions; the name that is active now is applied at once.
        delay: How many steps later losses are read.
        epochs: What has trained in the epoch, to be saved with the rest.
    """

    def __init__(self, alternator: Alternator, freezer: Freezer, delay: int, epochs: Epochs | None = None) -> None:
        self.alternator = alternator
        """Decides who trains."""
        self.freezer = freezer
        """Applies the decisions."""
        self.listeners: list[Callable[[Decisions, bool], None]] = []
        """Called after each step, or forced switch, and what it has led to; and with True where what frozen modules
        hold is accepted: the user says so, or a state has been loaded."""
        self._epochs = Epochs((), ()) if epochs is None else epochs
        self._pending = PendingLosses(delay, LocalLosses if freezer.ranks is None else freezer.ranks.send)
        alternator.expect(turns={name: turn.modules for name, turn in freezer.turns.items()})
        freezer.apply(alternator.active, tentative=True)
        for listen in LISTENERS.get():
            listen(self)

    def check_losses(self, loss: Loss | None, losses: Mapping[str, Loss] | None) -> dict[str, Loss]:
        """The losses of a step by name: those given, or ``loss`` under the active name.

        Raises:
            LossError: There is none, the active name's is missing, one is not a scalar, or the rule decides by payoffs.
            UnknownModuleError: A name is not one of the alternator's.
        """
        if losses is None:
            if loss is None:
                raise LossError("step() needs a loss: give the loss, or losses= if you have called backward() yourself")
            refuse_loss(self.alternator.rule)
            losses = {self.alternator.active: loss}
        for name, value in losses.items():
            if name not in self.freezer.turns:
                raise UnknownModuleError(name, self.alternator.modules)
            check_scalar(name, value)
        if losses and self.alternator.active not in losses:
            raise LossError(
                f"the loss of the active module {self.alternator.active!r} is missing; got only {tuple(losses)}"
            )
        return dict(losses)

    def check_applied(self) -> None:
        """Refuse a step in which another module than the active one would train.

        Raises:
            FreezeError: The alternator was switched outside the adapter, or a frozen module is in training mode.
        """
        active, applied = self.alternator.active, self.freezer.applied
        if active != applied:
            raise FreezeError(
                f"the alternator says {active!r}, but {applied!r} is applied: switch with force() of the "
                "AlternatingOptimizer, or call its apply() before the forward pass"
            )
        self.freezer.check_modes()

    def add(self, losses: Mapping[str, Loss], *, summed: bool = False) -> None:
        """Add the losses of a micro-step, as `check_losses` returns them, to the means (or sums) of the step."""
        self._pending.add(losses, summed=summed)

    def close_step(self, *, updated: bool) -> Decision:
        """End the step: drop its gradients, record the losses that are due, decide, and switch if so decided."""
        self.freezer.zero_grad()
        self.freezer.check_written()
        self._record(self._pending.close_step(self.alternator.step + 1))
        decision = self.alternator.advance(updated=updated)
        self._check_ranks(decision)
        if self.alternator.active != self.freezer.applied:
            self._apply()
        self._report(accepted=False)
        return decision

    def end_epoch(self, values: Loss | Mapping[str, Loss] | None, mean: Callable[[Loss], Loss]) -> None:
        """Advance the schedulers that move by epochs, of what trained in this one; see `Epochs.end`.

        A module that trained in the epoch may be frozen by now: who listens is told that its schedule may move.
        """
        self._report(accepted=False)
        self._epochs.end(values, mean)
        self._report(accepted=True)

    def force(self, name: str) -> Decision:
        """Start a new tenure of a name now, as `Alternator.force` does."""
        self.freezer.check_written()
        decision = self.alternator.force(name)
        self._check_ranks(decision)
        self._apply()
        self._report(accepted=False)
        return decision

    def apply(self, *, tentative: bool = False) -> None:
        """Apply the active name, keeping what the user has frozen or unfrozen since the last switch.

        Args:
            tentative: As `Freezer.apply` has it.
        """
        self._apply(tentative=tentative)
        self._report(accepted=True)

    def flush(self) -> None:
        """Record the losses that are still pending."""
        self._record(self._pending.flush())

    def state_dict(self) -> dict[str, Any]:
        """The alternator's state, the pending losses and what the user froze; JSON-safe."""
        return {
            "version": VERSION,
            "alternator": self.alternator.state_dict(),
            "pending_losses": self._pending.state(),
            **self.freezer.state_dict(),
            **self._epochs.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a damaged state or one of another model; the alternator's part is checked when it is loaded.

        Raises:
            StateError: With what is wrong.
        """
        if state["version"] != VERSION:
            raise StateError(f"state version must be {VERSION}, got {state['version']!r}; save it again")
        pending = _floats(state["pending_losses"])
        unknown = sorted({name for losses in pending for name in losses} - set(self.freezer.turns))
        if unknown:
            raise StateError(
                f"the state belongs to another model: it names {listed(unknown)}, which this one does not have"
            )
        self.freezer.check_state(state)
        self._epochs.check_state(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            StateError: The state is damaged or of another configuration; nothing has been changed then.
        """
        with refusing_damage():
            self.check_state(state)
            saved = state["alternator"]
        before = self.alternator.state_dict()
        self.alternator.load_state_dict(saved)  # refuses before it changes anything
        try:
            self.freezer.refresh()
        except ConfigurationError:
            self.alternator.load_state_dict(before)
            raise
        self._pending.load(_floats(state["pending_losses"]), self.alternator.step)
        self.freezer.load_state_dict(state)
        self._epochs.load_state_dict(state)
        self.freezer.apply(self.alternator.active, tentative=True)
        self._report(accepted=True)

    def _apply(self, *, tentative: bool = False) -> None:
        self.freezer.remember()
        self.freezer.apply(self.alternator.active, tentative=tentative)

    def _report(self, *, accepted: bool) -> None:
        for listen in self.listeners:
            listen(self, accepted)

    def _record(self, losses: Iterator[tuple[int, str, float]]) -> None:
        for computed_in, name, value in losses:
            self.alternator.record(name, value, step=computed_in)

    def _check_ranks(self, decision: Decision) -> None:
        if self.freezer.ranks is not None:
            self.freezer.ranks.check_decision(decision)


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Turn the errors of a state that is not what `state_dict` returned into one that says so.

    Raises:
        StateError: The state is damaged.
    """
    try:
        yield
    except StateError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StateError(f"the state is damaged ({type(error).__name__}: {error}); load an intact one") from error


def _floats(pending: list[dict[str, str]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in losses.items()} for losses in pending]
