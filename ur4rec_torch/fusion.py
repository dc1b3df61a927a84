"""How the two modules' scores become one: a small module, chosen by name; some have parameters, some pass no gradients.

Shapes: N positions, I items.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ur4rec.config import ModelConfig
from ur4rec.training.components import RANK_CONSTANT


class LogitFusion(nn.Module):
    """A weighted product of the two distributions: weights on log-probabilities.

    What normalises each distribution is one number per position, the same for every item, so it changes neither the
    softmax of the fused logits nor their order: the weighted sum of the logits is all that is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2))

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Fused logits, (N, I)."""
        return self.weights[0] * sasrec_NI + self.weights[1] * retriever_NI


class WeightedFusion(nn.Module):
    """A mixture of the two distributions: weights on probabilities, which sum to one by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Fused log-probabilities, (N, I)."""
        log_weights = torch.log_softmax(self.weights, dim=0)
        return torch.logaddexp(
            torch.log_softmax(sasrec_NI, dim=1) + log_weights[0],
            torch.log_softmax(retriever_NI, dim=1) + log_weights[1],
        )


class RankFusion(nn.Module):
    """The sum of both modules' reciprocal ranks (Cormack, Clarke & Büttcher, SIGIR 2009).

    It has no parameters and passes no gradients.
    """

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Sums of 1 / (60 + rank), (N, I)."""
        ranks = (_ranks(scores_NI) for scores_NI in (sasrec_NI, retriever_NI))
        sasrec, retriever = (1 / (RANK_CONSTANT + 1 + ranks_NI).float() for ranks_NI in ranks)
        return _nan_unless_finite(sasrec + retriever, sasrec_NI, retriever_NI)


class CascadeFusion(nn.Module):
    """SASRec's top items in the retriever's order, above all others in SASRec's.

    It has no parameters and passes no gradients.

    Args:
        size: The number of items that are re-ordered.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
        """Minus the final rank, 0 for the best item, (N, I): no two items tie."""
        ranks_NI = _ranks(sasrec_NI)
        is_top_NI = ranks_NI < self.size
        among_top_NI = _ranks(retriever_NI.masked_fill(~is_top_NI, -torch.inf))
        fused_NI = -torch.where(is_top_NI, among_top_NI, ranks_NI).float()
        return _nan_unless_finite(fused_NI, sasrec_NI, retriever_NI)


Fusion: TypeAlias = LogitFusion | WeightedFusion | RankFusion | CascadeFusion

FUSIONS: dict[str, Callable[[ModelConfig], Fusion]] = {
    "logit": lambda config: LogitFusion(),
    "weighted": lambda config: WeightedFusion(),
    "rank": lambda config: RankFusion(),
    "cascade": lambda config: CascadeFusion(config.cascade_size),
}
"""Each builds the fusion of a model."""


def _ranks(scores_NI: Tensor) -> Tensor:
    """The place of each item, 0 for the best, (N, I); equal scores in the order of item numbers."""
    order_NI = scores_NI.argsort(dim=1, descending=True, stable=True)
    places_I = torch.arange(scores_NI.shape[1], device=scores_NI.device)
    return torch.empty_like(order_NI).scatter_(1, order_NI, places_I.expand_as(order_NI))


def _nan_unless_finite(fused_NI: Tensor, sasrec_NI: Tensor, retriever_NI: Tensor) -> Tensor:
    """Scores that are not finite stay so: a rank would hide them."""
    return fused_NI.masked_fill(~torch.isfinite(sasrec_NI + retriever_NI), torch.nan)
