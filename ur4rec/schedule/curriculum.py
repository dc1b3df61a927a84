"""Curriculum weights of the retriever's losses: functions of progress through the stage, the same in both backends."""

from typing import NamedTuple

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
