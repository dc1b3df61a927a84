"""Cross-entropy over the whole catalogue, slice by slice: the logits of all positions are never in memory at once.

What training spends its time on is not the products but the passes over (N, I) arrays that do not fit the cache. Here
the loss and the gradients of a slice of positions are computed while its scores are still in the cache, and only the
gradients of the small factors are kept.

Where the catalogue is in parts, each process has the logits of its own items; two numbers per position are shared, and
the sums of the gradients of what is replicated (see `ur4rec_torch.item_shards`).

Shapes: N positions with a target, n of a slice, I items, d and e widths, K preference vectors.
"""

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ur4rec_torch.item_shards import ItemShard

CPU_SLICE, ACCELERATOR_SLICE = 2**17, 2**26
"""Logits of a slice: as many as fit a core's cache, and as many as keep an accelerator busy."""
MINIMUM_ROWS = 64
"""The minimum number of rows of a slice, however large the catalogue."""

Factors: TypeAlias = tuple[Tensor | None, ...]
"""SASRec's states and item table, the retriever's queries and keys, the weights; None where they are not given."""


def catalogue_cross_entropy(
    targets_N: Tensor,
    *,
    sasrec: tuple[Tensor, Tensor] | None = None,
    retriever: tuple[Tensor, Tensor] | None = None,
    weights_2: Tensor | None = None,
    shard: ItemShard | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean negative log-probability of the targets under a softmax over the whole catalogue.

    The logits are those of SASRec, states @ tableᵀ, or of the retriever, log Σ_k exp(queries_k @ keysᵀ), or of both,
    their sum weighted by ``weights_2``. It equals `torch.nn.functional.cross_entropy` of them up to rounding, and has
    first derivatives only. Under autocast the products are of its type, everything else is float32.

    Args:
        targets_N: The targets.
        sasrec: States, (N, d), and the item table, (I, d).
        retriever: Preference vectors over τ, (N, K, e), and the items' keys, (I, e).
        weights_2: The weights of the two; given if and only if both are.
        shard: Of which items the table and the keys are; None is all.
        smoothing: The share of a target's probability that all items have in equal parts.
    """
    factors = _as_computed(targets_N, *(sasrec or (None, None)), *(retriever or (None, None)))
    compute = _CatalogueCrossEntropy.apply
    loss: Tensor = compute(shard, smoothing, targets_N, *factors, weights_2)  # type: ignore[no-untyped-call]
    return loss


def catalogue_log_probabilities(
    targets_N: Tensor,
    *,
    sasrec: tuple[Tensor, Tensor] | None = None,
    retriever: tuple[Tensor, Tensor] | None = None,
    shard: ItemShard | None = None,
) -> Tensor:
    """The log-probability of each target under a module's softmax over the whole catalogue, (N,).

    As `catalogue_cross_entropy`, with one of the two; the backward pass computes the logits again.
    """
    factors = _as_computed(targets_N, *(sasrec or (None, None)), *(retriever or (None, None)))
    found: Tensor = _CatalogueLogProbabilities.apply(shard, targets_N, *factors)  # type: ignore[no-untyped-call]
    return found


def _as_computed(targets_N: Tensor, *factors: Tensor | None) -> Factors:
    """The factors in the type of autocast, where it is on."""
    device = targets_N.device.type
    if not torch.is_autocast_enabled(device):
        return factors
    kind = torch.get_autocast_dtype(device)
    return tuple(None if factor is None else factor.to(kind) for factor in factors)


class _Context(Protocol):
    """What autograd keeps between the two passes."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: Factors
    dtypes: tuple[torch.dtype | None, ...]
    shard: ItemShard | None

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _CatalogueCrossEntropy(torch.autograd.Function):
    """The gradients are computed with the loss; backward only scales them."""

    @staticmethod
    def forward(
        ctx: _Context, shard: ItemShard | None, smoothing: float, targets_N: Tensor, *factors: Tensor | None
    ) -> Tensor:
        """The loss."""
        with torch.autocast(targets_N.device.type, enabled=False):
            losses_N, gradients = _losses_and_gradients(
                targets_N, factors, needed=ctx.needs_input_grad[3:], shard=shard, smoothing=smoothing
            )
        for gradient in gradients:
            if gradient is not None:
                gradient.div_(len(targets_N))
        ctx.save_for_backward(*gradients)
        ctx.dtypes = tuple(None if factor is None else factor.dtype for factor in factors)
        return losses_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> Factors:
        """The gradients of the factors and the weights."""
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, None, None, *(None if saved is None else (gradient * saved).to(dtype) for saved, dtype in found)


class _CatalogueLogProbabilities(torch.autograd.Function):
    """The gradients are computed in backward, which knows how much each position counts."""

    @staticmethod
    def forward(ctx: _Context, shard: ItemShard | None, targets_N: Tensor, *factors: Tensor | None) -> Tensor:
        """The log-probabilities."""
        with torch.autocast(targets_N.device.type, enabled=False):
            losses_N, _ = _losses_and_gradients(targets_N, (*factors, None), needed=(False,) * 5, shard=shard)
        ctx.save_for_backward(targets_N, *factors)
        ctx.shard = shard
        return -losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient_N: Tensor) -> Factors:
        """The gradients of the factors."""
        targets_N, *factors = ctx.saved_tensors
        assert targets_N is not None
        needed = (*ctx.needs_input_grad[2:], False)
        with torch.autocast(targets_N.device.type, enabled=False):
            _, gradients = _losses_and_gradients(
                targets_N, (*factors, None), needed=needed, shard=ctx.shard, counts_N=-gradient_N
            )
        found = zip(gradients, factors, strict=False)
        return None, None, *(None if by is None or of is None else by.to(of.dtype) for by, of in found)


def _losses_and_gradients(
    targets_N: Tensor,
    factors: Factors,
    *,
    needed: tuple[bool, ...],
    shard: ItemShard | None,
    counts_N: Tensor | None = None,
    smoothing: float = 0.0,
) -> tuple[Tensor, Factors]:
    """The losses, and the gradients of their sum, weighted by ``counts_N``, by each factor that needs one."""
    hidden_Nd, table_Id, queries_NKe, keys_Ie, weights_2 = factors
    gradients = tuple(
        _widen(torch.zeros_like(factor)) if need and factor is not None else None
        for factor, need in zip(factors, needed, strict=True)
    )
    by_hidden_Nd, by_table_Id, by_queries_NKe, by_keys_Ie, by_weights_2 = gradients
    parts: list[_SasrecLogits | _RetrieverLogits] = []
    if hidden_Nd is not None and table_Id is not None:
        parts.append(_SasrecLogits(hidden_Nd, table_Id, by_hidden_Nd, by_table_Id))
    if queries_NKe is not None and keys_Ie is not None:
        parts.append(_RetrieverLogits(queries_NKe, keys_Ie, by_queries_NKe, by_keys_Ie))
    losses = []
    num_items = parts[0].num_items if shard is None else shard.size  # all parts must take the same slices
    for here in _slices(len(targets_N), num_items, targets_N.device.type):
        targets_n1 = targets_N[here, None]
        scores = [part.forward(here) for part in parts]
        logits_nI = scores[0]
        if weights_2 is not None:
            logits_nI = (scores[0] * weights_2[0]).addcmul_(scores[1], weights_2[1])
        log_total_n1, wanted_n1 = _normalise(logits_nI, targets_n1, shard, smoothing)
        losses.append((log_total_n1 - wanted_n1)[:, 0])
        if not any(needed):
            continue
        by_logits_nI = logits_nI.sub_(log_total_n1).exp_()  # the probabilities, less those that are wanted
        _subtract_at(by_logits_nI, targets_n1, 1 - smoothing, shard)
        if smoothing:
            by_logits_nI.sub_(smoothing / (num_items if shard is None else shard.num_items))
        if counts_N is not None:
            by_logits_nI.mul_(counts_N[here, None])
        if by_weights_2 is not None:
            for index, scores_nI in enumerate(scores):
                by_weights_2[index] += torch.dot(by_logits_nI.flatten(), scores_nI.flatten())
        for index, part in enumerate(parts):
            part.backward(here, by_logits_nI, 1.0 if weights_2 is None else weights_2[index])
    if shard is not None:
        shard.add_up(*(each for each in (by_hidden_Nd, by_queries_NKe, by_weights_2) if each is not None))
    return torch.cat(losses), gradients


def _normalise(
    logits_nI: Tensor, targets_n1: Tensor, shard: ItemShard | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum of all items' exponentials, (n, 1), and the mean logit by the wanted probabilities.

    That is the target's own logit, but for its share that smoothing gives to all items.
    """
    sums = [logits_nI.sum(1, keepdim=True)] if smoothing else []
    if shard is not None:
        log_total_n1, own_n1, *sums = shard.normalise(logits_nI, targets_n1, *sums)
    else:
        log_total_n1, own_n1 = logits_nI.logsumexp(1, keepdim=True), logits_nI.gather(1, targets_n1)
    if smoothing:
        num_items = logits_nI.shape[1] if shard is None else shard.num_items
        own_n1 = (1 - smoothing) * own_n1 + smoothing / num_items * sums[0]
    return log_total_n1, own_n1


def _subtract_at(probabilities_nI: Tensor, targets_n1: Tensor, amount: float, shard: ItemShard | None) -> None:
    """Subtract an amount where the target is, if it is one of the items."""
    if shard is None:
        probabilities_nI.scatter_(1, targets_n1, probabilities_nI.gather(1, targets_n1) - amount)
        return
    rows_n1, is_own_n1 = shard.find(targets_n1)
    rows_n1 = rows_n1.clamp(max=probabilities_nI.shape[1] - 1)
    own_n1 = probabilities_nI.gather(1, rows_n1) - amount * is_own_n1.to(probabilities_nI.dtype)
    probabilities_nI.scatter_(1, rows_n1, own_n1)


class _SasrecLogits:
    """SASRec's logits, slice by slice, and the gradients through them."""

    def __init__(
        self, hidden_Nd: Tensor, table_Id: Tensor, by_hidden_Nd: Tensor | None, by_table_Id: Tensor | None
    ) -> None:
        self.hidden_Nd, self.table_Id = hidden_Nd, table_Id
        self.by_hidden_Nd, self.by_table_Id = by_hidden_Nd, by_table_Id
        self.num_items = len(table_Id)

    def forward(self, here: slice) -> Tensor:
        """The logits of a slice."""
        return _widen(self.hidden_Nd[here] @ self.table_Id.T)

    def backward(self, here: slice, by_logits_nI: Tensor, weight: float | Tensor) -> None:
        """Write the slice's part of the gradients that are needed."""
        by_product_nI = by_logits_nI.to(self.table_Id.dtype)
        if self.by_hidden_Nd is not None:
            self.by_hidden_Nd[here] = weight * (by_product_nI @ self.table_Id)
        if self.by_table_Id is not None:
            _add_product(self.by_table_Id, by_product_nI.T, weight * self.hidden_Nd[here])


class _RetrieverLogits:
    """The retriever's logits, slice by slice, and the gradients through them."""

    def __init__(
        self, queries_NKe: Tensor, keys_Ie: Tensor, by_queries_NKe: Tensor | None, by_keys_Ie: Tensor | None
    ) -> None:
        self.queries_NKe, self.keys_Ie = queries_NKe, keys_Ie
        self.by_queries_NKe, self.by_keys_Ie = by_queries_NKe, by_keys_Ie
        self.num_items = len(keys_Ie)
        self.exponentials: list[Tensor] = []

    def forward(self, here: slice) -> Tensor:
        """The logits of a slice, whose exponentials are kept for `backward`."""
        self.exponentials = [_widen(query_ne @ self.keys_Ie.T).exp_() for query_ne in self.queries_NKe[here].unbind(1)]
        self.sum_nI = sum(self.exponentials[1:], self.exponentials[0])
        return self.sum_nI.log()

    def backward(self, here: slice, by_logits_nI: Tensor, weight: float | Tensor) -> None:
        """Write the slice's part of the gradients that are needed; it overwrites ``by_logits_nI``."""
        if self.by_queries_NKe is None and self.by_keys_Ie is None:
            return
        by_sum_nI = by_logits_nI.div_(self.sum_nI)
        for index, exponential_nI in enumerate(self.exponentials):
            by_product_nI = exponential_nI.mul_(by_sum_nI).to(self.keys_Ie.dtype)
            if self.by_queries_NKe is not None:
                self.by_queries_NKe[here, index] = weight * (by_product_nI @ self.keys_Ie)
            if self.by_keys_Ie is not None:
                _add_product(self.by_keys_Ie, by_product_nI.T, weight * self.queries_NKe[here, index])


def _slices(num_rows: int, num_items: int, device: str) -> Iterator[slice]:
    size = max(MINIMUM_ROWS, (CPU_SLICE if device == "cpu" else ACCELERATOR_SLICE) // num_items)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product of the left factor's type, in place where that is the total's."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right.to(left.dtype)


def _widen(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
