"""Scores of each position's target and of the negatives that all share; see `ur4rec.training.sampling`.

Shapes: N positions with a target (padded), d width, K preference vectors, J items of the step with the padding, C
negatives, S = C + 1 candidates of a position: its target and the negatives.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ur4rec.training import arrays
from ur4rec.training.sampling import HIT
from ur4rec_jax.layout import ONE_DEVICE, Layout
from ur4rec_jax.retriever import PreferenceRetriever


def sasrec_scores(
    hidden_Nd: Array, table_Jd: Array, targets_N: Array, sample: arrays.Sample[Array], layout: Layout = ONE_DEVICE
) -> Array:
    """SASRec's logits of the candidates, (N, S)."""
    positive_N1 = (hidden_Nd * layout.take(table_Jd, targets_N)).sum(1, keepdims=True)
    negative_NC = hidden_Nd @ layout.take(table_Jd, sample.candidates_C, of_batch=False).T
    return jnp.concatenate([positive_N1.astype(jnp.float32), negative_NC.astype(jnp.float32)], axis=1)


def retriever_scores(
    retriever: PreferenceRetriever,
    preferences_NKd: Array,
    keys_Id: Array,
    targets_N: Array,
    sample: arrays.Sample[Array],
) -> Array:
    """The retriever's logits of the candidates, (N, S)."""
    layout = retriever.layout
    keys_N1d = layout.take(keys_Id, targets_N, mode="clip")[:, None]
    products_NK = (retriever.scale(preferences_NKd) * keys_N1d).sum(2).astype(jnp.float32)
    positive_N1 = jax.nn.logsumexp(products_NK, axis=1, keepdims=True)
    negative_NC = retriever.score(preferences_NKd, layout.take(keys_Id, sample.candidates_C, of_batch=False))
    return jnp.concatenate([positive_N1, negative_NC], axis=1)


def corrections(targets_N: Array, sample: arrays.Sample[Array]) -> Array:
    """What is added to the candidates' logits, (N, S): 0 to the target's; a negative that is it drops out."""
    is_hit_NC = sample.candidates_C == targets_N[:, None]
    offsets_NC = jnp.where(is_hit_NC, HIT, sample.offsets_C)
    return jnp.concatenate([jnp.zeros((len(targets_N), 1), offsets_NC.dtype), offsets_NC], axis=1)


def sampled_cross_entropy(
    scores_NS: Array, targets_N: Array, sample: arrays.Sample[Array], smoothing: float = 0.0
) -> Array:
    """Mean negative log-probability of the targets, as the sample estimates it; padding does not count.

    Args:
        scores_NS: The logits of the candidates.
        targets_N: The targets.
        sample: The candidates.
        smoothing: The share of a target's probability that its candidates have in equal parts, itself among them; one
            that was drawn twice counts twice, a negative that is the target not at all.
    """
    wanted_N = scores_NS[:, 0]
    if smoothing:
        counts_NS = jnp.pad(sample.candidates_C != targets_N[:, None], ((0, 0), (1, 0)), constant_values=True)
        mean_N = (scores_NS * counts_NS).sum(1) / counts_NS.sum(1)
        wanted_N = (1 - smoothing) * wanted_N + smoothing * mean_N
    losses_N = jax.nn.logsumexp(scores_NS + corrections(targets_N, sample), axis=1) - wanted_N
    is_target_N = targets_N < len(sample.items_J) - 1
    return jnp.where(is_target_N, losses_N, 0).sum() / is_target_N.sum()
