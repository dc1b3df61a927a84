"""Dropout whose mask does not depend on how many processes divide a batch.

Shapes: B rows of the part, W rows of the whole batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.training.parts import BatchPart


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; where this process has a part of a batch, its mask is those rows of the whole batch's.

    So each process draws the numbers of all rows, and all draw the same ones.

    Example:
        >>> import torch
        >>> dropout, whole = Dropout(0.5), torch.ones(4, 8)
        >>> masks = []
        >>> for dropout.rows in (None, (slice(2, 4), 4)):
        ...     _ = torch.manual_seed(0)
        ...     masks.append(dropout(whole if dropout.rows is None else whole[2:]))
        >>> torch.equal(masks[0][2:], masks[1])
        True
    """

    rows: tuple[slice, int] | None = None
    """Which rows of a batch are given, and how many rows it has; None is a whole batch."""

    def forward(self, input: Tensor) -> Tensor:
        """Dropout of the rows, (B, ...)."""
        if self.rows is None or not self.training:
            return super().forward(input)
        rows, num_rows = self.rows
        mask_W = F.dropout(input.new_ones(num_rows, *input.shape[1:]), self.p)
        return input * mask_W[rows]


@contextmanager
def rows_of(model: nn.Module, part: BatchPart | None) -> Iterator[None]:
    """Let the model be given the rows of a part of a batch."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer in layers:
        layer.rows = None if part is None else (part.rows, part.num_rows)
    try:
        yield
    finally:
        for layer in layers:
            layer.rows = None
