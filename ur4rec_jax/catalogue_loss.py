"""Cross-entropy over the whole catalogue, slice by slice: the logits of all positions are never there at once.

What training spends is not the products but passes over (N, I) arrays that do not fit the cache. Here a slice of
positions is scored, its loss and its gradients are computed while it is at hand, and only the gradients of the small
factors are kept.

Shapes: N positions with a target (and some that fill up), S slices, n positions of a slice, I items, d and e widths,
K preference vectors.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

CPU_SLICE, ACCELERATOR_SLICE = 2**19, 2**26
"""Logits of a slice: as many as a core's caches make quick work of, and as many as keep an accelerator busy."""
LEAST_ROWS = 64
"""Of a slice, however large the catalogue."""

Factors = tuple[Array | None, ...]
"""SASRec's states and item table, the retriever's queries and keys, the weights; None where they are not given."""


def catalogue_cross_entropy(
    targets_N: Array,
    *,
    sasrec: tuple[Array, Array] | None = None,
    retriever: tuple[Array, Array] | None = None,
    weights_2: Array | None = None,
) -> Array:
    """Mean negative log-probability of the targets under a softmax over the whole catalogue; padding does not count.

    The logits are those of SASRec, states @ tableᵀ, or of the retriever, log Σ_k exp(queries_k @ keysᵀ), or of both,
    their sum weighted by ``weights_2``. It equals `ur4rec_jax.losses.softmax_cross_entropy` of them up to rounding, and
    has first derivatives only. The products are of the factors' type, all else is of float32.

    Slices are sized for JAX's default backend.

    Args:
        targets_N: The targets; I, the padding index, where filled up.
        sasrec: States, (N, d), and the item table, (I, d).
        retriever: Preference vectors over τ, (N, K, e), and the items' keys, (I, e).
        weights_2: The weights of the two; given if and only if both are.
    """
    return _catalogue_cross_entropy(targets_N, (*(sasrec or (None, None)), *(retriever or (None, None)), weights_2))


@jax.custom_vjp
def _catalogue_cross_entropy(targets_N: Array, factors: Factors) -> Array:
    """The loss where nothing is differentiated."""
    return _loss_and_gradients(targets_N, *factors, needed=(False,) * len(factors))[0]


def _forward(targets_N: Any, factors: Any) -> tuple[Array, Factors]:
    """The gradients are computed with the loss; backward only scales them."""
    needed = tuple(factor is not None and factor.perturbed for factor in factors)
    values = (None if factor is None else factor.value for factor in factors)
    return _loss_and_gradients(targets_N.value, *values, needed=needed)


def _backward(gradients: Factors, gradient: Array) -> tuple[None, Factors]:
    """What flows to the factors and the weights."""
    return None, tuple(None if saved is None else (gradient * saved).astype(saved.dtype) for saved in gradients)


# With symbolic zeros, forward is told which factors are differentiated.
_catalogue_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss_and_gradients(
    targets_N: Array,
    hidden_Nd: Array | None,
    table_Id: Array | None,
    queries_NKe: Array | None,
    keys_Ie: Array | None,
    weights_2: Array | None,
    *,
    needed: tuple[bool, ...],
) -> tuple[Array, Factors]:
    """The mean loss, and its gradient by each factor that needs one."""
    factors = (hidden_Nd, table_Id, queries_NKe, keys_Ie, weights_2)
    num_items = len(keys_Ie if table_Id is None else table_Id)
    kind = jnp.result_type(jnp.float32, *(factor for factor in factors if factor is not None))
    _, need_table, _, need_keys, need_weights = needed
    shared = ((table_Id, need_table), (keys_Ie, need_keys), (weights_2, need_weights))
    start = jnp.zeros((), kind), *(jnp.zeros(factor.shape, kind) if need else None for factor, need in shared)

    def add_slice(sums: tuple[Any, ...], slices: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, Any]]:
        """Add what a slice has to the loss and to the gradients that slices share; its rows' gradients."""
        targets_n, hidden_nd, queries_nKe = slices
        here = (hidden_nd, table_Id, queries_nKe, keys_Ie, weights_2)
        loss, by_hidden_nd, by_table_Id, by_queries_nKe, by_keys_Ie, by_weights_2 = _slice(targets_n, *here, needed)
        found = (loss, by_table_Id, by_keys_Ie, by_weights_2)
        sums = tuple(None if each is None else total + each for total, each in zip(sums, found, strict=True))
        return sums, (by_hidden_nd, by_queries_nKe)

    slices = _slices(targets_N, hidden_Nd, queries_NKe, num_items)
    (loss, by_table_Id, by_keys_Ie, by_weights_2), rows = jax.lax.scan(add_slice, start, slices)
    by_hidden_Nd, by_queries_NKe = (_rejoin(each, len(targets_N)) for each in rows)
    num_targets = (targets_N < num_items).sum()
    found = (by_hidden_Nd, by_table_Id, by_queries_NKe, by_keys_Ie, by_weights_2)
    gradients = tuple(
        None if each is None else (each / num_targets).astype(factor.dtype)
        for each, factor in zip(found, factors, strict=True)
    )
    return loss / num_targets, gradients


def _slice(
    targets_n: Array,
    hidden_nd: Array | None,
    table_Id: Array | None,
    queries_nKe: Array | None,
    keys_Ie: Array | None,
    weights_2: Array | None,
    needed: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """The summed loss of a slice, and its gradient by each factor that needs one."""
    need_hidden, need_table, need_queries, need_keys, need_weights = needed
    sasrec_weight, retriever_weight = (1.0, 1.0) if weights_2 is None else _widen(weights_2)
    by_hidden_nd = by_table_Id = by_queries_nKe = by_keys_Ie = by_weights_2 = None
    if table_Id is not None:
        sasrec_nI = logits_nI = _widen(hidden_nd @ table_Id.T)
    if keys_Ie is not None:
        parts = [jnp.exp(_widen(query_ne @ keys_Ie.T)) for query_ne in queries_nKe.swapaxes(0, 1)]
        sum_nI = sum(parts)
        retriever_nI = logits_nI = jnp.log(sum_nI)
    if weights_2 is not None:
        logits_nI = sasrec_weight * sasrec_nI + retriever_weight * retriever_nI
    is_target_nI = targets_n[:, None] == jnp.arange(logits_nI.shape[1])
    is_real_n = targets_n < logits_nI.shape[1]
    log_total_n = jax.nn.logsumexp(logits_nI, axis=1)
    losses_n = log_total_n - jnp.where(is_target_nI, logits_nI, 0).sum(1)
    by_logits_nI = jnp.where(is_real_n[:, None], jnp.exp(logits_nI - log_total_n[:, None]) - is_target_nI, 0)
    if need_weights:
        by_weights_2 = jnp.stack([(by_logits_nI * scores_nI).sum() for scores_nI in (sasrec_nI, retriever_nI)])
    if need_hidden:
        by_hidden_nd = sasrec_weight * _product(by_logits_nI, table_Id)
    if need_table:
        by_table_Id = sasrec_weight * _product(by_logits_nI.T, hidden_nd)
    if need_queries or need_keys:
        by_products = [part_nI * (by_logits_nI / sum_nI) for part_nI in parts]
    if need_queries:
        by_queries_nKe = retriever_weight * jnp.stack([_product(by_nI, keys_Ie) for by_nI in by_products], axis=1)
    if need_keys:
        pairs = zip(by_products, queries_nKe.swapaxes(0, 1), strict=True)
        by_keys_Ie = retriever_weight * sum(_product(by_nI.T, query_ne) for by_nI, query_ne in pairs)
    loss = jnp.where(is_real_n, losses_n, 0).sum()
    return loss, by_hidden_nd, by_table_Id, by_queries_nKe, by_keys_Ie, by_weights_2


def _slices(
    targets_N: Array, hidden_Nd: Array | None, queries_NKe: Array | None, num_items: int
) -> tuple[Array, Array | None, Array | None]:
    """Targets, states and queries cut into slices of one size, the last one filled up: (S, n, ...)."""
    num_rows = len(targets_N)
    most = max(LEAST_ROWS, (CPU_SLICE if jax.default_backend() == "cpu" else ACCELERATOR_SLICE) // num_items)
    count = max(1, -(-num_rows // most))
    cut = partial(_cut, count=count, size=-(-num_rows // count))
    return cut(targets_N, filler=num_items), cut(hidden_Nd), cut(queries_NKe)


def _cut(array: Array | None, *, count: int, size: int, filler: int = 0) -> Array | None:
    if array is None:
        return None
    padding = [(0, count * size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, padding, constant_values=filler).reshape(count, size, *array.shape[1:])


def _rejoin(slices: Array | None, num_rows: int) -> Array | None:
    return None if slices is None else slices.reshape(-1, *slices.shape[2:])[:num_rows]


def _product(left: Array, right: Array) -> Array:
    """A product of the right factor's type, summed in float32 at least."""
    return jnp.matmul(left.astype(right.dtype), right, preferred_element_type=left.dtype)


def _widen(array: Array) -> Array:
    """In float32 at least."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
