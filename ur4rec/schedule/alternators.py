"""Schedules by name, as `--schedule` accepts them, and the alternator of each stage."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from alternator import Alternator, Cycle, Facts, Payoff, Plateau, Reason, Rule, Trial, Verdict
from alternator.checks import cut, set_fields, to_integer
from alternator.errors import quoted
from alternator.rules.named import RULES, parse_value, rule_from_settings
from ur4rec.config import FUSIONS_WITH_GRADIENTS, TrainerConfig
from ur4rec.errors import ConfigurationError, UnknownNameError
from ur4rec.schedule.stages import ALL, BOTH, MODULES, TEXT_ENCODER, TURNS, Stage, turns_of


class TurnSequenceState(NamedTuple):
    """The index of the current tenure."""

    current: int


@dataclass(frozen=True)
class TurnSequence:
    """Tenures in a given order, from the start again after the last: to replay a schedule, or to shuffle one.

    Raises:
        ConfigurationError: There is no tenure, an unknown turn, or a length below 1.

    Example:
        >>> rule = TurnSequence((("both", 3), ("sasrec", 2), ("both", 1)))
        >>> rule.turns, rule.tenures
        (('both', 'sasrec', 'retriever'), (('both', 3), ('sasrec', 2), ('both', 1)))
    """

    tenures: tuple[tuple[str, int], ...]
    """Turn and length in updated steps of each tenure."""

    def __post_init__(self) -> None:
        if not self.tenures:
            raise ConfigurationError("tenures must be one or more pairs of turn and length, got none")
        tenures = tuple((turn, to_integer(length)) for turn, length in self.tenures)
        for (turn, number), given in zip(tenures, self.tenures, strict=True):
            known = isinstance(turn, str) and turn in TURNS
            if not known or number is None or number < 1:
                raise ConfigurationError(
                    f"tenures must be pairs of a turn {tuple(TURNS)} and a length of at least 1, got {quoted(given)}"
                )
        set_fields(self, tenures=tenures)

    @cached_property
    def turns(self) -> tuple[str, ...]:
        """The turns that it alternates between, the first to train first."""
        return tuple(dict.fromkeys((*(turn for turn, _ in self.tenures), *MODULES)))

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> TurnSequenceState:
        """At the first tenure. The alternator may have further turns after its own, which never train.

        Raises:
            ConfigurationError: The alternator has other turns.
        """
        if num_modules < len(self.turns):
            raise ConfigurationError(f"a TurnSequence needs an alternator over {self.turns}, got {num_modules} modules")
        return TurnSequenceState(0)

    def is_possible(self, state: TurnSequenceState, facts: Facts) -> bool:
        """Whether a saved state can be one of this rule."""
        return 0 <= state.current < len(self.tenures)

    def step(self, state: TurnSequenceState, facts: Facts) -> tuple[TurnSequenceState, Verdict]:
        """Hold to the end of the tenure, then start the next, which may be of the same turn."""
        length = self.tenures[state.current][1]
        if facts.tenure < length:
            return state, Verdict(False, Reason.MIN_STEPS, facts.tenure, length)
        following = (state.current + 1) % len(self.tenures)
        target = self.turns.index(self.tenures[following][0])
        return TurnSequenceState(following), Verdict(True, Reason.SCHEDULED, facts.tenure, length, target=target)


def shuffled(tenures: Sequence[tuple[str, int]], draws: Sequence[float]) -> tuple[tuple[str, int], ...]:
    """The same tenures in another order: the first stays, the others change places with those of their parity.

    So two modules still take turns, and a schedule that returns to joint training after each exception still does.

    Args:
        tenures: Turn and length of each.
        draws: A random number for each.

    Example:
        >>> shuffled([("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5)], [0.1, 0.9, 0.8, 0.3, 0.2])
        (('a', 1), ('b', 4), ('a', 5), ('b', 2), ('a', 3))
    """
    order = list(range(len(tenures)))
    for first in (1, 2):
        order[first::2] = sorted(order[first::2], key=lambda place: draws[place])
    return tuple((turn, length) for turn, length in (tenures[place] for place in order))


AUTO = "auto"
JOINT = "joint"
SEQUENCE = "sequence:"
CHOICES = (AUTO, "adaptive", "parity", JOINT, *MODULES, "A:B", *RULES, "sequence:((TURN, LENGTH), ...)")

RARE = 7
"""Steps without the text encoder for each one with it, under ``auto`` where nothing can be measured."""
STEP_COSTS = (1.0, 0.65, 0.7)
"""The default costs of `payoff` and `trial`, for a step of both modules, of SASRec and of the retriever: the demo's
model on a CPU. `ur4rec compare` uses costs measured in its study."""
_ENCODER_COST = 3.2
"""What training the text encoder adds to a step, in the same unit: two layers of width 64 on MovieLens-100K."""
_SHARE = 8
"""Steps of one module for one of the other in the candidates of `trial`."""
TRIAL_SETTINGS = {"steps": 10, "start": 60, "hold": 240, "halvings": 9}
"""The defaults of `trial`: a stage of some hundred steps can pay for its first trial, which takes 30 to 70 of them."""

SCHEDULE_HELP = (
    "auto (payoff, or joint where there is nothing to measure payoffs on; with a text encoder trial, with costs "
    "measured when the run begins), adaptive (the original rule with its "
    "defaults), parity (even steps SASRec, odd steps the retriever), "
    "joint (all train in every step), sasrec or retriever (that one alone, the other stays as it is), "
    "A:B (A steps of SASRec, then B of the retriever; with a text encoder three numbers, as in 7:7:1), "
    "or a rule with its settings: payoff, trial, or plateau,threshold=0.02, or 'payoff,costs=(1.0, 0.5, 0.8)' "
    "('alternator rules' lists them), or by hand "
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
        return isinstance(self.rule, Payoff | Trial)


def resolve_schedule(text: str, *, fusion: str, num_targets: int, refresh: float | None = None) -> str:
    """What ``auto`` stands for: `payoff`, the recommended rule, or `joint` where payoffs cannot be measured.

    With a text encoder it is `trial`: a step that trains the encoder costs several times one that does not, and
    whether that pays is known to nobody before; `Payoff` knows of two modules alone. Where nothing can be measured it
    is a fixed share, seven steps without the encoder and then one with it; where encoding all texts again costs more
    than the step before it, tenures are as many times longer.

    Args:
        text: A schedule; any other than ``auto`` is returned unchanged.
        fusion: How scores are fused: payoffs need one without whole rankings.
        num_targets: The number of held-out targets available for measuring.
        refresh: With a text encoder, how many times the texts of a step all texts are; None is a model without one.

    Example:
        >>> [resolve_schedule("auto", fusion="weighted", num_targets=number) for number in (943, 3)]
        ['payoff', 'joint']
        >>> resolve_schedule("auto", fusion="weighted", num_targets=943, refresh=3.2)
        'trial'
        >>> resolve_schedule("auto", fusion="rank", num_targets=943, refresh=3.2)
        "sequence:(('both', 28), ('all', 4))"
    """
    if text != AUTO:
        return text
    name = "payoff" if refresh is None else "trial"
    rule = parse_schedule(name).rule
    assert isinstance(rule, Payoff | Trial)
    if not what_payoffs_lack(rule, fusion, num_targets):
        return name
    length = max(math.ceil(refresh or 1), 1)
    return JOINT if refresh is None else f"{SEQUENCE}{((BOTH, RARE * length), (ALL, length))}"


def parse_schedule(text: str) -> Schedule:
    """A schedule from its string; see `SCHEDULE_HELP`.

    Raises:
        ConfigurationError: An unknown name, or settings that the rule does not have or refuses.

    Example:
        >>> parse_schedule("3:1").rule
        Cycle(steps=(3, 1))
        >>> parse_schedule("plateau,threshold=0.02,min_steps=3").rule
        Plateau(threshold=0.02, min_steps=3, window=10)
        >>> parse_schedule("joint").rule is None, parse_schedule("retriever").rule
        (True, TurnSequence(tenures=(('retriever', 1),)))
    """
    if text.startswith(SEQUENCE):
        return Schedule(text, _parse_sequence(text.removeprefix(SEQUENCE)))
    if text in TURNS:
        return Schedule(text, TurnSequence(((text, 1),)))
    name, *settings = (part.strip() for part in re.split(r",(?=\s*[a-z_]+\s*=)", text))
    if re.fullmatch(r"\d{1,18}(:\d{1,18}){1,2}", name):
        return Schedule(text, Cycle(tuple(map(int, name.split(":")))))
    if name in (JOINT, "parity"):
        if settings:
            raise ConfigurationError(f"schedule {name!r} has no settings, got {', '.join(settings)}; leave them out")
        return Schedule(text, None if name == JOINT else Cycle(1))
    rule_name = {AUTO: "payoff", "adaptive": "plateau"}.get(name, name)
    if rule_name not in RULES:
        raise UnknownNameError("schedule", cut(name), CHOICES)
    if rule_name == "payoff" and not any(setting.startswith("costs") for setting in settings):
        settings = [f"costs={STEP_COSTS}", *settings]
    if rule_name == "trial":
        given = {setting.partition("=")[0].strip() for setting in settings}
        settings += [f"{name}={value}" for name, value in TRIAL_SETTINGS.items() if name not in given]
    return Schedule(text, rule_from_settings(rule_name, settings))


def complete_trial(rule: Trial, modules: Sequence[str]) -> Trial:
    """A `Trial` with candidates and costs for these modules, where it has none of its own.

    Each candidate costs steps, so there are three: both modules together, and each of them in eight steps of nine. In
    trials as short as a run of some hundred steps can pay for, a module alone cannot be distinguished from one with
    an eighth of the other, and the latter starves nobody. With a text encoder, whose steps are costly: both modules
    beside it, it too in every eighth step, and all together.

    Args:
        rule: The rule.
        modules: The modules of the model.

    Example:
        >>> rule = complete_trial(Trial(), MODULES)
        >>> rule.candidates, rule.costs
        (((0,), (1, 1, 1, 1, 1, 1, 1, 1, 2), (1, 2, 2, 2, 2, 2, 2, 2, 2)), (1.0, 0.65, 0.7))
    """
    turns = trial_turns(modules)
    candidates, costs = rule.candidates, rule.costs
    if candidates is None:
        named = _CANDIDATES[len(modules) > len(MODULES)]
        candidates = tuple(tuple(turns.index(turn) for turn in sequence) for sequence in named)
    if costs is None:
        costs = trial_costs(modules)
    return replace(rule, candidates=candidates, costs=costs)


def trial_turns(modules: Sequence[str]) -> tuple[str, ...]:
    """The turns that a `Trial` chooses among; it begins with the first, which leaves a text encoder as it is.

    Example:
        >>> trial_turns(MODULES), len(trial_turns((*MODULES, TEXT_ENCODER)))
        (('both', 'sasrec', 'retriever'), 7)
    """
    return (BOTH, *(turn for turn in turns_of(modules) if turn != BOTH))


_CANDIDATES: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((BOTH,), ("sasrec",) * _SHARE + ("retriever",), ("sasrec",) + ("retriever",) * _SHARE),
    ((BOTH,), (BOTH,) * (_SHARE - 1) + (ALL,), (ALL,)),
)
"""Of a model of two modules, and of one with a text encoder."""


def trial_costs(modules: Sequence[str], encoder: float = _ENCODER_COST) -> tuple[float, ...]:
    """Costs of the turns that a `Trial` chooses among, in steps of both modules.

    Args:
        modules: The modules of the model.
        encoder: What training the text encoder adds to a step.

    Example:
        >>> trial_costs(MODULES), trial_costs((*MODULES, TEXT_ENCODER), encoder=2.0)[-1]
        ((1.0, 0.65, 0.7), 3.0)
    """

    def cost(turn: str) -> float:
        trained = [module for module in MODULES if module in TURNS[turn]]
        plain = STEP_COSTS[0] if len(trained) > 1 else sum(STEP_COSTS[1 + MODULES.index(module)] for module in trained)
        return plain + encoder * (TEXT_ENCODER in TURNS[turn])

    return tuple(map(cost, trial_turns(modules)))


def what_payoffs_lack(rule: Payoff | Trial, fusion: str, num_targets: int) -> str:
    """What a rule lacks to measure payoffs, in words for a message; empty where nothing is missing.

    Args:
        rule: The rule.
        fusion: How scores are fused: payoffs need one without whole rankings.
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
        return f"a fusion that needs no whole ranking, one of {FUSIONS_WITH_GRADIENTS}, got {fusion!r}"
    return ""


def _parse_sequence(text: str) -> TurnSequence:
    value = parse_value(text)
    if not isinstance(value, tuple) or not all(isinstance(each, tuple) and len(each) == 2 for each in value):
        raise ConfigurationError(f"a sequence must read (('both', 20), ('sasrec', 5), ...), got {cut(text)!r}")
    return TurnSequence(value)


class ModuleAlternator(Alternator):
    """An `Alternator` over modules, with their recent losses as attributes."""

    @property
    def sasrec_loss_history(self) -> list[float]:
        """SASRec's newest finite losses, oldest first: at most as many as the rule needs."""
        return self.loss_history("sasrec")

    @property
    def retriever_loss_history(self) -> list[float]:
        """The retriever's newest finite losses, oldest first: at most as many as the rule needs."""
        return self.loss_history("retriever")


class HoldState(NamedTuple):
    """Hold has no state."""


@dataclass(frozen=True)
class Hold:
    """The schedule of a stage without switching: the turn that the stage names trains throughout."""

    @property
    def ring_size(self) -> int:
        """No losses are needed."""
        return 0

    def init(self, num_modules: int) -> HoldState:
        """The empty state."""
        return HoldState()

    def step(self, state: HoldState, facts: Facts) -> tuple[HoldState, Verdict]:
        """Never switch."""
        return state, Verdict(False, "stage", facts.tenure, facts.tenure)


def build_alternator(
    stage: Stage, config: TrainerConfig, rule: Rule | None = None, modules: Sequence[str] = MODULES
) -> Alternator:
    """The schedule of a stage: it holds the stage's turn, or alternates by a rule given, the original one or parity.

    `Payoff` chooses among the turns both, sasrec and retriever, so it needs a model of these two modules; `Trial` among
    sequences of all turns, see `complete_trial`; a rule with an attribute ``turns`` among those; every other rule among
    the modules. A module that trains in none of them is a turn of its own, which the rule never chooses.

    Example:
        >>> from ur4rec.schedule.stages import find_stage
        >>> joint = find_stage("joint_finetune")
        >>> build_alternator(joint, TrainerConfig(use_adaptive_alternating=False)).rule
        Cycle(steps=1)
        >>> build_alternator(joint, TrainerConfig(adaptive_switch_threshold=0.02)).rule
        Plateau(threshold=0.02, min_steps=5, window=10)

    Raises:
        ConfigurationError: A rule is given although use_adaptive_alternating is False, or does not fit the modules.
    """
    turn = stage.turn_in(modules)
    if turn is not None:
        alternator = Alternator(turns_of(modules), Hold())
        alternator.force(turn)
        return alternator
    if not config.use_adaptive_alternating:
        if rule is not None:
            raise ConfigurationError(
                f"rule must be left out when use_adaptive_alternating is False (parity runs then), got {rule!r}"
            )
        rule = Cycle(1)
    elif rule is None:
        rule = Plateau(threshold=config.adaptive_switch_threshold, min_steps=config.adaptive_min_steps)
    if isinstance(rule, Trial):
        return ModuleAlternator(trial_turns(modules), complete_trial(rule, modules))
    if isinstance(rule, Payoff) and len(modules) > len(MODULES):
        raise ConfigurationError(
            f"a Payoff rule needs a model of the modules {MODULES}, got {tuple(modules)}; take a Trial, a fixed "
            "share such as 7:7:1 or \"sequence:(('both', 7), ('all', 1))\", or joint"
        )
    turns = (BOTH, *MODULES) if isinstance(rule, Payoff) else tuple(getattr(rule, "turns", modules))
    if unknown := [turn for turn in turns if turn not in turns_of(modules)]:
        raise ConfigurationError(
            f"turns must be those of the model's modules, {turns_of(modules)}, got {unknown[0]!r}; give the model a "
            "text encoder (--set text_encoder=transformer), or leave that turn out"
        )
    trained = {module for turn in turns for module in TURNS[turn]}
    return ModuleAlternator((*turns, *(module for module in modules if module not in trained)), rule)
