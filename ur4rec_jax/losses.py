"""Losses of SASRec by name, and what a step minimises.

Shapes: B rows, L positions of a row, N positions with a target (and some that fill up), d width, I items.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ur4rec.config import TrainerConfig
from ur4rec.stages import MODULES
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.ur4rec import UR4Rec


class StepInputs(NamedTuple):
    """A training batch on the device."""

    items_BL: Array
    """Histories, right-padded."""
    positions_N: Array
    """Where a target is, counted over all rows: row · L + position. Filled up with 0 to a constant length."""
    targets_N: Array
    """The targets there; the padding index where filled up."""


class StepLosses(NamedTuple):
    """The losses of a step."""

    total: Array
    """What is minimised."""
    modules: dict[str, Array]
    """The raw primary loss of each module for which it was computed, detached."""


def softmax_cross_entropy(scores_NI: Array, targets_N: Array) -> Array:
    """Mean negative log-probability of the targets; padding does not count.

    The target's score is found by comparing, not by indexing: so its gradient is no scatter, and it is one pass.
    """
    is_target_NI = targets_N[:, None] == jnp.arange(scores_NI.shape[1])
    target_scores_N = jnp.where(is_target_NI, scores_NI, 0).sum(1)
    return _mean(jax.nn.logsumexp(scores_NI, axis=1) - target_scores_N, targets_N < scores_NI.shape[1])


def cross_entropy(hidden_Nd: Array, table_Id: Array, targets_N: Array, rows_NL: Array, rngs: nnx.Rngs) -> Array:
    """Softmax over the whole catalogue: the loss that makes SASRec state of the art."""
    return softmax_cross_entropy((hidden_Nd @ table_Id.T).astype(jnp.float32), targets_N)


def binary_cross_entropy(hidden_Nd: Array, table_Id: Array, targets_N: Array, rows_NL: Array, rngs: nnx.Rngs) -> Array:
    """The target against one uniformly drawn item (Kang & McAuley, section III-E).

    A drawn item that is the target or in the row's history counts for nothing.
    """
    negatives_N = jax.random.randint(rngs.negatives(), targets_N.shape, 0, len(table_Id))
    positive_N = (hidden_Nd * table_Id.at[targets_N].get(mode="clip")).sum(1).astype(jnp.float32)
    negative_N = (hidden_Nd * table_Id[negatives_N]).sum(1).astype(jnp.float32)
    is_negative_N = (negatives_N != targets_N) & (negatives_N[:, None] != rows_NL).all(1)
    losses_N = jax.nn.softplus(-positive_N) + jax.nn.softplus(negative_N) * is_negative_N
    return _mean(losses_N, targets_N < len(table_Id))


SEQUENCE_LOSSES: dict[str, Callable[[Array, Array, Array, Array, nnx.Rngs], Array]] = {
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
}
"""Each takes the states, the item table, the targets, the histories that the states come from, and random numbers."""


def separate_loss(
    model: UR4Rec,
    config: TrainerConfig,
    inputs: StepInputs,
    modules: tuple[str, ...],
    catalogue: Catalogue | None,
    rngs: nnx.Rngs,
) -> StepLosses:
    """The weighted sum of the losses of the modules that train; one that is frozen is not run.

    The modules do not touch. Where both train, the fusion weights learn from their detached scores.

    Args:
        model: The model.
        config: Names SASRec's loss and the weights.
        inputs: The batch.
        modules: What trains.
        catalogue: The retriever's, if it trains.
        rngs: Random numbers for dropout and negatives.
    """
    losses: dict[str, Array] = {}
    weights = {"sasrec": config.sasrec_loss_weight, "retriever": config.retriever_loss_weight}
    if "sasrec" in modules:
        hidden_Nd, table_Id = _states(model, inputs, rngs), model.sasrec.item_table()
        rows_NL = inputs.items_BL[inputs.positions_N // inputs.items_BL.shape[1]]
        losses["sasrec"] = SEQUENCE_LOSSES[config.sasrec_loss](hidden_Nd, table_Id, inputs.targets_N, rows_NL, rngs)
    if "retriever" in modules:
        retriever_NI = _retriever_scores(model, inputs, catalogue, rngs)
        losses["retriever"] = softmax_cross_entropy(retriever_NI, inputs.targets_N)
    total = sum(weights[name] * loss for name, loss in losses.items())
    if len(losses) == 2:
        sasrec_NI, retriever_NI = jax.lax.stop_gradient((model.sasrec.score(hidden_Nd, table_Id), retriever_NI))
        total = total + softmax_cross_entropy(model.fusion(sasrec_NI, retriever_NI), inputs.targets_N)
    return StepLosses(total, jax.lax.stop_gradient(losses))


def fused_loss(
    model: UR4Rec, inputs: StepInputs, modules: tuple[str, ...], catalogue: Catalogue, rngs: nnx.Rngs
) -> StepLosses:
    """Cross-entropy of the fused scores, which is the primary loss of both modules.

    A module's own cross-entropy would mislead a schedule: it rises while the modules learn to complement each other.
    A module that does not train has no dropout.
    """
    sasrec_rngs, retriever_rngs = (rngs if name in modules else None for name in ("sasrec", "retriever"))
    sasrec_NI = model.sasrec.score(_states(model, inputs, sasrec_rngs), model.sasrec.item_table())
    retriever_NI = _retriever_scores(model, inputs, catalogue, retriever_rngs)
    total = softmax_cross_entropy(model.fusion(sasrec_NI, retriever_NI), inputs.targets_N)
    return StepLosses(total, dict.fromkeys(MODULES, jax.lax.stop_gradient(total)))


def _states(model: UR4Rec, inputs: StepInputs, rngs: nnx.Rngs | None) -> Array:
    """SASRec's states where a target is, (N, d)."""
    hidden_BLd = model.sasrec(inputs.items_BL, rngs)
    return hidden_BLd.reshape(-1, hidden_BLd.shape[-1])[inputs.positions_N]


def _retriever_scores(model: UR4Rec, inputs: StepInputs, catalogue: Catalogue, rngs: nnx.Rngs | None) -> Array:
    """The retriever's logits where a target is, (N, I)."""
    preferences_BLKd = model.retriever(inputs.items_BL, catalogue, rngs)
    return model.retriever.score(
        preferences_BLKd.reshape(-1, *preferences_BLKd.shape[2:])[inputs.positions_N], catalogue
    )


def _mean(values_N: Array, is_real_N: Array) -> Array:
    return jnp.where(is_real_N, values_N, 0).sum() / is_real_N.sum()
