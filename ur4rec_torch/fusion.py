"""How the two modules' scores become one: a small module of its own parameters, chosen by name.

Shapes: N positions, I items.
"""

import torch
from torch import Tensor, nn


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


FUSIONS: dict[str, type[nn.Module]] = {"logit": LogitFusion, "weighted": WeightedFusion}
