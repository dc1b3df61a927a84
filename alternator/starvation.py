"""Starvation: a module that does not train for a large part of the run, or may not, is worth one warning."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from alternator.checks import check_integer, names_in
from alternator.errors import ConfigurationError, UnknownModuleError
from alternator.rule import Rule
from alternator.rules.payoff import Payoff
from alternator.rules.trial import Trial

SHARE = 10
"""A module should train at least once in this fraction of the run: a tenth."""
MIN_RUN = 200
"""Shorter runs are trials: their tenths are shorter than a sensible tenure."""


def longest_sensible_wait(num_steps: int) -> int | None:
    """A tenth of the run, in steps; None for a trial of fewer than `MIN_RUN` steps.

    Example:
        >>> longest_sensible_wait(10_000), longest_sensible_wait(50)
        (1000, None)
    """
    return num_steps // SHARE if num_steps >= MIN_RUN else None


class Starvation:
    """Warns once when a module has not trained for a tenth of the run, and once if the rule's limit allows it.

    What `Payoff` and `Trial` leave out does not pay, and is tried again by itself: there it warns of nothing.

    Args:
        names: The alternator's.
        rule: Its rule, which may have a ``tenure_limit``.

    Example:
        >>> from alternator import Cycle
        >>> starvation = Starvation(("encoder", "head"), Cycle(5))
        >>> starvation.expect(1000)
        >>> starvation.check_at
        0
        >>> starvation.check(60, [60, 20])
        >>> starvation.check_at  # where the head will have waited too long, if it has not trained by then
        121
    """

    def __init__(self, names: tuple[str, ...], rule: Rule) -> None:
        self._names = names
        self._rule = rule
        self._turns: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
        self._has_warned_of_limit = self._has_warned_of_wait = isinstance(rule, Payoff | Trial)
        self.num_steps: int | None = None
        """The planned number of steps of the run, if known."""
        self.check_at: float = inf
        """The number of updated steps from which `check` has something to do."""

    def expect(
        self, num_steps: int | None = None, turns: Mapping[str, str | Iterable[str]] | None = None, *, depth: int = 1
    ) -> None:
        """Says what is planned; see `Alternator.expect`. ``depth`` is that of the user's call, for the warning."""
        if turns is not None:
            self._turns = self._check_turns(turns)
        if num_steps is not None:
            self.num_steps = check_integer("num_steps", num_steps, 1)
            self.restart()
            self._check_limit(self.num_steps, depth + 1)

    def restart(self) -> None:
        """Look again at the next step: the counts are others."""
        can_warn = self.num_steps is not None and longest_sensible_wait(self.num_steps) is not None
        self.check_at = 0 if can_warn and not self._has_warned_of_wait else inf

    def check(self, updates: int, trained_at: Sequence[int], *, depth: int = 1) -> None:
        """Warn if a module has waited too long; else put off the next look until one can have.

        Args:
            updates: The number of updated steps so far.
            trained_at: Per name, the value of ``updates`` when it last trained.
            depth: That of the user's call, for the warning.
        """
        wait = longest_sensible_wait(self.num_steps or 0)
        if wait is None or self._has_warned_of_wait:
            self.check_at = inf
            return
        last: dict[str, int] = {}
        for name, when in zip(self._names, trained_at, strict=True):
            for module in self._turns[name]:
                last[module] = max(last.get(module, 0), when)
        module = min(last, key=last.__getitem__)
        self.check_at = last[module] + wait + 1
        if updates >= self.check_at:
            self._has_warned_of_wait, self.check_at = True, inf
            warnings.warn(
                f"a module should train at least once in a tenth of the run, but {module!r} has not trained for "
                f"{updates - last[module]:,} of {self.num_steps:,} planned steps: {self._remedy(wait)}",
                stacklevel=depth + 1,
            )

    def _check_limit(self, num_steps: int, depth: int) -> None:
        wait, (name, limit) = longest_sensible_wait(num_steps), self._limit()
        if wait is None or limit is None or limit <= wait or self._has_warned_of_limit:
            return
        self._has_warned_of_limit = True
        warnings.warn(
            f"{name} of {type(self._rule).__name__} should be at most a tenth of the run's {num_steps:,} planned "
            f"steps, got {limit:g}, so that a module may starve: {self._remedy(wait)}",
            stacklevel=depth + 1,
        )

    def _remedy(self, wait: int) -> str:
        kind, (name, _) = type(self._rule).__name__, self._limit()
        given = f"give {kind} {name}={wait // max(len(self._names) - 1, 1)} or less" if name else "limit its tenures"
        if kind == "Cycle":
            return given
        return f"{given}{'' if name else ' by another rule, such as Trend'}, or take Cycle, whose tenures are fixed"

    def _limit(self) -> tuple[str, float | None]:
        """The name and the value of the rule's parameter that limits how long others wait, if it has one."""
        limit: tuple[str, float | None] = getattr(self._rule, "tenure_limit", ("", None))
        return limit

    def _check_turns(self, turns: Mapping[str, str | Iterable[str]]) -> dict[str, tuple[str, ...]]:
        for name in turns:
            if name not in self._names:
                raise UnknownModuleError(name, self._names)
        missing = [name for name in self._names if name not in turns]
        if missing:
            raise ConfigurationError(f"turns must have all names of the alternator, but {missing[0]!r} is missing")
        return {name: names_in(turn) for name, turn in turns.items()}
