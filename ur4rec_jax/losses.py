"""Losses of SASRec by name, and what a step minimises.

Shapes: B rows, L positions of a row, N positions with a target (padded), d width, K preference vectors, I items, M
drawn items.
"""

from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import FUSIONS_WITH_GRADIENTS, TRAINING, TrainerConfig
from ur4rec.schedule.stages import TEXT_ENCODER, modules_of
from ur4rec.training import arrays
from ur4rec_jax.catalogue_loss import catalogue_cross_entropy, smoothed
from ur4rec_jax.layers import normalize
from ur4rec_jax.layout import ONE_DEVICE, Layout
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.sampled_loss import retriever_scores, sampled_cross_entropy, sasrec_scores
from ur4rec_jax.ur4rec import LogitFusion, Outputs, UR4Rec

StepInputs: TypeAlias = arrays.StepInputs[Array]
RowGroup: TypeAlias = arrays.RowGroup[Array]
Component: TypeAlias = arrays.Component[Array]
StepLosses: TypeAlias = arrays.StepLosses[Array]


def softmax_cross_entropy(
    scores_NI: Array, targets_N: Array, layout: Layout = ONE_DEVICE, smoothing: float = 0.0
) -> Array:
    """Mean negative log-probability of the targets; padding does not count.

    The target's score is found by comparing, not by indexing: so its gradient is no scatter, and it is one pass.

    Args:
        scores_NI: The logits.
        targets_N: The targets.
        layout: Where these are.
        smoothing: The share of a target's probability that all items have in equal parts.
    """
    items_I = jnp.arange(scores_NI.shape[1])
    is_target_NI = targets_N[:, None] == items_I
    scores_NI = layout.without_padding(scores_NI)
    if smoothing:
        wanted_N = (smoothed(is_target_NI, items_I, smoothing, layout) * scores_NI).sum(1)
    else:
        wanted_N = jnp.where(is_target_NI, scores_NI, 0).sum(1)
    is_target_N = targets_N < layout.count_items(scores_NI.shape[1])
    return mean_over_targets(jax.nn.logsumexp(scores_NI, axis=1) - wanted_N, is_target_N)


def cross_entropy(
    hidden_Nd: Array,
    table_Id: Array,
    targets_N: Array,
    rows_NL: Array,
    config: TrainerConfig,
    rngs: nnx.Rngs,
    layout: Layout = ONE_DEVICE,
) -> Array:
    """Softmax over the whole catalogue: the loss that makes SASRec state of the art."""
    sasrec, smoothing = (hidden_Nd, table_Id), config.label_smoothing
    return catalogue_cross_entropy(targets_N, sasrec=sasrec, layout=layout, smoothing=smoothing)


def sampled_softmax(
    hidden_Nd: Array,
    table_Id: Array,
    targets_N: Array,
    rows_NL: Array,
    config: TrainerConfig,
    rngs: nnx.Rngs,
    layout: Layout = ONE_DEVICE,
) -> Array:
    """Softmax over the target and uniformly drawn items, which the whole batch shares.

    All items are equally likely to be drawn, so the usual correction of the logits is a constant and left out.
    """
    positive_N, negative_NM, is_negative_NM = _against_drawn(hidden_Nd, table_Id, targets_N, config, rngs, layout)
    scores_NM = jnp.concatenate([positive_N[:, None], jnp.where(is_negative_NM, negative_NM, -jnp.inf)], axis=1)
    wanted_N, smoothing = positive_N, config.label_smoothing
    if smoothing:
        mean_N = (positive_N + (negative_NM * is_negative_NM).sum(1)) / (1 + is_negative_NM.sum(1))
        wanted_N = (1 - smoothing) * positive_N + smoothing * mean_N
    return mean_over_targets(
        jax.nn.logsumexp(scores_NM, axis=1) - wanted_N, targets_N < layout.count_items(len(table_Id))
    )


def generalised_binary_cross_entropy(
    hidden_Nd: Array,
    table_Id: Array,
    targets_N: Array,
    rows_NL: Array,
    config: TrainerConfig,
    rngs: nnx.Rngs,
    layout: Layout = ONE_DEVICE,
) -> Array:
    """Binary cross-entropy against drawn items, calibrated (gBCE; Petrov & Macdonald, RecSys 2023)."""
    positive_N, negative_NM, is_negative_NM = _against_drawn(hidden_Nd, table_Id, targets_N, config, rngs, layout)
    negative_N = (jax.nn.softplus(negative_NM) * is_negative_NM).sum(1)
    losses_N = config.gbce_beta(layout.count_items(len(table_Id))) * jax.nn.softplus(-positive_N) + negative_N
    return mean_over_targets(losses_N, targets_N < layout.count_items(len(table_Id)))


def binary_cross_entropy(
    hidden_Nd: Array,
    table_Id: Array,
    targets_N: Array,
    rows_NL: Array,
    config: TrainerConfig,
    rngs: nnx.Rngs,
    layout: Layout = ONE_DEVICE,
) -> Array:
    """The target against one uniformly drawn item (Kang & McAuley, section III-E).

    A drawn item that is the target or in the row's history counts for nothing.
    """
    positive_N, negative_N, is_negative_N = _against_one(hidden_Nd, table_Id, targets_N, rows_NL, rngs, layout)
    losses_N = jax.nn.softplus(-positive_N) + jax.nn.softplus(negative_N) * is_negative_N
    return mean_over_targets(losses_N, targets_N < layout.count_items(len(table_Id)))


def bayesian_personalised_ranking(
    hidden_Nd: Array,
    table_Id: Array,
    targets_N: Array,
    rows_NL: Array,
    config: TrainerConfig,
    rngs: nnx.Rngs,
    layout: Layout = ONE_DEVICE,
) -> Array:
    """The target above one uniformly drawn item (BPR; Rendle et al., UAI 2009), masked as in `binary_cross_entropy`."""
    positive_N, negative_N, is_negative_N = _against_one(hidden_Nd, table_Id, targets_N, rows_NL, rngs, layout)
    losses_N = jax.nn.softplus(negative_N - positive_N) * is_negative_N
    return mean_over_targets(losses_N, targets_N < layout.count_items(len(table_Id)))


SEQUENCE_LOSSES: dict[str, Callable[[Array, Array, Array, Array, TrainerConfig, nnx.Rngs, Layout], Array]] = {
    "ce": cross_entropy,
    "sampled": sampled_softmax,
    "gbce": generalised_binary_cross_entropy,
    "bce": binary_cross_entropy,
    "bpr": bayesian_personalised_ranking,
}
"""Each takes the states, the item table, the targets, the histories that the states come from, the settings,
random numbers, and where all these are."""


def separate_loss(
    model: UR4Rec,
    config: TrainerConfig,
    inputs: StepInputs,
    modules: tuple[str, ...],
    catalogue: Catalogue | None,
    rngs: nnx.Rngs,
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
        rngs: Random numbers for dropout and negatives.
        keeps_scores: As for `fused_loss`.
    """
    losses: dict[str, Component] = {}
    outputs: Outputs = Outputs()
    if "sasrec" in modules:
        loss, outputs = _sasrec_loss(model, config, inputs, outputs, rngs, keeps_scores=keeps_scores)
        losses["sasrec"] = Component(loss, config.sasrec_loss_weight)
    primary = {name: jax.lax.stop_gradient(loss) for name, (loss, _) in losses.items()}
    if "retriever" in modules or TEXT_ENCODER in modules:
        assert catalogue is not None
        dropout = rngs if "retriever" in modules else None
        loss, outputs = _retriever_loss(model, config, inputs, catalogue, outputs, dropout, keeps_scores=keeps_scores)
        losses["retriever"] = Component(loss, config.retriever_loss_weight)
        primary |= {name: jax.lax.stop_gradient(loss) for name in modules if name != "sasrec"}
    learns = model.config.fusion in FUSIONS_WITH_GRADIENTS and config.fusion_fit == TRAINING
    if len(losses) == 2 and learns:
        assert catalogue is not None
        losses["fused"] = Component(_fusion_loss(model, config, inputs, catalogue, outputs), 1.0)
    total = reduce(jnp.add, (weight * loss for loss, weight in losses.values()))
    return StepLosses(total, primary, losses, outputs)


def _sasrec_loss(
    model: UR4Rec, config: TrainerConfig, inputs: StepInputs, outputs: Outputs, rngs: nnx.Rngs, *, keeps_scores: bool
) -> tuple[Array, Outputs]:
    """SASRec's own loss, and the outputs with what it was computed from."""
    hidden_Nd, smoothing = _states(model, inputs, rngs), config.label_smoothing
    if inputs.sample is not None:
        scores_NS = _sasrec_scores(model, inputs, hidden_Nd)
        loss = sampled_cross_entropy(scores_NS, inputs.targets_N, inputs.sample, smoothing)
        return loss, outputs._replace(hidden_Nd=hidden_Nd, sasrec_NI=scores_NS)
    table_Id = model.sasrec.item_table()
    if keeps_scores and config.sasrec_loss == "ce":
        scores_NI = model.sasrec.score(hidden_Nd, table_Id)
        outputs = outputs._replace(hidden_Nd=hidden_Nd, sasrec_NI=scores_NI)
        return softmax_cross_entropy(scores_NI, inputs.targets_N, model.layout, smoothing), outputs
    rows_NL = model.layout.per_part(_rows, inputs.items_BL, inputs.positions_N)
    loss = SEQUENCE_LOSSES[config.sasrec_loss](
        *(hidden_Nd, table_Id, inputs.targets_N, rows_NL, config, rngs, model.layout)
    )
    return loss, outputs._replace(hidden_Nd=hidden_Nd)


def _retriever_loss(
    model: UR4Rec,
    config: TrainerConfig,
    inputs: StepInputs,
    catalogue: Catalogue,
    outputs: Outputs,
    rngs: nnx.Rngs | None,
    *,
    keeps_scores: bool,
) -> tuple[Array, Outputs]:
    """The retriever's own loss, and the outputs with what it was computed from."""
    preferences_NKd, smoothing = _preferences(model, inputs, catalogue, rngs), config.label_smoothing
    if inputs.sample is not None:
        scores_NS = _retriever_scores(model, inputs, catalogue, preferences_NKd)
        loss = sampled_cross_entropy(scores_NS, inputs.targets_N, inputs.sample, smoothing)
        return loss, outputs._replace(preferences_NKd=preferences_NKd, retriever_NI=scores_NS)
    if keeps_scores:
        scores_NI = model.retriever.score(preferences_NKd, catalogue.keys_Id)
        outputs = outputs._replace(preferences_NKd=preferences_NKd, retriever_NI=scores_NI)
        return softmax_cross_entropy(scores_NI, inputs.targets_N, model.layout, smoothing), outputs
    retriever = model.retriever.scale(preferences_NKd), catalogue.keys_Id
    loss = catalogue_cross_entropy(inputs.targets_N, retriever=retriever, layout=model.layout, smoothing=smoothing)
    return loss, outputs._replace(preferences_NKd=preferences_NKd)


def _fusion_loss(
    model: UR4Rec, config: TrainerConfig, inputs: StepInputs, catalogue: Catalogue, outputs: Outputs
) -> Array:
    """Cross-entropy of the fusion of both modules' detached outputs: it trains the fusion weights alone."""
    if outputs.sasrec_NI is not None and outputs.retriever_NI is not None:
        scores = jax.lax.stop_gradient((outputs.sasrec_NI, outputs.retriever_NI))
        return _softmax_loss(model, model.fuse(*scores), inputs, config.label_smoothing)
    assert outputs.hidden_Nd is not None
    assert outputs.preferences_NKd is not None
    hidden_Nd, table_Id = jax.lax.stop_gradient((outputs.hidden_Nd, model.sasrec.item_table()))
    preferences_NKd, keys_Id = jax.lax.stop_gradient((outputs.preferences_NKd, catalogue.keys_Id))
    factors = hidden_Nd, table_Id, preferences_NKd, keys_Id
    return _fused(model, *factors, inputs.targets_N, config.label_smoothing)


def fused_loss(
    model: UR4Rec,
    inputs: StepInputs,
    modules: tuple[str, ...],
    catalogue: Catalogue,
    rngs: nnx.Rngs,
    *,
    keeps_scores: bool = False,
    label_smoothing: float = 0.0,
) -> StepLosses:
    """Cross-entropy of the fused scores, which is the primary loss of all modules.

    A module's own cross-entropy would mislead a schedule: it rises while the modules learn to complement each other.
    A module that does not train has no dropout.

    Args:
        model: The model.
        inputs: The batch.
        modules: What trains.
        catalogue: The retriever's.
        rngs: Random numbers for dropout.
        keeps_scores: Whether a further component needs all logits: then they are computed once for both.
        label_smoothing: As in `TrainerConfig`.
    """
    sasrec_rngs, retriever_rngs = (rngs if name in modules else None for name in ("sasrec", "retriever"))
    hidden_Nd = _states(model, inputs, sasrec_rngs)
    preferences_NKd = _preferences(model, inputs, catalogue, retriever_rngs)
    outputs = Outputs(hidden_Nd, preferences_NKd)
    if keeps_scores or inputs.sample is not None:
        scores = both_scores(model, inputs, catalogue, outputs)
        outputs = Outputs(hidden_Nd, preferences_NKd, *scores)
        total = _softmax_loss(model, model.fuse(*scores), inputs, label_smoothing)
    else:
        factors = hidden_Nd, model.sasrec.item_table(), preferences_NKd, catalogue.keys_Id
        total = _fused(model, *factors, inputs.targets_N, label_smoothing)
    primary = dict.fromkeys(modules_of(model.config), jax.lax.stop_gradient(total))
    return StepLosses(total, primary, {"fused": Component(total, 1.0)}, outputs)


def both_scores(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue, outputs: Outputs) -> tuple[Array, Array]:
    """The logits of both modules, (N, I) each: of a module that was not run, computed now and without dropout.

    With sampled losses they are those of the candidates, (N, S).
    """
    hidden_Nd, preferences_NKd, sasrec_NI, retriever_NI = outputs
    if sasrec_NI is None:
        hidden_Nd = _states(model, inputs, None) if hidden_Nd is None else hidden_Nd
        sasrec_NI = _sasrec_scores(model, inputs, hidden_Nd)
    if retriever_NI is None:
        preferences_NKd = _preferences(model, inputs, catalogue, None) if preferences_NKd is None else preferences_NKd
        retriever_NI = _retriever_scores(model, inputs, catalogue, preferences_NKd)
    return sasrec_NI, retriever_NI


def mean_over_targets(values_N: Array, is_target_N: Array) -> Array:
    """Their mean where a target is."""
    return jnp.where(is_target_N, values_N, 0).sum() / is_target_N.sum()


def _fused(
    model: UR4Rec,
    hidden_Nd: Array,
    table_Id: Array,
    preferences_NKd: Array,
    keys_Id: Array,
    targets_N: Array,
    smoothing: float,
) -> Array:
    """Cross-entropy of the fused scores."""
    if isinstance(model.fusion, LogitFusion):
        retriever = model.retriever.scale(preferences_NKd), keys_Id
        return catalogue_cross_entropy(
            targets_N,
            sasrec=(hidden_Nd, table_Id),
            retriever=retriever,
            weights_2=model.fusion.weights[...],
            layout=model.layout,
            smoothing=smoothing,
        )
    scores = model.sasrec.score(hidden_Nd, table_Id), model.retriever.score(preferences_NKd, keys_Id)
    return softmax_cross_entropy(model.fuse(*scores), targets_N, model.layout, smoothing)


def _softmax_loss(model: UR4Rec, scores: Array, inputs: StepInputs, smoothing: float) -> Array:
    """Mean negative log-probability of the targets, from the logits of the catalogue or of the candidates."""
    if inputs.sample is None:
        return softmax_cross_entropy(scores, inputs.targets_N, model.layout, smoothing)
    return sampled_cross_entropy(scores, inputs.targets_N, inputs.sample, smoothing)


def _sasrec_scores(model: UR4Rec, inputs: StepInputs, hidden_Nd: Array) -> Array:
    """SASRec's logits of every item, (N, I), or of the candidates, (N, S)."""
    if inputs.sample is None:
        return model.sasrec.score(hidden_Nd, model.sasrec.item_table())
    table_Jd = model.sasrec.item_embedding.embedding[...]
    return sasrec_scores(hidden_Nd, table_Jd, inputs.targets_N, inputs.sample, model.layout)


def _retriever_scores(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue, preferences_NKd: Array) -> Array:
    """The retriever's logits of every item, (N, I), or of the candidates, (N, S)."""
    if inputs.sample is None:
        return model.retriever.score(preferences_NKd, catalogue.keys_Id)
    return retriever_scores(model.retriever, preferences_NKd, catalogue.keys_Id, inputs.targets_N, inputs.sample)


def _states(model: UR4Rec, inputs: StepInputs, rngs: nnx.Rngs | None) -> Array:
    """SASRec's states where a target is, (N, d)."""
    return run_rows(inputs, lambda items_BL, _: model.sasrec(items_BL, rngs), model.layout)


def _preferences(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue, rngs: nnx.Rngs | None) -> Array:
    """The retriever's preference vectors where a target is, (N, K, d)."""

    def vectors(items_BL: Array, users_B: Array | None) -> Array:
        return model.retriever(items_BL, catalogue, rngs, users_B, normalise=False)

    return normalize(run_rows(inputs, vectors, model.layout))


def run_rows(inputs: StepInputs, compute: Callable[[Array, Array | None], Array], layout: Layout = ONE_DEVICE) -> Array:
    """What a function computes where a target is, (N, ...): at once, or group by group where rows are divided.

    Args:
        inputs: The batch.
        compute: Given histories and whose they are, returns something of each position, (B, L, ...), in which no
            position depends on a later one.
        layout: Where the batch is.
    """
    if not inputs.groups or inputs.places_N is None:
        values_BLx = compute(inputs.items_BL, inputs.users_B)
        values_Nx: Array = layout.per_part(at_positions, values_BLx, inputs.positions_N)
        return values_Nx
    by_group = (compute(*group) for group in inputs.groups)
    return jnp.concatenate([each.reshape(-1, *each.shape[2:]) for each in by_group])[inputs.places_N]


def at_positions(values_BLx: Array, positions_N: Array) -> Array:
    """What is at positions of a part of a batch, (N, ...)."""
    return values_BLx.reshape(-1, *values_BLx.shape[2:])[positions_N]


def _rows(items_BL: Array, positions_N: Array) -> Array:
    """The histories that positions are in, (N, L)."""
    return items_BL[positions_N // items_BL.shape[1]]


def _against_drawn(
    hidden_Nd: Array, table_Id: Array, targets_N: Array, config: TrainerConfig, rngs: nnx.Rngs, layout: Layout
) -> tuple[Array, Array, Array]:
    """Scores of the targets, (N,), and of M drawn items, (N, M), and which of these are not the target."""
    negatives_M = jax.random.randint(rngs.negatives(), (config.num_negatives,), 0, layout.count_items(len(table_Id)))
    positive_N = (hidden_Nd * layout.take(table_Id, targets_N, mode="clip")).sum(1).astype(jnp.float32)
    negative_NM = (hidden_Nd @ layout.take(table_Id, negatives_M, of_batch=False).T).astype(jnp.float32)
    return positive_N, negative_NM, negatives_M != targets_N[:, None]


def _against_one(
    hidden_Nd: Array, table_Id: Array, targets_N: Array, rows_NL: Array, rngs: nnx.Rngs, layout: Layout
) -> tuple[Array, Array, Array]:
    """Scores of the targets and of one drawn item each, and which of these are new to the row, all (N,)."""
    num_items = layout.count_items(len(table_Id))
    negatives_N = jax.random.randint(rngs.negatives(), targets_N.shape, 0, num_items)
    negatives_N = layout.in_order(negatives_N, targets_N < num_items)
    positive_N = (hidden_Nd * layout.take(table_Id, targets_N, mode="clip")).sum(1).astype(jnp.float32)
    negative_N = (hidden_Nd * layout.take(table_Id, negatives_N)).sum(1).astype(jnp.float32)
    return positive_N, negative_N, (negatives_N != targets_N) & (negatives_N[:, None] != rows_NL).all(1)
