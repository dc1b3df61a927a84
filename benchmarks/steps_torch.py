"""The ideal training step in PyTorch: a plain loop that runs what the loss needs and trains what is active.

It knows no trainer, adapter, schedule or log. Each loss is the library's own function of tensors.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import ur4rec_torch
from ur4rec.config import TrainerConfig
from ur4rec.schedule.stages import FULL, WITHOUT_CURRICULUM
from ur4rec_torch.device import to_device
from ur4rec_torch.losses import SEQUENCE_LOSSES, StepInputs
from ur4rec_torch.strategies import MemoryBank, consistency_loss, distillation_loss, diversity_loss, find_last_targets

LEARNING_RATES = {"sasrec": 1e-3, "retriever": 1e-4, "fusion": 1e-2}
"""The trainer's."""


class TorchByHand:
    """A training step of one kind, by hand.

    Args:
        setting: Model and data, as `overhead_jax.Setting` has them.
        case: Which kind of step.
    """

    def __init__(self, setting: Any, case: Any) -> None:
        self.model = ur4rec_torch.UR4Rec(setting.split.num_items, setting.texts_IT, **setting.model)
        self._case = case
        self._config = TrainerConfig(**case.settings)
        self._weights = FULL if self._config.use_curriculum_learning else WITHOUT_CURRICULUM
        parts = [*case.modules, *(["fusion"] if case.is_fused or len(case.modules) == 2 else [])]
        for name, part in self.model.named_children():
            part.requires_grad_(name in parts).train(name in parts)
        self._parameters = [each for name in parts for each in getattr(self.model, name).parameters()]
        self._optimizers = [self._optimizer(name) for name in parts]
        with torch.no_grad():
            self._catalogue = self.model.retriever.catalogue()
        self._bank: MemoryBank | None = None
        self._entries: tuple[Tensor, Tensor, Tensor] | None = None
        if self._config.use_memory_bank:
            width = self.model.config.retriever_output_dim
            self._bank = MemoryBank(self._config.memory_bank_size, width, 0.07, torch.device("cpu"))
        self._log_variances: dict[str, Tensor] = {}

    def step(self, batch: Any) -> float:
        """One step; its loss."""
        inputs = to_device(batch, self.model.config.num_items, torch.device("cpu"))
        components = self._components(inputs)
        total = self._total(components)
        total.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._descend(components)
        if self._entries is not None:
            self._bank.write(*self._entries)
        return total.item()

    def _components(self, inputs: StepInputs) -> dict[str, tuple[Tensor, float]]:
        """The losses with their weights."""
        case, model, config = self._case, self.model, self._config
        distils = case.is_joint and config.use_knowledge_distillation
        trains_sasrec, trains_retriever = ("sasrec" in case.modules), ("retriever" in case.modules)
        needs_both = case.is_fused or distils
        found: dict[str, tuple[Tensor, float]] = {}
        if trains_sasrec or needs_both:
            with torch.set_grad_enabled(trains_sasrec):
                hidden_Nd = model.sasrec(inputs.items_BL).flatten(0, 1)[inputs.positions_N]
                sasrec_NI = None
                if needs_both or len(case.modules) == 2 or config.sasrec_loss == "ce":
                    sasrec_NI = hidden_Nd @ model.sasrec.item_table().T
        if trains_retriever or needs_both:
            with torch.set_grad_enabled(trains_retriever):
                catalogue = model.retriever.catalogue() if trains_retriever else self._catalogue
                preferences_NKd = model.retriever(inputs.items_BL, catalogue).flatten(0, 1)[inputs.positions_N]
                retriever_NI = model.retriever.score(preferences_NKd, catalogue.keys_Id)
        if case.is_fused:
            found["fused"] = cross_entropy(model.fusion(sasrec_NI, retriever_NI), inputs.targets_N), 1.0
        else:
            if trains_sasrec and config.sasrec_loss == "ce":
                found["sasrec"] = cross_entropy(sasrec_NI, inputs.targets_N), 1.0
            elif trains_sasrec:
                rows_NL = inputs.items_BL[inputs.positions_N // inputs.items_BL.shape[1]]
                table_Id = model.sasrec.item_table()
                loss = SEQUENCE_LOSSES[config.sasrec_loss](hidden_Nd, table_Id, inputs.targets_N, rows_NL, config)
                found["sasrec"] = loss, 1.0
            if trains_retriever:
                found["retriever"] = cross_entropy(retriever_NI, inputs.targets_N), 1.0
            if len(case.modules) == 2:
                scores_NI = model.fusion(sasrec_NI.detach(), retriever_NI.detach())
                found["fused"] = cross_entropy(scores_NI, inputs.targets_N), 1.0
        if trains_retriever:
            found |= self._retriever_components(inputs, preferences_NKd, catalogue.keys_Id)
        if distils:
            temperature = config.kd_temperature
            pairs = {"sasrec": (sasrec_NI, retriever_NI), "retriever": (retriever_NI, sasrec_NI)}
            losses = [distillation_loss(*pairs[name], temperature) for name in case.modules]
            found["distillation"] = sum(losses), config.kd_weight
        return found

    def _retriever_components(
        self, inputs: StepInputs, preferences_NKd: Tensor, keys_Id: Tensor
    ) -> dict[str, tuple[Tensor, float]]:
        """Those of the curriculum and of the memory bank, and what it is to be given after the step."""
        found = {}
        if self._weights.consistency:
            found["consistency"] = consistency_loss(preferences_NKd, inputs, keys_Id), self._weights.consistency
        if self._bank is not None:
            last = find_last_targets(inputs)
            keys_Bd = keys_Id[last.items_B]
            found["contrastive"] = self._bank.loss(preferences_NKd, keys_Bd, last), self._weights.contrastive
            self._entries = last.items_B, keys_Bd.detach(), last.is_real_B
        if self._weights.diversity:
            found["diversity"] = diversity_loss(preferences_NKd), self._weights.diversity
        return found

    def _total(self, components: dict[str, tuple[Tensor, float]]) -> Tensor:
        if not self._config.use_uncertainty_weighting:
            return sum(weight * loss for loss, weight in components.values())
        for name in components:
            self._log_variances.setdefault(name, torch.zeros(()))
        return sum(
            (-self._log_variances[name]).exp() * weight * loss + self._log_variances[name] / 2
            for name, (loss, weight) in components.items()
        )

    def _descend(self, components: dict[str, tuple[Tensor, float]]) -> None:
        """A step of the log-variances, if there are any."""
        for name, before in self._log_variances.items():
            loss, weight = components[name]
            gradient = 0.5 - (-before).exp() * weight * loss.detach()
            self._log_variances[name] = before - self._config.uncertainty_lr * gradient

    def _optimizer(self, name: str) -> torch.optim.AdamW:
        parameters = getattr(self.model, name).parameters()
        decay = 0.0 if name == "fusion" else 0.01
        return torch.optim.AdamW(parameters, lr=LEARNING_RATES[name], weight_decay=decay, fused=True)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, with the products that it does not know: those that are added in place."""
    in_place: Any = {torch.ops.aten.addmm_: lambda total, left, right, **_: 2 * left[0] * left[1] * right[1]}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def count_torch(stepper: Any, batch: Any) -> float:
    """Floating-point operations of the matrix products of a step of a trainer, or of a step by hand."""
    with flop_counter() as counter:
        (stepper.step if isinstance(stepper, TorchByHand) else stepper.train_step)(batch)
    return float(counter.get_total_flops())
