"""The strategies: further loss components, and what they keep between steps; see `ur4rec.training.components`.

Shapes: B rows, L positions, N positions with a target, I items, K preference vectors, d width.
"""

from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.schedule.curriculum import CurriculumWeights
from ur4rec.training.components import DIVERSITY_RIDGE, loss_name
from ur4rec_torch.losses import Component, StepInputs, StepLosses, both_scores
from ur4rec_torch.memory_bank import MemoryBank, find_last_targets
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.uncertainty import UncertaintyWeights
from ur4rec_torch.ur4rec import UR4Rec


def consistency_loss(preferences_NKd: Tensor, inputs: StepInputs, keys_Id: Tensor) -> Tensor:
    """Squared distance of what is wanted from what the history is about, a mean over positions.

    Both are means of unit vectors, normalised: of the preference vectors, and of the history's text vectors up to
    there, which are detached.
    """
    keys_Id = keys_Id.detach().float()
    history_BLd = F.embedding(inputs.items_BL.clamp(max=len(keys_Id) - 1), keys_Id).cumsum(1)
    history_Nd = F.normalize(history_BLd.flatten(0, 1)[inputs.positions_N], dim=-1)
    wanted_Nd = F.normalize(preferences_NKd.float().mean(1), dim=-1)
    return (wanted_Nd - history_Nd).square().sum(1).mean()


def diversity_loss(preferences_NKd: Tensor) -> Tensor:
    """−log det(P Pᵀ + 0.1 I) of the preference vectors, a mean over positions: large where they are alike."""
    with torch.autocast(preferences_NKd.device.type, enabled=False):  # a factorisation needs all of float32
        vectors_NKd = preferences_NKd.float()
        ridge_KK = DIVERSITY_RIDGE * torch.eye(vectors_NKd.shape[1], device=vectors_NKd.device)
        factor_NKK: Tensor = torch.linalg.cholesky_ex(vectors_NKd @ vectors_NKd.mT + ridge_KK).L
        return -2 * factor_NKK.diagonal(dim1=1, dim2=2).log().sum(1).mean()


def distillation_loss(student_NI: Tensor, teacher_NI: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) || softmax(student / T)), a mean over positions; the teacher is detached."""
    student_NI = F.log_softmax(student_NI / temperature, dim=1)
    teacher_NI = F.log_softmax(teacher_NI.detach() / temperature, dim=1)
    divergence: Tensor = F.kl_div(student_NI, teacher_NI, log_target=True, reduction="batchmean")
    return temperature**2 * divergence


class Context(NamedTuple):
    """What a step's components are computed from."""

    model: UR4Rec
    """The model."""
    inputs: StepInputs
    """The batch."""
    modules: tuple[str, ...]
    """What trains."""
    catalogue: Catalogue | None
    """The retriever's, where it is needed."""
    is_joint: bool
    """Whether the stage is a joint one."""
    weights: CurriculumWeights
    """The weights of the retriever's components."""


class Strategies:
    """The strategies of a trainer: `apply` adds to the losses of a step, `finish` follows its update.

    With all of them off, losses pass through untouched.

    Args:
        config: Says which are on.
        model: The shape of the model.
        device: Where the bank and the log-variances live.
    """

    def __init__(self, config: TrainerConfig, model: ModelConfig, device: torch.device) -> None:
        self._config = config
        self.bank: MemoryBank | None = None
        self.uncertainty: UncertaintyWeights | None = None
        self._entries: tuple[Tensor, Tensor, Tensor] | None = None
        if config.use_memory_bank:
            self.bank = MemoryBank(
                config.memory_bank_size, model.retriever_output_dim, config.memory_bank_temperature, device
            )
        if config.use_uncertainty_weighting:
            self.uncertainty = UncertaintyWeights(device)

    def needs_both(self, is_joint: bool) -> bool:
        """Whether the step needs a module's scores although it is frozen."""
        return is_joint and self._config.use_knowledge_distillation and self._config.kd_weight > 0

    def apply(self, losses: StepLosses, context: Context) -> StepLosses:
        """Add the components that are on."""
        added = self._components(losses, context)
        components = {**losses.components, **added}
        if self.uncertainty is not None:
            losses = losses._replace(total=self.uncertainty.total(components))
        elif added:
            further = reduce(torch.add, (weight * loss for loss, weight in added.values()))
            losses = losses._replace(total=losses.total + further)
        return losses._replace(components=components)

    def finish(self, losses: StepLosses, learning_rate: float) -> dict[str, Tensor]:
        """After the update: fill the bank, move the log-variances. They stay if the loss is not finite.

        Args:
            losses: What `apply` returned.
            learning_rate: Of the log-variances.

        Returns:
            What the epoch reports beside the total and the primary losses, by name.
        """
        metrics = {
            loss_name(name): loss.detach()
            for name, (loss, _) in losses.components.items()
            if name not in losses.modules
        }
        if not self._parts():
            return metrics
        with torch.no_grad():
            is_finite = torch.isfinite(losses.total)
            if self.bank is not None and self._entries is not None:
                items_B, keys_Bd, is_real_B = self._entries
                self.bank.write(items_B, keys_Bd, is_real_B & is_finite)
            if self.uncertainty is not None:
                metrics |= self.uncertainty.metrics(losses.components)
                self.uncertainty.update(losses.components, is_finite, learning_rate)
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name."""
        return {name: array for part in self._parts() for name, array in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for part in self._parts():
            part.load_state_dict(state)

    def _components(self, losses: StepLosses, context: Context) -> dict[str, Component]:
        """The further components, in their order; one of weight 0 is not computed."""
        self._entries = None
        added: dict[str, Component] = {}
        inputs, weights, preferences_NKd = context.inputs, context.weights, losses.outputs.preferences_NKd
        if "retriever" in context.modules:
            assert preferences_NKd is not None
            assert context.catalogue is not None
            keys_Id = context.catalogue.keys_Id
            if weights.consistency:
                loss = consistency_loss(preferences_NKd, inputs, keys_Id)
                added["consistency"] = Component(loss, weights.consistency)
            if self.bank is not None:
                last = find_last_targets(inputs)
                self._entries = (last.items_B, keys_Id[last.items_B].detach(), last.is_real_B)
                if weights.contrastive:
                    loss = self.bank.loss(preferences_NKd, keys_Id, last)
                    added["contrastive"] = Component(loss, weights.contrastive)
            if weights.diversity:
                added["diversity"] = Component(diversity_loss(preferences_NKd), weights.diversity)
        if self.needs_both(context.is_joint):
            added["distillation"] = Component(self._distillation(losses, context), self._config.kd_weight)
        return added

    def _distillation(self, losses: StepLosses, context: Context) -> Tensor:
        """Each module that trains learns from the other one's scores."""
        assert context.catalogue is not None
        sasrec_NI, retriever_NI = both_scores(context.model, context.inputs, context.catalogue, losses.outputs)
        pairs = {"sasrec": (sasrec_NI, retriever_NI), "retriever": (retriever_NI, sasrec_NI)}
        temperature = self._config.kd_temperature
        return reduce(torch.add, (distillation_loss(*pairs[module], temperature) for module in context.modules))

    def _parts(self) -> list[MemoryBank | UncertaintyWeights]:
        return [part for part in (self.bank, self.uncertainty) if part is not None]
