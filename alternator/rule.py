"""The rule protocol: what a rule may read (Facts), what it says (Verdict), what it is (Rule).

Design constraints:

1. A rule is pure. ``step(state, facts)`` returns a new state and a verdict; it keeps nothing and changes nothing.
2. Its state is a flat NamedTuple of numbers and fixed-size tuples of numbers, so that it is saved as JSON and mirrored
   on a device as a pytree.
3. The machine owns the facts. It changes them in place, so a rule reads them and never keeps them.
"""

from collections import deque
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Facts:
    """What has happened so far, as a rule sees it when it decides.

    Attributes:
        num_modules: The number of modules.
        step: The number of steps counted so far, this one included (1-based).
        active: Index of the module that trained in this step.
        tenure: The number of updated steps of the active module in this tenure, this one included.
        entered: True at the first decision of a tenure, where a rule resets what it remembers of a tenure.
        entered_at: The number of steps counted before this tenure began.
        updated: False when the optimizer skipped this step's update.
        observed: The number of finite losses of the active module computed in this tenure and recorded so far.
        updates: The number of updated steps counted so far, of all modules together.
        trained_at: Per module, the value of ``updates`` when it last trained (0 before the first time).
        rings: Per module, its newest finite losses, oldest first, at most ``rule.ring_size`` of them.
    """

    __slots__ = (
        "active",
        "entered",
        "entered_at",
        "num_modules",
        "observed",
        "rings",
        "step",
        "tenure",
        "trained_at",
        "updated",
        "updates",
    )

    def __init__(self, num_modules: int, ring_size: int) -> None:
        self.num_modules = num_modules
        self.step = 0
        self.active = 0
        self.tenure = 0
        self.entered = True
        self.entered_at = 0
        self.updated = True
        self.observed = 0
        self.updates = 0
        self.trained_at = [0] * num_modules
        self.rings: tuple[deque[float], ...] = tuple(deque(maxlen=int(ring_size)) for _ in range(num_modules))

    def idle(self, index: int) -> int:
        """Updated steps since a module last trained: its staleness."""
        return self.updates - self.trained_at[index]


class Verdict(NamedTuple):
    """What a rule says about one step.

    Attributes:
        switch: Whether another module takes over.
        reason: A code of `Reason`, or a string of your own.
        value: The number that was compared.
        limit: The number that it was compared with.
        plateaued: True when the rule switches because the active module's loss has stopped falling; a rise is no
            plateau.
        target: Index of the module to switch to; None is the following one in order.
    """

    switch: bool
    reason: str
    value: float
    limit: float
    plateaued: bool = False
    target: int | None = None


@runtime_checkable
class Rule(Protocol):
    """A switching rule: a frozen dataclass with these three members.

    Validate in ``__post_init__`` and refuse what could never switch. `Alternator` calls `step` once per step. A saved
    state is loaded only if its numbers are of the types, and its tuples of the lengths, of what `init` returns. A rule
    that fails on some such states has a fourth member, ``is_possible(state, facts)``, which says whether it can be in
    this one. One that limits its tenures may have a property ``tenure_limit``: the name of the parameter and its value
    in updated steps (None for no limit), for the warning if that is long against the run.

    Example:
        >>> from dataclasses import dataclass
        >>> from alternator import Alternator
        >>> class NoState(NamedTuple): ...
        >>> @dataclass(frozen=True)
        ... class EveryStep:
        ...     ring_size: int = 0
        ...
        ...     def init(self, num_modules):
        ...         return NoState()
        ...
        ...     def step(self, state, facts):
        ...         return state, Verdict(True, "every step", facts.tenure, 1)
        >>> Alternator(("encoder", "head"), rule=EveryStep()).advance().explain()
        'step 1: encoder → head (every step: 1 against 1)'
    """

    @property
    def ring_size(self) -> int:
        """The number of each module's newest losses that the rule needs (0 if it ignores losses)."""
        ...

    def init(self, num_modules: int) -> Any:
        """The state before the first step: a flat NamedTuple of numbers and fixed-size tuples.

        A number that may become a float later is one here already.

        Raises:
            ConfigurationError: The rule cannot work with that number of modules.
        """
        ...

    def step(self, state: Any, facts: Facts) -> tuple[Any, Verdict]:
        """Decide who trains next, from the state and the facts alone."""
        ...
