"""Decides, step by step, which module of a model trains next. Standard library only.

An `Alternator` counts steps, keeps the newest losses of each module and asks a rule; every call returns a `Decision`
that can explain itself:

    >>> from alternator import Alternator, Trend
    >>> alternator = Alternator(("encoder", "head"), rule=Trend())
    >>> alternator.observe({"encoder": 0.71, "head": 0.52}).explain()
    'step 1: encoder trains on (tenure 1 of 20)'

* Rules: `Trend` for new work, `Payoff`, `Trial`, `Gain`, `Patience`, `Plateau` (the original method), `Balance` for
  players, and the controls `Cycle` and `RandomTenure`. A rule of your own is a frozen dataclass with the members of
  `Rule`; it reads `Facts` and returns a `Verdict`, with a code of `Reason` or a string of its own.
* `Payoffs` measures what a `Payoff` rule decides by; `Trials` measures for a `Trial` rule, and undoes what it tried.
* `replay` shows what a rule would have decided on recorded losses.
* All errors are `AlternatorError`, which is a `ValueError`.

The adapters (packages `adapters.torch`, `adapters.lightning`, `adapters.jax`, `adapters.optax` and `adapters.nnx`)
freeze and train what an alternator decides.
"""

from alternator.collisions import warn_of_others
from alternator.decision import Decision
from alternator.errors import (
    AlternatorError,
    ConfigurationError,
    LossError,
    StateError,
    UnknownModuleError,
    UnknownNameError,
)
from alternator.machine import Alternator
from alternator.payoffs import Payoffs
from alternator.reasons import Reason
from alternator.recordings.replay import Replay, Switch, replay
from alternator.rule import Facts, Rule, Verdict
from alternator.rules import Balance, Cycle, Gain, Patience, Payoff, Plateau, RandomTenure, Trend, Trial
from alternator.stats import ModuleStats, Stats
from alternator.trials import Trials

__all__ = [
    "Alternator",
    "AlternatorError",
    "Balance",
    "ConfigurationError",
    "Cycle",
    "Decision",
    "Facts",
    "Gain",
    "LossError",
    "ModuleStats",
    "Patience",
    "Payoff",
    "Payoffs",
    "Plateau",
    "RandomTenure",
    "Reason",
    "Replay",
    "Rule",
    "StateError",
    "Stats",
    "Switch",
    "Trend",
    "Trial",
    "Trials",
    "UnknownModuleError",
    "UnknownNameError",
    "Verdict",
    "replay",
]

warn_of_others()
