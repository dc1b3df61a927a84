"""The four training stages and the learning rate: functions of the step alone, the same in both backends."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from alternator import Alternator, Cycle, Facts, Payoff, Plateau, Rule, Verdict
from ur4rec.config import TrainerConfig, check_count
from ur4rec.errors import ConfigurationError, UnknownNameError

MODULES = ("sasrec", "retriever")
BOTH = "both"
TURNS = {"sasrec": ("sasrec",), "retriever": ("retriever",), BOTH: MODULES}
LABELS = {"sasrec": "SAS", "retriever": "RET", BOTH: "ALL"}


@dataclass(frozen=True)
class Stage:
    """What trains in a stage."""

    name: str
    """One of the keys of `STAGES`."""
    turn: str | None
    """The turn that trains throughout: a module, or both. None where the schedule alternates."""


STAGES = {
    "pretrain_sasrec": Stage("pretrain_sasrec", "sasrec"),
    "pretrain_retriever": Stage("pretrain_retriever", "retriever"),
    "joint_finetune": Stage("joint_finetune", None),
    "end_to_end": Stage("end_to_end", BOTH),
}
JOINT_STAGES = tuple(name for name, stage in STAGES.items() if stage.turn not in MODULES)


def find_stage(name: str) -> Stage:
    """The stage of a name.

    Raises:
        UnknownNameError: There is no such stage; the message lists the four.

    Example:
        >>> find_stage("end_to_end").turn
        'both'
    """
    if name not in STAGES:
        raise UnknownNameError("stage", name, STAGES)
    return STAGES[name]


class ModuleAlternator(Alternator):
    """An `Alternator` over the two modules, with their recent losses at hand as attributes."""

    @property
    def sasrec_loss_history(self) -> list[float]:
        """SASRec's newest finite losses, oldest first: as many as the rule needs."""
        return self.loss_history("sasrec")

    @property
    def retriever_loss_history(self) -> list[float]:
        """The retriever's newest finite losses, oldest first: as many as the rule needs."""
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


def joint_alternator(config: TrainerConfig, rule: Rule | None = None) -> ModuleAlternator:
    """The schedule of joint_finetune: a rule of your own, the original one, or parity.

    `Payoff` chooses among the turns both, sasrec, retriever; a rule with an attribute ``turns`` among those; every
    other one among the two modules.

    Example:
        >>> joint_alternator(TrainerConfig(use_adaptive_alternating=False)).rule
        Cycle(steps=1)
        >>> joint_alternator(TrainerConfig(adaptive_switch_threshold=0.02)).rule
        Plateau(threshold=0.02, min_steps=5, window=10)

    Raises:
        ConfigurationError: A rule is given although use_adaptive_alternating is False.
    """
    if not config.use_adaptive_alternating:
        if rule is not None:
            raise ConfigurationError(
                f"rule must be left out when use_adaptive_alternating is False (parity runs then), got {rule!r}"
            )
        rule = Cycle(1)
    elif rule is None:
        rule = Plateau(threshold=config.adaptive_switch_threshold, min_steps=config.adaptive_min_steps)
    turns = (BOTH, *MODULES) if isinstance(rule, Payoff) else getattr(rule, "turns", MODULES)
    return ModuleAlternator(turns, rule)


def stage_alternator(stage: Stage) -> Alternator:
    """The schedule of a stage without switching: it holds the stage's turn."""
    assert stage.turn is not None
    alternator = Alternator((*MODULES, BOTH), Hold())
    alternator.force(stage.turn)
    return alternator


def build_alternator(stage: Stage, config: TrainerConfig, rule: Rule | None = None) -> Alternator:
    """The schedule of a stage: `joint_alternator` where it alternates, else `stage_alternator`."""
    return joint_alternator(config, rule) if stage.turn is None else stage_alternator(stage)


def learning_rates(config: TrainerConfig, step: float, num_steps: int | None) -> dict[str, float]:
    """The learning rate of each part of what trains at a step (0-based) of a stage; see `learning_rate_factor`.

    Example:
        >>> learning_rates(TrainerConfig(warmup_steps=2), step=0, num_steps=None)
        {'sasrec': 0.0005, 'retriever': 5e-05, 'fusion': 0.005, 'uncertainty': 0.005}
    """
    factor = learning_rate_factor(step, num_steps=num_steps, warmup=config.warmup, warmup_steps=config.warmup_steps)
    peaks = {
        "sasrec": config.sasrec_lr,
        "retriever": config.retriever_lr,
        "fusion": config.fusion_lr,
        "uncertainty": config.uncertainty_lr,
    }
    return {name: peak * factor for name, peak in peaks.items()}


def learning_rate_factor(step: float, *, num_steps: int | None, warmup: float, warmup_steps: int) -> float:
    """What the peak learning rate is multiplied with at a step (0-based) of a stage.

    It rises linearly over the warm-up and then falls along a cosine to 0 at ``num_steps``; where the length is not
    given it stays at 1 after ``warmup_steps``. A function of progress through the stage, whoever is active, so that a
    module's share of the steps does not change its annealing.

    Example:
        >>> [round(learning_rate_factor(s, num_steps=8, warmup=0.25, warmup_steps=0), 2) for s in range(9)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07, 0.0]
        >>> learning_rate_factor(10**6, num_steps=None, warmup=0.25, warmup_steps=100)
        1.0
    """
    rise = warmup_steps if num_steps is None else round(warmup * num_steps)
    if step < rise:
        return min((step + 1) / rise, 1.0)
    if num_steps is None:
        return 1.0
    progress = min((step - rise) / max(num_steps - rise, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def check_num_steps(num_steps: int | None) -> None:
    """Refuse a stage length that is no positive integer."""
    if num_steps is not None:
        check_count("num_steps", num_steps, 1)
