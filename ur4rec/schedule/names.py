"""Schedules by name: what `--schedule` accepts, for commands, studies and reports."""

import re
from dataclasses import dataclass

from alternator import Cycle, Payoff, Rule
from alternator.rules.named import RULES, parse_value, rule_from_settings
from ur4rec.config import FUSIONS_WITH_GRADIENTS
from ur4rec.errors import ConfigurationError, UnknownNameError
from ur4rec.schedule.sequence import TurnSequence

AUTO = "auto"
JOINT = "joint"
SEQUENCE = "sequence:"
CHOICES = (AUTO, "adaptive", "parity", JOINT, "A:B", *RULES, "sequence:((TURN, LENGTH), ...)")

STEP_COSTS = (1.0, 0.65, 0.7)
"""The default costs of `payoff`, for a step of both modules, of SASRec and of the retriever: the demo's model on a
CPU. `ur4rec compare` uses costs measured in its study."""

SCHEDULE_HELP = (
    "auto (payoff, or joint where there is nothing to measure payoffs on), adaptive (the original rule with its "
    "defaults), parity (even steps SASRec, odd steps the retriever), "
    "joint (both train in every step), A:B (A steps of SASRec, then B of the retriever), or a rule with its settings: "
    "payoff, or plateau,threshold=0.02, or 'payoff,costs=(1.0, 0.5, 0.8)' ('alternator rules' lists them), or by hand "
    "\"sequence:(('both', 25), ('sasrec', 75))\""
)


@dataclass(frozen=True)
class Schedule:
    """What trains in the joint stage."""

    name: str
    """The string that it was parsed from."""
    rule: Rule | None
    """The rule that switches; None where both modules train in every step."""

    @property
    def measures(self) -> bool:
        """Whether it needs held-out targets to measure on."""
        return isinstance(self.rule, Payoff)


def resolve_schedule(text: str, *, fusion: str, num_targets: int) -> str:
    """What ``auto`` stands for: `payoff`, the recommended rule, or `joint` where payoffs cannot be measured.

    Args:
        text: A schedule; any other than ``auto`` is returned unchanged.
        fusion: How scores are fused: payoffs need likelihoods.
        num_targets: The number of held-out targets available for measuring.

    Example:
        >>> [resolve_schedule("auto", fusion="weighted", num_targets=number) for number in (943, 3)]
        ['payoff', 'joint']
    """
    if text != AUTO:
        return text
    rule = parse_schedule(AUTO).rule
    assert isinstance(rule, Payoff)
    return JOINT if what_payoffs_lack(rule, fusion, num_targets) else "payoff"


def parse_schedule(text: str) -> Schedule:
    """A schedule from its string; see `SCHEDULE_HELP`.

    Raises:
        ConfigurationError: An unknown name, or settings that the rule does not have or refuses.

    Example:
        >>> parse_schedule("3:1").rule
        Cycle(steps=(3, 1))
        >>> parse_schedule("plateau,threshold=0.02,min_steps=3").rule
        Plateau(threshold=0.02, min_steps=3, window=10)
        >>> parse_schedule("joint").rule is None
        True
    """
    if text.startswith(SEQUENCE):
        return Schedule(text, _parse_sequence(text.removeprefix(SEQUENCE)))
    name, *settings = (part.strip() for part in re.split(r",(?=\s*[a-z_]+\s*=)", text))
    ratio = re.fullmatch(r"(\d{1,18}):(\d{1,18})", name)
    if ratio:
        return Schedule(text, Cycle((int(ratio[1]), int(ratio[2]))))
    if name in (JOINT, "parity"):
        if settings:
            raise ConfigurationError(f"schedule {name!r} has no settings, got {', '.join(settings)}; leave them out")
        return Schedule(text, None if name == JOINT else Cycle(1))
    rule_name = {AUTO: "payoff", "adaptive": "plateau"}.get(name, name)
    if rule_name not in RULES:
        raise UnknownNameError("schedule", name, CHOICES)
    if rule_name == "payoff" and not any(setting.startswith("costs") for setting in settings):
        settings = [f"costs={STEP_COSTS}", *settings]
    return Schedule(text, rule_from_settings(rule_name, settings))


def what_payoffs_lack(rule: Payoff, fusion: str, num_targets: int) -> str:
    """What a rule lacks to measure payoffs, in words for a message; empty where nothing is missing.

    Args:
        rule: The rule.
        fusion: How scores are fused: payoffs need likelihoods.
        num_targets: The number of held-out targets available for measuring.

    Example:
        >>> rule = Payoff(costs=(1.0, 0.7, 0.6), groups=16)
        >>> what_payoffs_lack(rule, "weighted", 943)
        ''
        >>> what_payoffs_lack(rule, "weighted", 3)
        'probe=, a batch of at least 16 held-out targets, got 3; give one, or fewer groups'
    """
    if num_targets < rule.groups:
        return (
            f"probe=, a batch of at least {rule.groups} held-out targets, got {num_targets or 'none'}; give one, or "
            "fewer groups"
        )
    if fusion not in FUSIONS_WITH_GRADIENTS:
        return f"a fusion that gives likelihoods, one of {FUSIONS_WITH_GRADIENTS}, got {fusion!r}"
    return ""


def _parse_sequence(text: str) -> TurnSequence:
    value = parse_value(text)
    if not isinstance(value, tuple) or not all(isinstance(each, tuple) and len(each) == 2 for each in value):
        raise ConfigurationError(f"a sequence must read (('both', 20), ('sasrec', 5), ...), got {text!r}")
    return TurnSequence(value)
