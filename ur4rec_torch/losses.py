"""Losses of SASRec by name, and what a step minimises.

Shapes: B rows, L positions of a row, N positions with a target, d width, I items.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ur4rec.config import TrainerConfig
from ur4rec.stages import MODULES
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.ur4rec import UR4Rec


class StepInputs(NamedTuple):
    """A training batch on the device."""

    items_BL: Tensor
    """Histories, right-padded."""
    positions_N: Tensor
    """Where a target is, counted over all rows: row · L + position."""
    targets_N: Tensor
    """The targets there."""


class StepLosses(NamedTuple):
    """The losses of a step."""

    total: Tensor
    """What is minimised."""
    modules: dict[str, Tensor]
    """The raw primary loss of each module for which it was computed, detached."""


def cross_entropy(hidden_Nd: Tensor, table_Id: Tensor, targets_N: Tensor, rows_NL: Tensor) -> Tensor:
    """Softmax over the whole catalogue: the loss that makes SASRec state of the art."""
    return F.cross_entropy((hidden_Nd @ table_Id.T).float(), targets_N)


def binary_cross_entropy(hidden_Nd: Tensor, table_Id: Tensor, targets_N: Tensor, rows_NL: Tensor) -> Tensor:
    """The target against one uniformly drawn item (Kang & McAuley, section III-E).

    A drawn item that is the target or in the row's history counts for nothing.
    """
    negatives_N = torch.randint(len(table_Id), targets_N.shape, device=targets_N.device)
    positive_N = (hidden_Nd * table_Id[targets_N]).sum(1).float()
    negative_N = (hidden_Nd * table_Id[negatives_N]).sum(1).float()
    is_negative_N = (negatives_N != targets_N) & (negatives_N[:, None] != rows_NL).all(1)
    return (F.softplus(-positive_N) + F.softplus(negative_N) * is_negative_N).mean()


SEQUENCE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
}
"""Each takes the states, the item table, the targets, and the histories that the states come from."""


def separate_loss(
    model: UR4Rec, config: TrainerConfig, inputs: StepInputs, modules: tuple[str, ...], catalogue: Catalogue | None
) -> StepLosses:
    """The weighted sum of the losses of the modules that train; one that is frozen is not run.

    The modules do not touch. Where both train, the fusion weights learn from their detached scores.

    Args:
        model: The model.
        config: Names SASRec's loss and the weights.
        inputs: The batch.
        modules: What trains.
        catalogue: The retriever's, if it trains.
    """
    losses: dict[str, Tensor] = {}
    weights = {"sasrec": config.sasrec_loss_weight, "retriever": config.retriever_loss_weight}
    if "sasrec" in modules:
        hidden_Nd, table_Id = _states(model, inputs), model.sasrec.item_table()
        rows_NL = inputs.items_BL[inputs.positions_N // inputs.items_BL.shape[1]]
        losses["sasrec"] = SEQUENCE_LOSSES[config.sasrec_loss](hidden_Nd, table_Id, inputs.targets_N, rows_NL)
    if "retriever" in modules:
        retriever_NI = _retriever_scores(model, inputs, catalogue)
        losses["retriever"] = F.cross_entropy(retriever_NI, inputs.targets_N)
    total = sum(weights[name] * loss for name, loss in losses.items())
    if len(losses) == 2:
        sasrec_NI = model.sasrec.score(hidden_Nd.detach(), table_Id.detach())
        total = total + F.cross_entropy(model.fusion(sasrec_NI, retriever_NI.detach()), inputs.targets_N)
    return StepLosses(total, {name: loss.detach() for name, loss in losses.items()})


def fused_loss(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue) -> StepLosses:
    """Cross-entropy of the fused scores, which is the primary loss of both modules.

    A module's own cross-entropy would mislead a schedule: it rises while the modules learn to complement each other.
    """
    sasrec_NI = model.sasrec.score(_states(model, inputs), model.sasrec.item_table())
    retriever_NI = _retriever_scores(model, inputs, catalogue)
    total = F.cross_entropy(model.fusion(sasrec_NI, retriever_NI), inputs.targets_N)
    return StepLosses(total, dict.fromkeys(MODULES, total.detach()))


def _states(model: UR4Rec, inputs: StepInputs) -> Tensor:
    """SASRec's states where a target is, (N, d)."""
    return model.sasrec(inputs.items_BL).flatten(0, 1)[inputs.positions_N]


def _retriever_scores(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue) -> Tensor:
    """The retriever's logits where a target is, (N, I)."""
    preferences_NKd = model.retriever(inputs.items_BL, catalogue).flatten(0, 1)[inputs.positions_N]
    return model.retriever.score(preferences_NKd, catalogue)
