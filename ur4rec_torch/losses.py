"""Losses of SASRec by name, and what a step minimises.

Shapes: B rows, L positions of a row, N positions with a target, d width, K preference vectors, I items, M drawn items.
"""

from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ur4rec.config import FUSIONS_WITH_GRADIENTS, TRAINING, TrainerConfig
from ur4rec.schedule.stages import TEXT_ENCODER, modules_of
from ur4rec.training import arrays
from ur4rec.training.parts import BatchPart
from ur4rec_torch.catalogue_loss import catalogue_cross_entropy, catalogue_log_probabilities
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.sampled_loss import retriever_scores, sampled_cross_entropy, sasrec_scores
from ur4rec_torch.ur4rec import LogitFusion, Outputs, UR4Rec, WeightedFusion

StepInputs: TypeAlias = arrays.StepInputs[Tensor]
RowGroup: TypeAlias = arrays.RowGroup[Tensor]
Component: TypeAlias = arrays.Component[Tensor]
StepLosses: TypeAlias = arrays.StepLosses[Tensor]


def cross_entropy(
    hidden_Nd: Tensor,
    table_Id: Tensor,
    targets_N: Tensor,
    rows_NL: Tensor,
    config: TrainerConfig,
    part: BatchPart | None = None,
) -> Tensor:
    """Softmax over the whole catalogue: the loss that makes SASRec state of the art."""
    return catalogue_cross_entropy(targets_N, sasrec=(hidden_Nd, table_Id), smoothing=config.label_smoothing)


def sampled_softmax(
    hidden_Nd: Tensor,
    table_Id: Tensor,
    targets_N: Tensor,
    rows_NL: Tensor,
    config: TrainerConfig,
    part: BatchPart | None = None,
) -> Tensor:
    """Softmax over the target and uniformly drawn items, which the whole batch shares.

    All items are equally likely to be drawn, so the usual correction of the logits is a constant and left out.
    """
    positive_N, negative_NM, is_negative_NM = _against_drawn(hidden_Nd, table_Id, targets_N, config)
    scores_NM = torch.cat([positive_N[:, None], negative_NM.masked_fill(~is_negative_NM, -torch.inf)], dim=1)
    wanted_N, smoothing = positive_N, config.label_smoothing
    if smoothing:
        mean_N = (positive_N + (negative_NM * is_negative_NM).sum(1)) / (1 + is_negative_NM.sum(1))
        wanted_N = (1 - smoothing) * positive_N + smoothing * mean_N
    return (scores_NM.logsumexp(1) - wanted_N).mean()


def generalised_binary_cross_entropy(
    hidden_Nd: Tensor,
    table_Id: Tensor,
    targets_N: Tensor,
    rows_NL: Tensor,
    config: TrainerConfig,
    part: BatchPart | None = None,
) -> Tensor:
    """Binary cross-entropy against drawn items, calibrated (gBCE; Petrov & Macdonald, RecSys 2023)."""
    positive_N, negative_NM, is_negative_NM = _against_drawn(hidden_Nd, table_Id, targets_N, config)
    negative_N = (F.softplus(negative_NM) * is_negative_NM).sum(1)
    losses_N = config.gbce_beta(len(table_Id)) * F.softplus(-positive_N) + negative_N
    return losses_N.mean()


def binary_cross_entropy(
    hidden_Nd: Tensor,
    table_Id: Tensor,
    targets_N: Tensor,
    rows_NL: Tensor,
    config: TrainerConfig,
    part: BatchPart | None = None,
) -> Tensor:
    """The target against one uniformly drawn item (Kang & McAuley, section III-E).

    A drawn item that is the target or in the row's history counts for nothing.
    """
    positive_N, negative_N, is_negative_N = _against_one(hidden_Nd, table_Id, targets_N, rows_NL, part)
    losses_N = F.softplus(-positive_N) + F.softplus(negative_N) * is_negative_N
    return losses_N.mean()


def bayesian_personalised_ranking(
    hidden_Nd: Tensor,
    table_Id: Tensor,
    targets_N: Tensor,
    rows_NL: Tensor,
    config: TrainerConfig,
    part: BatchPart | None = None,
) -> Tensor:
    """The target above one uniformly drawn item (BPR; Rendle et al., UAI 2009), masked as in `binary_cross_entropy`."""
    positive_N, negative_N, is_negative_N = _against_one(hidden_Nd, table_Id, targets_N, rows_NL, part)
    losses_N = F.softplus(negative_N - positive_N) * is_negative_N
    return losses_N.mean()


SEQUENCE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "sampled": sampled_softmax,
    "gbce": generalised_binary_cross_entropy,
    "bce": binary_cross_entropy,
    "bpr": bayesian_personalised_ranking,
}
"""Each takes the states, the item table, the targets, the histories that the states come from, the settings, and of
which part of a batch all these are."""


def separate_loss(
    model: UR4Rec,
    config: TrainerConfig,
    inputs: StepInputs,
    modules: tuple[str, ...],
    catalogue: Catalogue | None,
    *,
    keeps_scores: bool = False,
) -> StepLosses:
    """The weighted sum of the losses of the modules that train; one that is frozen is not run.

    The modules do not touch. Where both train, the fusion weights, if it has any and they are not set from outside,
    learn from their detached scores. The loss of a text encoder is the retriever's, which is run, though frozen, where
    the encoder trains.

    Args:
        model: The model.
        config: Names SASRec's loss and the weights.
        inputs: The batch.
        modules: What trains.
        catalogue: The retriever's, if it or the text encoder trains.
        keeps_scores: As for `fused_loss`.
    """
    losses: dict[str, Component] = {}
    outputs: Outputs = Outputs()
    if "sasrec" in modules:
        loss, outputs = _sasrec_loss(model, config, inputs, outputs, keeps_scores=keeps_scores)
        losses["sasrec"] = Component(loss, config.sasrec_loss_weight)
    primary = {name: loss.detach() for name, (loss, _) in losses.items()}
    if "retriever" in modules or TEXT_ENCODER in modules:
        assert catalogue is not None
        loss, outputs = _retriever_loss(model, config, inputs, catalogue, outputs, keeps_scores=keeps_scores)
        losses["retriever"] = Component(loss, config.retriever_loss_weight)
        primary |= {name: loss.detach() for name in modules if name != "sasrec"}
    learns = model.config.fusion in FUSIONS_WITH_GRADIENTS and config.fusion_fit == TRAINING
    if len(losses) == 2 and learns:
        assert catalogue is not None
        losses["fused"] = Component(_fusion_loss(model, config, inputs, catalogue, outputs), 1.0)
    total = reduce(torch.add, (weight * loss for loss, weight in losses.values()))
    return StepLosses(total, primary, losses, outputs)


def _sasrec_loss(
    model: UR4Rec, config: TrainerConfig, inputs: StepInputs, outputs: Outputs, *, keeps_scores: bool
) -> tuple[Tensor, Outputs]:
    """SASRec's own loss, and the outputs with what it was computed from."""
    hidden_Nd, scores_NS = _run_sasrec(model, inputs)
    smoothing = config.label_smoothing
    if inputs.sample is not None and scores_NS is not None:
        loss = sampled_cross_entropy(scores_NS, inputs.targets_N, inputs.sample, smoothing)
        return loss, outputs._replace(hidden_Nd=hidden_Nd, sasrec_NI=scores_NS)
    table_Id = model.sasrec.item_table()
    if keeps_scores and config.sasrec_loss == "ce":
        scores_NI = model.sasrec.score(hidden_Nd, table_Id)
        outputs = outputs._replace(hidden_Nd=hidden_Nd, sasrec_NI=scores_NI)
        return F.cross_entropy(scores_NI, inputs.targets_N, label_smoothing=smoothing), outputs
    if model.shard is not None:
        sasrec = hidden_Nd, table_Id
        loss = catalogue_cross_entropy(inputs.targets_N, sasrec=sasrec, shard=model.shard, smoothing=smoothing)
        return loss, outputs._replace(hidden_Nd=hidden_Nd)
    rows_NL = inputs.items_BL[inputs.positions_N // inputs.items_BL.shape[1]]
    loss = SEQUENCE_LOSSES[config.sasrec_loss](hidden_Nd, table_Id, inputs.targets_N, rows_NL, config, inputs.part)
    return loss, outputs._replace(hidden_Nd=hidden_Nd)


def _retriever_loss(
    model: UR4Rec,
    config: TrainerConfig,
    inputs: StepInputs,
    catalogue: Catalogue,
    outputs: Outputs,
    *,
    keeps_scores: bool,
) -> tuple[Tensor, Outputs]:
    """The retriever's own loss, and the outputs with what it was computed from."""
    preferences_NKd, smoothing = _preferences(model, inputs, catalogue), config.label_smoothing
    if inputs.sample is not None:
        scores_NS = _retriever_scores(model, inputs, catalogue, preferences_NKd)
        loss = sampled_cross_entropy(scores_NS, inputs.targets_N, inputs.sample, smoothing)
        return loss, outputs._replace(preferences_NKd=preferences_NKd, retriever_NI=scores_NS)
    if keeps_scores:
        scores_NI = model.retriever.score(preferences_NKd, catalogue.keys_Id)
        outputs = outputs._replace(preferences_NKd=preferences_NKd, retriever_NI=scores_NI)
        return F.cross_entropy(scores_NI, inputs.targets_N, label_smoothing=smoothing), outputs
    retriever = model.retriever.scale(preferences_NKd), catalogue.keys_Id
    loss = catalogue_cross_entropy(inputs.targets_N, retriever=retriever, shard=catalogue.shard, smoothing=smoothing)
    return loss, outputs._replace(preferences_NKd=preferences_NKd)


def _fusion_loss(
    model: UR4Rec, config: TrainerConfig, inputs: StepInputs, catalogue: Catalogue, outputs: Outputs
) -> Tensor:
    """Cross-entropy of the fusion of both modules' detached outputs: it trains the fusion weights alone."""
    if outputs.sasrec_NI is not None and outputs.retriever_NI is not None:
        fused_NI = model.fusion(outputs.sasrec_NI.detach(), outputs.retriever_NI.detach())
        return _softmax_loss(fused_NI, inputs, config.label_smoothing)
    assert outputs.hidden_Nd is not None
    assert outputs.preferences_NKd is not None
    hidden_Nd, table_Id = outputs.hidden_Nd.detach(), model.sasrec.item_table().detach()
    preferences_NKd, keys_Id = outputs.preferences_NKd.detach(), catalogue.keys_Id.detach()
    factors = hidden_Nd, table_Id, preferences_NKd, keys_Id
    return _fused(model, *factors, inputs.targets_N, config.label_smoothing)


def fused_loss(
    model: UR4Rec,
    inputs: StepInputs,
    catalogue: Catalogue,
    *,
    keeps_scores: bool = False,
    label_smoothing: float = 0.0,
) -> StepLosses:
    """Cross-entropy of the fused scores, which is the primary loss of all modules.

    A module's own cross-entropy would mislead a schedule: it rises while the modules learn to complement each other.

    Args:
        model: The model.
        inputs: The batch.
        catalogue: The retriever's.
        keeps_scores: Whether a further component needs all logits: then they are computed once for both.
        label_smoothing: As in `TrainerConfig`.
    """
    (hidden_Nd, scores_NS), preferences_NKd = _run_sasrec(model, inputs), _preferences(model, inputs, catalogue)
    outputs = Outputs(hidden_Nd, preferences_NKd, scores_NS)
    if keeps_scores or inputs.sample is not None:
        scores = both_scores(model, inputs, catalogue, outputs)
        outputs = Outputs(hidden_Nd, preferences_NKd, *scores)
        total = _softmax_loss(model.fusion(*scores), inputs, label_smoothing)
    else:
        factors = hidden_Nd, model.sasrec.item_table(), preferences_NKd, catalogue.keys_Id
        total = _fused(model, *factors, inputs.targets_N, label_smoothing)
    primary = dict.fromkeys(modules_of(model.config), total.detach())
    return StepLosses(total, primary, {"fused": Component(total, 1.0)}, outputs)


def share(losses: StepLosses, part: BatchPart | None) -> StepLosses:
    """Losses that are means over the targets of a part of a batch, multiplied by its share; see `BatchPart`."""
    if part is None:
        return losses
    return losses._replace(
        total=part.target_share * losses.total,
        modules={name: part.target_share * loss for name, loss in losses.modules.items()},
        components={
            name: component._replace(loss=part.target_share * component.loss)
            for name, component in losses.components.items()
        },
    )


def both_scores(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The logits of both modules, (N, I) each: of a module that was not run, computed now and without gradients.

    With sampled losses they are those of the candidates, (N, S).
    """
    hidden_Nd, preferences_NKd, sasrec_NI, retriever_NI = outputs
    if sasrec_NI is None:
        with torch.set_grad_enabled(hidden_Nd is not None):
            if hidden_Nd is None:
                hidden_Nd, sasrec_NI = _run_sasrec(model, inputs)
            if sasrec_NI is None:
                sasrec_NI = model.sasrec.score(hidden_Nd, model.sasrec.item_table())
    if retriever_NI is None:
        with torch.set_grad_enabled(preferences_NKd is not None):
            preferences_NKd = _preferences(model, inputs, catalogue) if preferences_NKd is None else preferences_NKd
            retriever_NI = _retriever_scores(model, inputs, catalogue, preferences_NKd)
    return sasrec_NI, retriever_NI


def _fused(
    model: UR4Rec,
    hidden_Nd: Tensor,
    table_Id: Tensor,
    preferences_NKd: Tensor,
    keys_Id: Tensor,
    targets_N: Tensor,
    smoothing: float,
) -> Tensor:
    """Cross-entropy of the fused scores."""
    sasrec, retriever = (hidden_Nd, table_Id), (model.retriever.scale(preferences_NKd), keys_Id)
    if isinstance(model.fusion, LogitFusion):
        return catalogue_cross_entropy(
            targets_N,
            sasrec=sasrec,
            retriever=retriever,
            weights_2=model.fusion.weights,
            shard=model.shard,
            smoothing=smoothing,
        )
    if model.shard is not None:
        assert isinstance(model.fusion, WeightedFusion)
        assert not smoothing  # check_layout refuses it: the mixture of every item would be needed
        by_sasrec_N = catalogue_log_probabilities(targets_N, sasrec=sasrec, shard=model.shard)
        by_retriever_N = catalogue_log_probabilities(targets_N, retriever=retriever, shard=model.shard)
        return -model.fusion.mix(by_sasrec_N, by_retriever_N).mean()
    scores = model.sasrec.score(hidden_Nd, table_Id), model.retriever.score(preferences_NKd, keys_Id)
    return F.cross_entropy(model.fusion(*scores), targets_N, label_smoothing=smoothing)


def _softmax_loss(scores: Tensor, inputs: StepInputs, smoothing: float) -> Tensor:
    """Mean negative log-probability of the targets, from the logits of the catalogue or of the candidates."""
    if inputs.sample is None:
        return F.cross_entropy(scores, inputs.targets_N, label_smoothing=smoothing)
    return sampled_cross_entropy(scores, inputs.targets_N, inputs.sample, smoothing)


def _retriever_scores(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue, preferences_NKd: Tensor) -> Tensor:
    """The retriever's logits of every item, (N, I), or of the candidates, (N, S)."""
    if inputs.sample is None:
        return model.retriever.score(preferences_NKd, catalogue.keys_Id)
    return retriever_scores(model.retriever, preferences_NKd, catalogue.keys_Id, inputs.targets_N, inputs.sample)


def _run_sasrec(model: UR4Rec, inputs: StepInputs) -> tuple[Tensor, Tensor | None]:
    """SASRec's states where a target is, (N, d), and with sampled losses its logits of the candidates, (N, S)."""
    if inputs.sample is None:
        return run_rows(inputs, lambda items_BL, _: model.sasrec(items_BL)), None
    rows_Jd = model.sasrec.take_rows(inputs.sample.items_J)
    hidden_Nd = run_rows(inputs, lambda items_BL, _: model.sasrec(items_BL, rows_Jd=rows_Jd))
    return hidden_Nd, sasrec_scores(hidden_Nd, rows_Jd, inputs.targets_N, inputs.sample)


def _preferences(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue) -> Tensor:
    """The retriever's preference vectors where a target is, (N, K, d)."""

    def vectors(items_BL: Tensor, users_B: Tensor | None) -> Tensor:
        found: Tensor = model.retriever(items_BL, catalogue, users_B, normalise=False)
        return found

    return F.normalize(run_rows(inputs, vectors), dim=-1)


def run_rows(inputs: StepInputs, compute: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """What a function computes where a target is, (N, ...): at once, or group by group where rows are divided.

    Args:
        inputs: The batch.
        compute: Given histories and whose they are, returns something of each position, (B, L, ...), in which no
            position depends on a later one.
    """
    if not inputs.groups:
        return compute(inputs.items_BL, inputs.users_B).flatten(0, 1)[inputs.positions_N]
    return torch.cat([compute(*group).flatten(0, 1) for group in inputs.groups])[inputs.places_N]


def _against_drawn(
    hidden_Nd: Tensor, table_Id: Tensor, targets_N: Tensor, config: TrainerConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the targets, (N,), and of M drawn items, (N, M), and which of these are not the target."""
    negatives_M = torch.randint(len(table_Id), (config.num_negatives,), device=targets_N.device)
    positive_N = (hidden_Nd * table_Id[targets_N]).sum(1).float()
    negative_NM = (hidden_Nd @ table_Id[negatives_M].T).float()
    return positive_N, negative_NM, negatives_M != targets_N[:, None]


def _against_one(
    hidden_Nd: Tensor, table_Id: Tensor, targets_N: Tensor, rows_NL: Tensor, part: BatchPart | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the targets and of one drawn item each, and which of these are new to the row, all (N,)."""
    num_drawn = len(targets_N) if part is None else len(part.targets_N)
    negatives_N = torch.randint(len(table_Id), (num_drawn,), device=targets_N.device)
    if part is not None:
        negatives_N = negatives_N[part.targets]
    positive_N = (hidden_Nd * table_Id[targets_N]).sum(1).float()
    negative_N = (hidden_Nd * table_Id[negatives_N]).sum(1).float()
    return positive_N, negative_N, (negatives_N != targets_N) & (negatives_N[:, None] != rows_NL).all(1)
