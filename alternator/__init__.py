"""Decides, step by step, which module of a model trains next. Standard library only."""

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
from alternator.rules import Cycle, Gain, Patience, Payoff, Plateau, RandomTenure, Trend
from alternator.stats import ModuleStats, Stats

__all__ = [
    "Alternator",
    "AlternatorError",
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
    "UnknownModuleError",
    "UnknownNameError",
    "Verdict",
    "replay",
]
