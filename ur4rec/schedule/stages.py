"""The four training stages: who trains in each, and what changes with progress through one, the same in both backends.

That is the learning rate, and the curriculum's weights of the retriever's losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.errors import UnknownNameError

MODULES = ("sasrec", "retriever")
"""The modules of every model."""
TEXT_ENCODER = "text_encoder"
"""The third module of a model with a text encoder."""
BOTH, ALL = "both", "all"
TURNS = {
    "sasrec": ("sasrec",),
    "retriever": ("retriever",),
    BOTH: MODULES,
    TEXT_ENCODER: (TEXT_ENCODER,),
    f"sasrec+{TEXT_ENCODER}": ("sasrec", TEXT_ENCODER),
    f"retriever+{TEXT_ENCODER}": ("retriever", TEXT_ENCODER),
    ALL: (*MODULES, TEXT_ENCODER),
}
"""The modules that each turn trains; those of a model are `turns_of` its modules."""
LABELS = dict(zip(TURNS, ("SAS", "RET", "ALL", "TXT", "SAS+TXT", "RET+TXT", "ALL+TXT"), strict=True))
"""The turns in a progress bar."""


def modules_of(config: ModelConfig) -> tuple[str, ...]:
    """The modules of a model.

    Example:
        >>> modules_of(ModelConfig(num_items=9))
        ('sasrec', 'retriever')
    """
    return (*MODULES, TEXT_ENCODER) if config.has_text_encoder else MODULES


def turns_of(modules: Sequence[str]) -> tuple[str, ...]:
    """The turns of modules.

    Example:
        >>> turns_of(MODULES)
        ('sasrec', 'retriever', 'both')
        >>> len(turns_of((*MODULES, TEXT_ENCODER)))
        7
    """
    return tuple(turn for turn, members in TURNS.items() if {*members} <= {*modules})


def joint_turn(modules: Sequence[str]) -> str:
    """The turn that trains all modules.

    Example:
        >>> joint_turn(MODULES), joint_turn((*MODULES, TEXT_ENCODER))
        ('both', 'all')
    """
    return turns_of(modules)[-1]


@dataclass(frozen=True)
class Stage:
    """What trains in a stage."""

    name: str
    """One of the keys of `STAGES`."""
    turn: str | None
    """The turn that trains throughout: a module, or `BOTH` for all modules; see `turn_in`. None where the schedule
    alternates."""

    def turn_in(self, modules: Sequence[str]) -> str | None:
        """The turn that trains throughout in a model of these modules.

        Example:
            >>> STAGES["end_to_end"].turn_in((*MODULES, TEXT_ENCODER)), STAGES["joint_finetune"].turn_in(MODULES)
            ('all', None)
        """
        return joint_turn(modules) if self.turn == BOTH else self.turn


STAGES = {
    "pretrain_sasrec": Stage("pretrain_sasrec", "sasrec"),
    "pretrain_retriever": Stage("pretrain_retriever", "retriever"),
    "joint_finetune": Stage("joint_finetune", None),
    "end_to_end": Stage("end_to_end", BOTH),
}
DECIDING_STAGE = "joint_finetune"
"""The stage in which a schedule decides who trains."""
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


def learning_rates(config: TrainerConfig, stage: str, step: float, num_steps: int | None) -> dict[str, float]:
    """The learning rate of each trained part at a step (0-based) of a stage.

    It rises linearly over the warm-up and then falls along a cosine to 0 at ``num_steps``; with a constant schedule it
    stays at its peak, as it does after ``warmup_steps`` where the length is not given. A function of progress through
    the stage, whichever module is active, so that a module's share of the steps does not change its annealing.

    Example:
        >>> learning_rates(TrainerConfig(warmup_steps=2), "joint_finetune", step=0, num_steps=None)
        {'sasrec': 0.0005, 'retriever': 5e-05, 'text_encoder': 5e-05, 'fusion': 0.005, 'uncertainty': 0.005}
        >>> config = TrainerConfig(sasrec_lr=1.0, warmup=0.25)
        >>> [round(learning_rates(config, "pretrain_sasrec", step, num_steps=8)["sasrec"], 2) for step in range(9)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07, 0.0]
        >>> config = TrainerConfig(sasrec_lr=1.0, lr_schedule="constant", joint_lr_scale=0.3)
        >>> learning_rates(config, "end_to_end", step=7, num_steps=8)["sasrec"]
        0.3
    """
    rise = config.warmup_steps if num_steps is None else round(config.warmup * num_steps)
    if step < rise:
        factor = min((step + 1) / rise, 1.0)
    elif num_steps is None or config.lr_schedule == "constant":
        factor = 1.0
    else:
        progress = min((step - rise) / max(num_steps - rise, 1), 1.0)
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    modules = factor * config.joint_lr_scale if stage in JOINT_STAGES else factor
    return {
        "sasrec": config.sasrec_lr * modules,
        "retriever": config.retriever_lr * modules,
        TEXT_ENCODER: config.text_encoder_lr * modules,
        "fusion": config.fusion_lr * factor,
        "uncertainty": config.uncertainty_lr * factor,
    }


WARMUP = 0.1
"""The first part of a stage, with the retrieval loss alone."""
RAMPS = {"consistency": (0.0, 0.3), "contrastive": (0.3, 0.6), "diversity": (0.6, 1.0)}
"""Where in the rest of the stage each other weight rises from 0 to its full value."""


class CurriculumWeights(NamedTuple):
    """The weight of each of the retriever's losses; by default, as at the end of a stage."""

    retrieval: float = 1.0
    """Weight of the primary loss of the stage."""
    consistency: float = 0.1
    """Weight of the distance between the preference and the texts of the history."""
    contrastive: float = 0.2
    """Weight of the memory bank's loss."""
    diversity: float = 0.05
    """Weight of the similarity of the preference vectors to each other."""


FULL = CurriculumWeights()
RETRIEVAL_ALONE = CurriculumWeights(consistency=0.0, contrastive=0.0, diversity=0.0)
WITHOUT_CURRICULUM = RETRIEVAL_ALONE._replace(contrastive=FULL.contrastive)
"""The weights without a curriculum: the memory bank, if it is on, counts in full."""


def curriculum_weights(step: int, num_steps: int | None, *, warmup_steps: int) -> CurriculumWeights:
    """The weights at a step (0-based) of a stage.

    The first 10% have the retrieval loss alone. Over the rest the others rise linearly one after the other:
    consistency over its first 30%, contrastive over the next 30%, diversity over the last 40%.

    Args:
        step: The step.
        num_steps: Length of the stage; None gives full weights after ``warmup_steps``.
        warmup_steps: Steps with the retrieval loss alone, for a stage whose length is not given.

    Example:
        >>> curriculum_weights(9, 100, warmup_steps=0)
        CurriculumWeights(retrieval=1.0, consistency=0.0, contrastive=0.0, diversity=0.0)
        >>> curriculum_weights(37, 100, warmup_steps=0)
        CurriculumWeights(retrieval=1.0, consistency=0.1, contrastive=0.0, diversity=0.0)
        >>> curriculum_weights(100, 100, warmup_steps=0)
        CurriculumWeights(retrieval=1.0, consistency=0.1, contrastive=0.2, diversity=0.05)
    """
    if num_steps is None:
        return FULL if step >= warmup_steps else RETRIEVAL_ALONE
    warmup = WARMUP * num_steps
    progress = (step - warmup) / (num_steps - warmup)
    risen = {name: min(max((progress - start) / (end - start), 0.0), 1.0) for name, (start, end) in RAMPS.items()}
    return FULL._replace(**{name: getattr(FULL, name) * part for name, part in risen.items()})
