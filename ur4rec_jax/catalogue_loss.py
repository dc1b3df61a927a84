"""Cross-entropy over the whole catalogue, slice by slice: the logits of all positions are never in memory at once.

What training spends its time on is not the products but the passes over (N, I) arrays that do not fit the cache. Here
the loss and the gradients of a slice of positions are computed while its scores are still in the cache, and only the
gradients of the small factors are kept.

Shapes: N positions with a target (padded), S slices, n positions of a slice, I items, d and e widths, K preference
vectors.
"""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal

from ur4rec_jax.layout import BATCH, DATA, ITEMS, ONE_DEVICE, WHOLE, Layout

CPU_SLICE, ACCELERATOR_SLICE = 2**19, 2**26
"""Logits of a slice: as many as fit a core's caches, and as many as keep an accelerator busy."""
MINIMUM_ROWS = 64
"""The minimum number of rows of a slice, however large the catalogue."""

Factors: TypeAlias = tuple[Array | None, ...]
"""SASRec's states and item table, the retriever's queries and keys, the weights; None where they are not given."""


def catalogue_cross_entropy(
    targets_N: Array,
    *,
    sasrec: tuple[Array, Array] | None = None,
    retriever: tuple[Array, Array] | None = None,
    weights_2: Array | None = None,
    layout: Layout = ONE_DEVICE,
    smoothing: float = 0.0,
) -> Array:
    """Mean negative log-probability of the targets under a softmax over the whole catalogue; padding does not count.

    The logits are those of SASRec, states @ tableᵀ, or of the retriever, log Σ_k exp(queries_k @ keysᵀ), or of both,
    their sum weighted by ``weights_2``. It equals `ur4rec_jax.losses.softmax_cross_entropy` of them up to rounding, and
    has first derivatives only. The products are of the factors' type, everything else is float32.

    Slices are sized for JAX's default backend.

    Args:
        targets_N: The targets; I, the padding index, where padded.
        sasrec: States, (N, d), and the item table, (I, d).
        retriever: Preference vectors over τ, (N, K, e), and the items' keys, (I, e).
        weights_2: The weights of the two; given if and only if both are.
        layout: Where the states (by position) and the table and keys (by item) are.
        smoothing: The share of a target's probability that all items have in equal parts.
    """
    factors = (*(sasrec or (None, None)), *(retriever or (None, None)), weights_2)
    return _catalogue_cross_entropy(layout, smoothing, targets_N, factors)


def smoothed(is_target_nI: Array, items_I: Array, smoothing: float, layout: Layout) -> Array:
    """The wanted probability of each item, (n, I): that of the target, but for its share that all items have.

    Args:
        is_target_nI: Where the targets are.
        items_I: The items; those that only fill up a table have no share.
        smoothing: The share.
        layout: Where the items are.
    """
    num_items = layout.count_items(len(items_I))
    return (1 - smoothing) * is_target_nI + jnp.where(items_I < num_items, smoothing / num_items, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _catalogue_cross_entropy(layout: Layout, smoothing: float, targets_N: Array, factors: Factors) -> Array:
    """The loss where nothing is differentiated."""
    return _loss_and_gradients(layout, smoothing, targets_N, factors, (False,) * len(factors))[0]


def _forward(
    layout: Layout, smoothing: float, targets_N: CustomVJPPrimal, factors: tuple[CustomVJPPrimal | None, ...]
) -> tuple[Array, Factors]:
    """The gradients are computed with the loss; backward only scales them."""
    needed = tuple(factor is not None and factor.perturbed for factor in factors)
    values = tuple(None if factor is None else factor.value for factor in factors)
    return _loss_and_gradients(layout, smoothing, targets_N.value, values, needed)


def _backward(layout: Layout, smoothing: float, gradients: Factors, gradient: Array) -> tuple[None, Factors]:
    """The gradients of the factors and the weights."""
    return None, tuple(None if saved is None else (gradient * saved).astype(saved.dtype) for saved in gradients)


# With symbolic zeros, forward learns which factors are differentiated.
_catalogue_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss_and_gradients(
    layout: Layout, smoothing: float, targets_N: Array, factors: Factors, needed: tuple[bool, ...]
) -> tuple[Array, Factors]:
    """The mean loss, and its gradient by each factor that needs one."""
    specs = (BATCH, layout.table, BATCH, layout.table, WHOLE)
    compute = layout.over_catalogue(partial(_of_part, layout, smoothing, needed), (BATCH, specs), (WHOLE, specs))
    found: tuple[Array, Factors] = compute(targets_N, factors)
    return found


def _of_part(
    layout: Layout, smoothing: float, needed: tuple[bool, ...], targets_N: Array, factors: Factors
) -> tuple[Array, Factors]:
    """The same, on a device with its part of the positions and of the items."""
    hidden_Nd, table_Id, queries_NKe, keys_Ie, weights_2 = factors
    given = [factor for factor in factors if factor is not None]
    kind = jnp.result_type(jnp.float32, *given)
    table = given[1]  # or the keys: both factors of a module are given or neither is
    num_items = layout.count_items(len(table))
    _, need_table, _, need_keys, need_weights = needed
    shared = ((table_Id, need_table), (keys_Ie, need_keys), (weights_2, need_weights))
    start = tuple(jnp.zeros(each.shape, kind) if need and each is not None else None for each, need in shared)

    def add_slice(
        sums: tuple[Array, Factors], slices: tuple[Array, Array | None, Array | None]
    ) -> tuple[tuple[Array, Factors], Factors]:
        """Add a slice's part of the loss and of the gradients that slices share; the gradients of its rows."""
        targets_n, hidden_nd, queries_nKe = slices
        here = (hidden_nd, table_Id, queries_nKe, keys_Ie, weights_2)
        loss, gradients = _slice(layout, smoothing, targets_n, *here, needed)
        by_hidden_nd, by_table_Id, by_queries_nKe, by_keys_Ie, by_weights_2 = gradients
        pairs = zip(sums[1], (by_table_Id, by_keys_Ie, by_weights_2), strict=True)
        added = tuple(None if total is None or each is None else total + each for total, each in pairs)
        return (sums[0] + loss, added), (by_hidden_nd, by_queries_nKe)

    slices = _slices(targets_N, hidden_Nd, queries_NKe, len(table), padding=num_items)
    sums, rows = jax.lax.scan(add_slice, (jnp.zeros((), kind), start), slices)
    loss, (by_table_Id, by_keys_Ie) = layout.sum((sums[0], sums[1][:2]), DATA)
    by_hidden_Nd, by_queries_NKe = layout.sum(tuple(_rejoin(each, len(targets_N)) for each in rows), ITEMS)
    by_weights_2 = layout.sum(sums[1][2], DATA, ITEMS)
    num_targets = layout.sum((targets_N < num_items).sum(), DATA)
    found = (by_hidden_Nd, by_table_Id, by_queries_NKe, by_keys_Ie, by_weights_2)
    gradients = tuple(
        None if each is None or factor is None else (each / num_targets).astype(factor.dtype)
        for each, factor in zip(found, factors, strict=True)
    )
    return loss / num_targets, gradients


def _slice(
    layout: Layout,
    smoothing: float,
    targets_n: Array,
    hidden_nd: Array | None,
    table_Id: Array | None,
    queries_nKe: Array | None,
    keys_Ie: Array | None,
    weights_2: Array | None,
    needed: tuple[bool, ...],
) -> tuple[Array, Factors]:
    """The summed loss of a slice, and its gradient by each factor that needs one."""
    parts: list[_SasrecLogits | _RetrieverLogits] = []
    if hidden_nd is not None and table_Id is not None:
        parts.append(_SasrecLogits(hidden_nd, table_Id))
    if queries_nKe is not None and keys_Ie is not None:
        parts.append(_RetrieverLogits(queries_nKe, keys_Ie))
    logits_nI, weights = parts[0].logits_nI, None if weights_2 is None else _widen(weights_2)
    if weights is not None:
        logits_nI = weights[0] * parts[0].logits_nI + weights[1] * parts[1].logits_nI
    items_I = jnp.arange(logits_nI.shape[1]) + layout.first_item(logits_nI.shape[1])
    is_target_nI = targets_n[:, None] == items_I
    is_real_n = targets_n < layout.count_items(len(items_I))
    logits_nI = layout.without_padding(logits_nI, items_I)
    log_total_n = layout.logsumexp(logits_nI)
    if smoothing:
        wanted_nI = smoothed(is_target_nI, items_I, smoothing, layout)
        wanted_n = (wanted_nI * logits_nI).sum(1)
    else:
        wanted_nI, wanted_n = is_target_nI, jnp.where(is_target_nI, logits_nI, 0).sum(1)
    losses_n = log_total_n - layout.sum(wanted_n, ITEMS)
    by_logits_nI = jnp.where(is_real_n[:, None], jnp.exp(logits_nI - log_total_n[:, None]) - wanted_nI, 0)
    by_weights_2 = jnp.stack([(by_logits_nI * part.logits_nI).sum() for part in parts]) if needed[4] else None
    by_sasrec: Factors = (None, None)
    by_retriever: Factors = (None, None)
    for index, part in enumerate(parts):
        weight = 1.0 if weights is None else weights[index]
        if isinstance(part, _SasrecLogits):
            by_sasrec = part.gradients(by_logits_nI, weight, needed[:2])
        else:
            by_retriever = part.gradients(by_logits_nI, weight, needed[2:4])
    return jnp.where(is_real_n, losses_n, 0).sum(), (*by_sasrec, *by_retriever, by_weights_2)


class _SasrecLogits:
    """SASRec's logits of a slice, and the gradients through them."""

    def __init__(self, hidden_nd: Array, table_Id: Array) -> None:
        self.hidden_nd, self.table_Id = hidden_nd, table_Id
        self.logits_nI = _widen(hidden_nd @ table_Id.T)

    def gradients(self, by_logits_nI: Array, weight: float | Array, needed: tuple[bool, ...]) -> Factors:
        """By the states and the table, those that are needed."""
        need_hidden, need_table = needed
        return (
            weight * _product(by_logits_nI, self.table_Id) if need_hidden else None,
            weight * _product(by_logits_nI.T, self.hidden_nd) if need_table else None,
        )


class _RetrieverLogits:
    """The retriever's logits of a slice, and the gradients through them."""

    def __init__(self, queries_nKe: Array, keys_Ie: Array) -> None:
        self.queries_Kne, self.keys_Ie = queries_nKe.swapaxes(0, 1), keys_Ie
        self.exponentials = [jnp.exp(_widen(query_ne @ keys_Ie.T)) for query_ne in self.queries_Kne]
        self.sum_nI = sum(self.exponentials[1:], self.exponentials[0])
        self.logits_nI = jnp.log(self.sum_nI)

    def gradients(self, by_logits_nI: Array, weight: float | Array, needed: tuple[bool, ...]) -> Factors:
        """By the queries and the keys, those that are needed."""
        need_queries, need_keys = needed
        by_products = [exponential_nI * (by_logits_nI / self.sum_nI) for exponential_nI in self.exponentials]
        by_queries_nKe = by_keys_Ie = None
        if need_queries:
            by_queries_nKe = weight * jnp.stack([_product(by_nI, self.keys_Ie) for by_nI in by_products], axis=1)
        if need_keys:
            pairs = zip(by_products, self.queries_Kne, strict=True)
            first, *rest = (_product(by_nI.T, query_ne) for by_nI, query_ne in pairs)
            by_keys_Ie = weight * sum(rest, first)
        return by_queries_nKe, by_keys_Ie


def _slices(
    targets_N: Array, hidden_Nd: Array | None, queries_NKe: Array | None, num_logits: int, *, padding: int
) -> tuple[Array, Array | None, Array | None]:
    """Targets, states and queries cut into slices of one size, the last one padded: (S, n, ...)."""
    num_rows = len(targets_N)
    maximum = max(MINIMUM_ROWS, (CPU_SLICE if jax.default_backend() == "cpu" else ACCELERATOR_SLICE) // num_logits)
    count = max(1, -(-num_rows // maximum))
    cut = partial(_cut, count=count, size=-(-num_rows // count))
    hidden, queries = (None if each is None else cut(each) for each in (hidden_Nd, queries_NKe))
    return cut(targets_N, padding=padding), hidden, queries


def _cut(array: Array, *, count: int, size: int, padding: int = 0) -> Array:
    widths = [(0, count * size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, widths, constant_values=padding).reshape(count, size, *array.shape[1:])


def _rejoin(slices: Array | None, num_rows: int) -> Array | None:
    return None if slices is None else slices.reshape(-1, *slices.shape[2:])[:num_rows]


def _product(left: Array, right: Array) -> Array:
    """A product of the right factor's type, summed in float32 at least."""
    return jnp.matmul(left.astype(right.dtype), right, preferred_element_type=left.dtype)


def _widen(array: Array) -> Array:
    """In float32 at least."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
