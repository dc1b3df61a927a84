"""Uncertainty weighting: the weight of each loss component is learned; see `ur4rec.training.components`."""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from ur4rec.training.components import COMPONENTS, LOG_VARIANCES, UNCERTAINTY, loss_name, weight_name
from ur4rec_torch.losses import Component


class UncertaintyWeights:
    """One log-variance per component, each 0 at first. They belong to the trainer and train in every step.

    Args:
        device: Where they live.
    """

    def __init__(self, device: torch.device) -> None:
        self.log_variances = {name: torch.zeros((), device=device) for name in COMPONENTS}

    def total(self, components: Mapping[str, Component]) -> Tensor:
        """What is minimised: the sum of exp(−s) · weight · loss + s / 2."""
        present = {name: self.log_variances[name] for name in components}
        terms = (
            (-present[name]).exp() * weight * loss + present[name] / 2 for name, (loss, weight) in components.items()
        )
        return reduce(torch.add, terms)

    def metrics(self, components: Mapping[str, Component]) -> dict[str, Tensor]:
        """What the epoch reports: the log-variances' own part of the total, and each component's weight."""
        present = {name: self.log_variances[name] for name in components}
        weights = {weight_name(name): (-log_variance).exp() for name, log_variance in present.items()}
        return {loss_name(UNCERTAINTY): reduce(torch.add, present.values()) / 2, **weights}

    def update(self, components: Mapping[str, Component], is_finite: Tensor, learning_rate: float) -> None:
        """Take a step of gradient descent on those of the components present, if the step's loss is finite."""
        for name, (loss, weight) in components.items():
            before = self.log_variances[name]
            gradient = 0.5 - (-before).exp() * weight * loss.detach()
            self.log_variances[name] = torch.where(is_finite, before - learning_rate * gradient, before)

    def state_dict(self) -> dict[str, Tensor]:
        """The log-variances, by their name in a checkpoint."""
        return {LOG_VARIANCES: torch.stack([self.log_variances[name] for name in COMPONENTS])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, log_variance in zip(COMPONENTS, state[LOG_VARIANCES], strict=True):
            self.log_variances[name] = log_variance.to(self.log_variances[name].device)
