"""Alternator: counts steps, keeps the newest losses, and asks the rule which module trains next."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, SupportsFloat

from alternator.checks import check_integer, to_float
from alternator.decision import Decision
from alternator.errors import ConfigurationError, LossError, UnknownModuleError, quoted
from alternator.reasons import Reason, describe
from alternator.rule import Facts, Rule
from alternator.rules.plateau import Plateau
from alternator.rules.trial import Trial, unmeasured_trial
from alternator.starvation import Starvation
from alternator.state import build_facts, configuration, dump_state, fingerprint, parse_state
from alternator.stats import ModuleStats, Stats

_LOGGER = logging.getLogger("alternator")


class Alternator:
    """Decides step by step which module of a model trains next.

    Call `observe` once after every update with the losses of the step; it returns a `Decision` whose ``active`` is the
    module to train from now on. Where losses arrive late (a device runs ahead of the host), call `record` for each as
    it comes and `advance` after each update. Deterministic: the same configuration and losses give the same decisions.

    Args:
        modules: Two or more names, in the order in which they take turns.
        rule: The switching rule; `Plateau`, the original method, by default.
        nonfinite_limit: The number of non-finite losses in a row of the active module that forces a switch.
        num_steps: The planned number of steps of the run, if you want to be warned, once, when a module has not trained
            for a tenth of it, or if the rule's limit (``max_steps``, ``max_wait``) is longer than that. No decision
            depends on it. Not for `Payoff`, which leaves modules out because they do not pay; nor for fewer than 200
            steps.

    Raises:
        ConfigurationError: Fewer than two modules, a name that is empty or appears twice, or a rule that cannot work.

    Example:
        >>> from alternator import Alternator, Plateau
        >>> alternator = Alternator(("sasrec", "retriever"), rule=Plateau(min_steps=1, window=3))
        >>> for loss in (0.71, 0.70, 0.70):
        ...     decision = alternator.observe(loss)
        >>> decision.explain()
        'step 3: sasrec → retriever (change rate 0 < 0.01)'
    """

    def __init__(
        self,
        modules: Iterable[str],
        rule: Rule | None = None,
        *,
        nonfinite_limit: int = 10,
        num_steps: int | None = None,
    ) -> None:
        self._modules = _check_modules(modules)
        self._index = {name: index for index, name in enumerate(self._modules)}
        self._rule: Rule = Plateau() if rule is None else rule
        if isinstance(self._rule, type) or not isinstance(self._rule, Rule):
            raise ConfigurationError(f"rule must be an instance such as Plateau(threshold=0.01), got {quoted(rule)}")
        check_integer("ring_size", self._rule.ring_size, 0)
        self._nonfinite_limit = check_integer("nonfinite_limit", nonfinite_limit, 1)
        self._configuration = configuration(self._modules, self._rule, self._nonfinite_limit)
        self._starvation = Starvation(self._modules, self._rule)
        self._warns_of_unmeasured = isinstance(self._rule, Trial)
        self.reset()
        self._starvation.expect(num_steps, depth=2)

    def reset(self) -> None:
        """Forget everything but the configuration: the state of a new alternator."""
        num_modules = len(self._modules)
        self._rule_state = self._rule.init(num_modules)
        self._facts = Facts(num_modules, max(self._rule.ring_size, 1))
        self._training_steps = [0] * num_modules
        self._skipped_steps = [0] * num_modules
        self._nonfinite_losses = [0] * num_modules
        self._nonfinite_streaks = [0] * num_modules
        self._plateaued = [False] * num_modules
        self._switch_count = 0
        self._starvation.restart()

    def expect(self, num_steps: int | None = None, turns: Mapping[str, str | Iterable[str]] | None = None) -> None:
        """Say what is planned, where it is known later than the alternator is built; adapters do. Decides nothing.

        Example:
            >>> alternator = Alternator(("encoder", "head"))
            >>> alternator.expect(num_steps=10_000)
            >>> alternator.num_steps
            10000

        Args:
            num_steps: The planned number of steps of the run, for the warnings that `Alternator` describes.
            turns: The modules that each name trains, where names stand for several: a module waits while none of its
                names trains.

        Raises:
            ConfigurationError: ``num_steps`` is not an integer of at least 1, or ``turns`` lacks a name.
            UnknownModuleError: ``turns`` has a name that the alternator does not have.
        """
        self._starvation.expect(num_steps, turns, depth=2)

    @property
    def num_steps(self) -> int | None:
        """The planned number of steps of the run, None if unknown."""
        return self._starvation.num_steps

    @property
    def modules(self) -> tuple[str, ...]:
        """The names, in order."""
        return self._modules

    @property
    def rule(self) -> Rule:
        """The switching rule."""
        return self._rule

    @property
    def rule_state(self) -> Any:
        """What the rule remembers: the NamedTuple that its last step returned; read it, nothing more.

        Example:
            >>> Alternator(("encoder", "head")).rule_state
            PlateauState()
        """
        return self._rule_state

    @property
    def nonfinite_limit(self) -> int:
        """The number of non-finite losses in a row of the active module that forces a switch.

        Example:
            >>> Alternator(("encoder", "head")).nonfinite_limit
            10
        """
        return self._nonfinite_limit

    @property
    def step(self) -> int:
        """The number of steps counted so far."""
        return self._facts.step

    @property
    def active(self) -> str:
        """The module that trains next."""
        return self._modules[self._facts.active]

    def observe(self, losses: SupportsFloat | Mapping[str, SupportsFloat], *, updated: bool = True) -> Decision:
        """Record the losses of a step, count the step, and decide which module trains next.

        Example:
            >>> alternator = Alternator(("encoder", "head"))
            >>> alternator.observe(0.7).active
            'encoder'
            >>> alternator.observe({"encoder": 0.6, "head": 0.4}, updated=False).step
            2

        Args:
            losses: The active module's loss, or a mapping with the losses of some or all modules, the active one among
                them. Any scalars that you trust: training losses, losses on held-out data.
            updated: False if the optimizer skipped this update (as a GradScaler does after an overflow).

        Raises:
            UnknownModuleError: There is no module of that name.
            LossError: The active module's loss is missing, or a loss is not a scalar. Nothing has been recorded then.
        """
        if losses.__class__ is float:  # first, as the check for a mapping is slow
            self._record(self._facts.active, losses)
        elif isinstance(losses, Mapping):
            for index, value in self._check_losses(losses):
                self._record(index, value)
        else:
            self._record(self._facts.active, to_float(losses))
        return self.advance(updated=updated)

    def record(self, module: str, value: SupportsFloat, *, step: int | None = None) -> None:
        """Append a loss to a module's ring. This counts no step and decides nothing.

        Example:
            >>> alternator = Alternator(("encoder", "head"))
            >>> alternator.record("encoder", 0.7)
            >>> alternator.advance().explain()
            'step 1: encoder trains on (tenure 1 of 5)'

        Args:
            module: The module that the loss belongs to.
            value: Any scalar.
            step: The step in which it was computed (the first is 1), where that is not the current one. A loss of the
                active module from before its tenure is kept, but does not count as observed in the tenure.

        Raises:
            UnknownModuleError: There is no module of that name.
            LossError: The loss is not a real scalar.
        """
        late = step is not None and step <= self._facts.entered_at
        self._record(self._find(module), to_float(value), late=late)

    def advance(self, *, updated: bool = True) -> Decision:
        """Count one step of the active module and decide, from what has been recorded so far, which one trains next.

        Args:
            updated: False if the optimizer skipped this update: the step then counts as skipped, not as training.
        """
        facts = self._facts
        if facts.updates >= self._starvation.check_at:
            self._starvation.check(facts.updates, facts.trained_at, depth=3)
        active = facts.active
        facts.step += 1
        facts.updated = updated
        if updated:
            facts.tenure += 1
            facts.updates += 1
            facts.trained_at[active] = facts.updates
            self._training_steps[active] += 1
        else:
            self._skipped_steps[active] += 1
        self._rule_state, (switch, reason, value, limit, plateaued, target) = self._rule.step(self._rule_state, facts)
        facts.entered = False
        if reason == Reason.UNMEASURED and self._warns_of_unmeasured:
            self._warns_of_unmeasured = False
            warnings.warn(unmeasured_trial(facts.step), stacklevel=3)
        if self._nonfinite_streaks[active] >= self._nonfinite_limit:
            switch, reason, plateaued = True, Reason.NONFINITE, False  # to the rule's target, if it names one
            value, limit = self._nonfinite_streaks[active], self._nonfinite_limit
        name = self._modules[active]
        if not switch:
            return Decision(facts.step, name, name, False, reason, value, limit, False)
        self._plateaued[active] = plateaued
        self._enter((active + 1) % facts.num_modules if target is None else target)
        self._switch_count += 1
        decision = Decision(facts.step, self.active, name, True, reason, value, limit, all(self._plateaued))
        self._log(decision)
        return decision

    def force(self, module: str) -> Decision:
        """Start a new tenure of a module now, for debugging. This counts no step and is not in ``switch_count``.

        Example:
            >>> Alternator(("encoder", "head")).force("head").explain()
            'step 0: encoder → head (forced)'

        Raises:
            UnknownModuleError: There is no module of that name.
        """
        index = self._find(module)
        previous = self.active
        self._plateaued[self._facts.active] = False
        self._enter(index)
        decision = Decision(self._facts.step, module, previous, module != previous, Reason.FORCED, 0.0, 0.0, False)
        self._log(decision)
        return decision

    def loss_history(self, module: str) -> list[float]:
        """The newest finite losses of a module, oldest first: at most ``rule.ring_size`` of them.

        Raises:
            UnknownModuleError: There is no module of that name.
        """
        return list(self._facts.rings[self._find(module)])

    def stats(self) -> Stats:
        """Counts of everything so far.

        Example:
            >>> alternator = Alternator(("encoder", "head"))
            >>> decision = alternator.observe(0.7)
            >>> alternator.stats().modules["encoder"].training_steps
            1
        """
        total = sum(self._training_steps)
        return Stats(
            total_steps=self._facts.step,
            current_module=self.active,
            steps_since_switch=self._facts.tenure,
            switch_count=self._switch_count,
            modules={
                name: ModuleStats(
                    training_steps=self._training_steps[index],
                    training_ratio=self._training_steps[index] / total if total else 0.0,
                    skipped_steps=self._skipped_steps[index],
                    nonfinite_losses=self._nonfinite_losses[index],
                    staleness=self._facts.idle(index),
                    recent_loss=self._facts.rings[index][-1] if self._facts.rings[index] else None,
                )
                for name, index in self._index.items()
            },
        )

    def get_stats(self) -> dict[str, Any]:
        """The counts as one plain dict; see `Stats.flat` for the keys."""
        return self.stats().flat()

    def fingerprint(self) -> str:
        """A hash of the configuration: equal for alternators that can load each other's state."""
        return fingerprint(self._configuration)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on, as plain JSON values; the counterpart of `load_state_dict`."""
        facts = self._facts
        return dump_state(
            self._configuration,
            {
                "step": facts.step,
                "active": facts.active,
                "tenure": facts.tenure,
                "entered": facts.entered,
                "entered_at": facts.entered_at,
                "observed": facts.observed,
                "updates": facts.updates,
                "trained_at": list(facts.trained_at),
                "rings": [list(ring) for ring in facts.rings],
                "training_steps": list(self._training_steps),
                "skipped_steps": list(self._skipped_steps),
                "nonfinite_losses": list(self._nonfinite_losses),
                "nonfinite_streaks": list(self._nonfinite_streaks),
                "plateaued": list(self._plateaued),
                "switch_count": self._switch_count,
            },
            self._rule_state,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume exactly where `state_dict` was called.

        Example:
            >>> first, second = (Alternator(("encoder", "head")) for _ in range(2))
            >>> decision = first.observe(0.7)
            >>> second.load_state_dict(first.state_dict())
            >>> second.step
            1

        Raises:
            StateError: The state is of another version or configuration (the message says what differs), or it is
                damaged. The alternator is left as it was.
        """
        counts, rule_state = parse_state(state, self._configuration, self._rule)
        self._facts = build_facts(counts, self._rule)
        self._rule_state = rule_state
        self._training_steps = counts["training_steps"]
        self._skipped_steps = counts["skipped_steps"]
        self._nonfinite_losses = counts["nonfinite_losses"]
        self._nonfinite_streaks = counts["nonfinite_streaks"]
        self._plateaued = counts["plateaued"]
        self._switch_count = counts["switch_count"]
        self._starvation.restart()

    def __repr__(self) -> str:
        return f"Alternator({self._modules}, rule={self._rule}, active={self.active!r}, step={self._facts.step})"

    def _record(self, index: int, value: float, *, late: bool = False) -> None:
        facts = self._facts
        of_tenure = index == facts.active and not late
        if isfinite(value):
            facts.rings[index].append(value)
            self._nonfinite_streaks[index] = 0
            if of_tenure:
                facts.observed += 1
        else:
            self._nonfinite_losses[index] += 1
            self._nonfinite_streaks[index] += of_tenure

    def _enter(self, index: int) -> None:
        facts = self._facts
        facts.active = index
        facts.tenure = 0
        facts.observed = 0
        facts.entered = True
        facts.entered_at = facts.step
        self._nonfinite_streaks[index] = 0

    def _find(self, module: str) -> int:
        try:
            return self._index[module]
        except (KeyError, TypeError):
            raise UnknownModuleError(module, self._modules) from None

    def _check_losses(self, losses: Mapping[str, SupportsFloat]) -> list[tuple[int, float]]:
        checked = [
            (self._find(name), value if value.__class__ is float else to_float(value)) for name, value in losses.items()
        ]
        if self.active not in losses:
            raise LossError(f"the loss of the active module {self.active!r} is missing; got only {tuple(losses)}")
        return checked

    def _log(self, decision: Decision) -> None:
        if decision.switched and _LOGGER.isEnabledFor(logging.INFO):
            why = describe(decision.reason, decision.value, decision.limit)
            _LOGGER.info(
                "step %d: %s → %s (%s), %d switches",
                *(decision.step, decision.previous, decision.active, why, self._switch_count),
            )


def _check_modules(modules: Iterable[str]) -> tuple[str, ...]:
    if isinstance(modules, str):
        raise ConfigurationError(f"modules must be two or more names, got the single string {quoted(modules)}")
    names = tuple(modules)
    if any(not isinstance(name, str) or not name for name in names):
        raise ConfigurationError(f"modules must be non-empty strings, got {quoted(names)}")
    if len(names) < 2:
        raise ConfigurationError(f"modules must be two or more names, got {len(names)}: {names}; one never switches")
    if len(set(names)) != len(names):
        raise ConfigurationError(f"modules must have different names, got {names}")
    return names
