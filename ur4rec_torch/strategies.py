"""The strategies: further loss components, and what they keep between steps; see `ur4rec.training.components`.

Shapes: B rows, L positions, N positions with a target, I items, K preference vectors, d width, M entries of
the memory bank.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.schedule.stages import CurriculumWeights
from ur4rec.training import arrays
from ur4rec.training.components import (
    BANK_CURSOR,
    BANK_ITEMS,
    BANK_KEYS,
    COMPONENTS,
    DIVERSITY_RIDGE,
    LOG_VARIANCES,
    UNCERTAINTY,
    loss_name,
    weight_name,
)
from ur4rec.training.parts import BatchPart
from ur4rec_torch.item_shards import ItemShard, look_up
from ur4rec_torch.losses import Component, StepInputs, StepLosses, both_scores, run_rows
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.sampled_loss import corrections
from ur4rec_torch.ur4rec import UR4Rec

_EMPTY = -1


LastTargets: TypeAlias = arrays.LastTargets[Tensor]


def find_last_targets(inputs: StepInputs) -> LastTargets:
    """The last target of each row; nothing waits for the device."""
    num_rows, length = inputs.items_BL.shape
    rows_N = inputs.positions_N // length
    count_B = rows_N.new_zeros(num_rows).index_add_(0, rows_N, torch.ones_like(rows_N))
    index_B = (count_B.cumsum(0) - 1).clamp(min=0)
    return LastTargets(index_B, inputs.targets_N[index_B], count_B > 0)


class MemoryBank:
    """A FIFO of (item, key) pairs: the projected, normalised text of past targets, as it was when they were targets.

    It belongs to the trainer, starts empty, and is neither read nor written while the retriever is frozen.

    Args:
        size: The number of entries it can hold; then the oldest are overwritten.
        dim: Width of a key.
        temperature: Cosines are divided by it.
        device: Where it lives.
    """

    def __init__(self, size: int, dim: int, temperature: float, device: torch.device) -> None:
        self.size = size
        self.temperature = temperature
        # One place more than entries: what is not to be kept is written there, so that all shapes are constant.
        self._items = torch.full((size + 1,), _EMPTY, dtype=torch.int32, device=device)
        self._keys = torch.zeros(size + 1, dim, device=device)
        self._cursor = torch.zeros((), dtype=torch.int32, device=device)

    def loss(self, preferences_NKd: Tensor, keys_Bd: Tensor, last: LastTargets) -> Tensor:
        """InfoNCE: what each row wants next, against its target's key and the bank's of other items; a mean over rows.

        Args:
            preferences_NKd: Preference vectors where a target is.
            keys_Bd: Keys of the last targets now.
            last: Of the batch.
        """
        filled = self._filled()
        items_M, keys_Md = self._items[:filled], self._keys[:filled]
        queries_Bd = F.normalize(preferences_NKd[last.index_B].mean(1), dim=-1)
        positive_B1 = (queries_Bd * keys_Bd).sum(1, keepdim=True)
        negative_BM = (queries_Bd @ keys_Md.T).masked_fill(
            (items_M == last.items_B[:, None]) | (items_M == _EMPTY), -torch.inf
        )
        logits_BM = torch.cat([positive_B1.float(), negative_BM.float()], dim=1) / self.temperature
        loss_B = logits_BM.logsumexp(1) - logits_BM[:, 0]
        return (loss_B * last.is_real_B).sum() / last.is_real_B.sum()

    def write(self, items_B: Tensor, keys_Bd: Tensor, is_kept_B: Tensor) -> None:
        """Append the rows that are to be kept, in their order; of more than it holds, the newest."""
        count_B = is_kept_B.cumsum(0)
        is_kept_B = is_kept_B & (count_B > count_B[-1] - self.size)
        places_B = torch.where(is_kept_B, (self._cursor + count_B - 1) % self.size, self.size)
        self._items.index_copy_(0, places_B, items_B.to(self._items.dtype))
        self._keys.index_copy_(0, places_B, keys_Bd.to(self._keys.dtype))
        self._cursor = ((self._cursor + count_B[-1]) % self.size).to(torch.int32)

    def state_dict(self) -> dict[str, Tensor]:
        """Its content, by its names in a checkpoint."""
        return {BANK_ITEMS: self._items[:-1], BANK_KEYS: self._keys[:-1], BANK_CURSOR: self._cursor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._items[:-1].copy_(state[BANK_ITEMS])
        self._keys[:-1].copy_(state[BANK_KEYS])
        self._cursor.copy_(state[BANK_CURSOR])

    def _filled(self) -> int:
        """Entries to look at: on the CPU those that are filled, elsewhere all, so that nothing waits for the device."""
        return int((self._items[:-1] != _EMPTY).sum()) if self._items.device.type == "cpu" else self.size


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


def consistency_loss(
    preferences_NKd: Tensor, inputs: StepInputs, keys_Id: Tensor, shard: ItemShard | None = None
) -> Tensor:
    """Squared distance of what is wanted from what the history is about, a mean over positions.

    Both are means of unit vectors, normalised: of the preference vectors, and of the history's text vectors up to
    there, which are detached. The keys are those of ``shard``; None is all items.
    """
    keys_Id = keys_Id.detach().float()
    num_items = len(keys_Id) if shard is None else shard.num_items

    def so_far(items_BL: Tensor, _: Tensor | None) -> Tensor:
        (texts_BLd,) = look_up(items_BL.clamp(max=num_items - 1), [keys_Id], shard)
        return texts_BLd.cumsum(1)

    history_Nd = F.normalize(run_rows(inputs, so_far), dim=-1)
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
        gather: Puts together the rows of all processes that divide a batch; None is a whole batch.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: ModelConfig,
        device: torch.device,
        gather: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self._config = config
        self._gather = gather
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
            keys_Id, shard = context.catalogue.keys_Id, context.catalogue.shard
            if weights.consistency:
                loss = consistency_loss(preferences_NKd, inputs, keys_Id, shard)
                added["consistency"] = Component(_by_targets(loss, inputs), weights.consistency)
            if self.bank is not None:
                last = find_last_targets(inputs)
                keys_Bd = keys_Id[last.items_B] if shard is None else shard.look_up(last.items_B, keys_Id)[0]
                if inputs.sample is not None:  # the bank outlives the numbers of a sample
                    last = last._replace(items_B=inputs.sample.items_J[last.items_B])
                self._entries = self._whole(last.items_B, keys_Bd.detach(), last.is_real_B, inputs.part)
                if weights.contrastive:
                    loss = self.bank.loss(preferences_NKd, keys_Bd, last)
                    added["contrastive"] = Component(_by_rows(loss, inputs), weights.contrastive)
            if weights.diversity:
                added["diversity"] = Component(_by_targets(diversity_loss(preferences_NKd), inputs), weights.diversity)
        if self.needs_both(context.is_joint):
            loss = _by_targets(self._distillation(losses, context), inputs)
            added["distillation"] = Component(loss, self._config.kd_weight)
        return added

    def _whole(
        self, items_B: Tensor, keys_Bd: Tensor, is_real_B: Tensor, part: BatchPart | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is written to the bank, of all rows of the batch."""
        if part is None or self._gather is None:
            return items_B, keys_Bd, is_real_B
        is_kept_B = (is_real_B & part.counts).to(torch.uint8)
        items_B, keys_Bd, is_kept_B = (self._gather(each, part.size) for each in (items_B, keys_Bd.float(), is_kept_B))
        return items_B, keys_Bd, is_kept_B.bool()

    def _distillation(self, losses: StepLosses, context: Context) -> Tensor:
        """Each module that trains learns from the other one's scores; a text encoder as the retriever does."""
        assert context.catalogue is not None
        sasrec_NI, retriever_NI = both_scores(context.model, context.inputs, context.catalogue, losses.outputs)
        pairs = {"sasrec": (sasrec_NI, retriever_NI), "retriever": (retriever_NI, sasrec_NI)}
        temperature = self._config.kd_temperature
        if (sample := context.inputs.sample) is not None:  # added to the logits over T, so that it counts once
            shift_NS = temperature * corrections(context.inputs.targets_N, sample)
            pairs = {name: (student + shift_NS, teacher + shift_NS) for name, (student, teacher) in pairs.items()}
        students = dict.fromkeys("sasrec" if module == "sasrec" else "retriever" for module in context.modules)
        return reduce(torch.add, (distillation_loss(*pairs[student], temperature) for student in students))

    def _parts(self) -> list[MemoryBank | UncertaintyWeights]:
        return [part for part in (self.bank, self.uncertainty) if part is not None]


def _by_targets(loss: Tensor, inputs: StepInputs) -> Tensor:
    """A mean over targets, by the share that those of a part of a batch have in the whole one."""
    return loss if inputs.part is None else inputs.part.target_share * loss


def _by_rows(loss: Tensor, inputs: StepInputs) -> Tensor:
    """A mean over rows, likewise."""
    return loss if inputs.part is None else inputs.part.row_share * loss
