"""Cross-entropy over the whole catalogue, slice by slice: the logits of all positions are never there at once.

What training spends is not the products but passes over (N, I) arrays that do not fit the cache. Here a slice of
positions is scored, its loss and its gradients are computed while it is at hand, and only the gradients of the small
factors are kept.

Shapes: N positions with a target, n of a slice, I items, d and e widths, K preference vectors.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_SLICE, ACCELERATOR_SLICE = 2**17, 2**26
"""Logits of a slice: as many as stay in a core's cache, and as many as keep an accelerator busy."""
LEAST_ROWS = 64
"""Of a slice, however large the catalogue."""


def catalogue_cross_entropy(
    targets_N: Tensor,
    *,
    sasrec: tuple[Tensor, Tensor] | None = None,
    retriever: tuple[Tensor, Tensor] | None = None,
    weights_2: Tensor | None = None,
) -> Tensor:
    """Mean negative log-probability of the targets under a softmax over the whole catalogue.

    The logits are those of SASRec, states @ tableᵀ, or of the retriever, log Σ_k exp(queries_k @ keysᵀ), or of both,
    their sum weighted by ``weights_2``. It equals `torch.nn.functional.cross_entropy` of them up to rounding, and has
    first derivatives only. Under autocast the products are of its type, all else is of float32.

    Args:
        targets_N: The targets.
        sasrec: States, (N, d), and the item table, (I, d).
        retriever: Preference vectors over τ, (N, K, e), and the items' keys, (I, e).
        weights_2: The weights of the two; given if and only if both are.
    """
    factors = (*(sasrec or (None, None)), *(retriever or (None, None)))
    device = targets_N.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        factors = tuple(None if factor is None else factor.to(kind) for factor in factors)
    loss: Tensor = _CatalogueCrossEntropy.apply(targets_N, *factors, weights_2)
    return loss


class _CatalogueCrossEntropy(torch.autograd.Function):
    """The gradients are computed with the loss; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, targets_N: Tensor, *factors: Tensor | None) -> Tensor:
        """The loss."""
        with torch.autocast(targets_N.device.type, enabled=False):
            loss, gradients = _loss_and_gradients(targets_N, *factors, needed=ctx.needs_input_grad[1:])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if factor is None else factor.dtype for factor in factors]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """What flows to the factors and the weights."""
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, *(None if saved is None else (gradient * saved).to(dtype) for saved, dtype in found)


def _loss_and_gradients(
    targets_N: Tensor,
    hidden_Nd: Tensor | None,
    table_Id: Tensor | None,
    queries_NKe: Tensor | None,
    keys_Ie: Tensor | None,
    weights_2: Tensor | None,
    *,
    needed: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean loss, and its gradient by each factor that needs one."""
    factors = (hidden_Nd, table_Id, queries_NKe, keys_Ie, weights_2)
    gradients = [
        _widen(torch.zeros_like(factor)) if need else None for factor, need in zip(factors, needed, strict=True)
    ]
    by_hidden_Nd, by_table_Id, by_queries_NKe, by_keys_Ie, by_weights_2 = gradients
    sasrec_weight, retriever_weight = (1.0, 1.0) if weights_2 is None else weights_2
    losses = []
    for here in _slices(len(targets_N), len(keys_Ie if table_Id is None else table_Id), targets_N.device.type):
        targets_n1 = targets_N[here, None]
        if table_Id is not None:
            sasrec_nI = logits_nI = _widen(hidden_Nd[here] @ table_Id.T)
        if keys_Ie is not None:
            parts = [_widen(query_ne @ keys_Ie.T).exp_() for query_ne in queries_NKe[here].unbind(1)]
            sum_nI = sum(parts[1:], parts[0])
            retriever_nI = logits_nI = sum_nI.log()
        if weights_2 is not None:
            logits_nI = (sasrec_nI * sasrec_weight).addcmul_(retriever_nI, retriever_weight)
        log_total_n1 = logits_nI.logsumexp(1, keepdim=True)
        losses.append((log_total_n1 - logits_nI.gather(1, targets_n1))[:, 0])
        if not any(needed):
            continue
        by_logits_nI = logits_nI.sub_(log_total_n1).exp_()  # the probabilities, less 1 where the target is
        by_logits_nI.scatter_(1, targets_n1, by_logits_nI.gather(1, targets_n1) - 1)
        if by_weights_2 is not None:
            for index, scores_nI in enumerate((sasrec_nI, retriever_nI)):
                by_weights_2[index] += torch.dot(by_logits_nI.flatten(), scores_nI.flatten())
        if by_hidden_Nd is not None:
            by_sasrec_nI = by_logits_nI.to(table_Id.dtype)
            by_hidden_Nd[here] = sasrec_weight * (by_sasrec_nI @ table_Id)
            _add_product(by_table_Id, by_sasrec_nI.T, sasrec_weight * hidden_Nd[here])
        if by_queries_NKe is not None:
            by_sum_nI = by_logits_nI.div_(sum_nI)
            for index, part_nI in enumerate(parts):
                by_product_nI = part_nI.mul_(by_sum_nI).to(keys_Ie.dtype)
                by_queries_NKe[here, index] = retriever_weight * (by_product_nI @ keys_Ie)
                _add_product(by_keys_Ie, by_product_nI.T, retriever_weight * queries_NKe[here, index])
    for gradient in gradients:
        if gradient is not None:
            gradient.div_(len(targets_N))
    return torch.cat(losses).mean(), gradients


def _slices(num_rows: int, num_items: int, device: str) -> Iterator[slice]:
    size = max(LEAST_ROWS, (CPU_SLICE if device == "cpu" else ACCELERATOR_SLICE) // num_items)
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
