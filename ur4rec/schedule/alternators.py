"""The alternator of each stage."""

from dataclasses import dataclass
from typing import NamedTuple

from alternator import Alternator, Cycle, Facts, Payoff, Plateau, Rule, Verdict
from ur4rec.config import TrainerConfig
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import BOTH, MODULES, Stage


class ModuleAlternator(Alternator):
    """An `Alternator` over the two modules, with their recent losses as attributes."""

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


def joint_alternator(config: TrainerConfig, rule: Rule | None = None) -> ModuleAlternator:
    """The schedule of joint_finetune: a rule of your own, the original one, or parity.

    `Payoff` chooses among the turns both, sasrec and retriever; a rule with an attribute ``turns`` among those; every
    other rule between the two modules.

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
