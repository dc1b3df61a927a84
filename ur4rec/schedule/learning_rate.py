"""The learning rate: a function of progress through the stage alone, the same in both backends."""

import math

from ur4rec.config import TrainerConfig


def learning_rates(config: TrainerConfig, step: float, num_steps: int | None) -> dict[str, float]:
    """The learning rate of each trained part at a step (0-based) of a stage; see `learning_rate_factor`.

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
    """The factor of the peak learning rate at a step (0-based) of a stage.

    It rises linearly over the warm-up and then falls along a cosine to 0 at ``num_steps``; where the length is not
    given it stays at 1 after ``warmup_steps``. A function of progress through the stage, whichever module is active, so
    that a module's share of the steps does not change its annealing.

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
