"""Losses of SASRec by name, and the two joint losses.

Shapes: N real positions, d width, I items, L positions of a row.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(hidden_Nd: Tensor, table_Id: Tensor, targets_N: Tensor, rows_NL: Tensor) -> Tensor:
    """Softmax over the whole catalogue: the loss that makes SASRec state of the art."""
    return F.cross_entropy((hidden_Nd @ table_Id.T).float(), targets_N)


def binary_cross_entropy(hidden_Nd: Tensor, table_Id: Tensor, targets_N: Tensor, rows_NL: Tensor) -> Tensor:
    """The target against one uniformly drawn item (Kang & McAuley, section III-E).

    A drawn item that is the target or in the row's sequence counts for nothing.
    """
    negatives_N = torch.randint(len(table_Id), targets_N.shape, device=targets_N.device)
    positive_N = (hidden_Nd * table_Id[targets_N]).sum(1).float()
    negative_N = (hidden_Nd * table_Id[negatives_N]).sum(1).float()
    is_negative_N = (negatives_N != targets_N) & (negatives_N[:, None] != rows_NL).all(1)
    return (F.softplus(-positive_N) + F.softplus(negative_N) * is_negative_N).mean()


SEQUENCE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
}
