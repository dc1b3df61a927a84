"""The rows of the item table that a step with sampled losses needs, and the gradient of the table through them.

The table's gradient is sparse, with each row once and in order, as the optimizer and clipping need it: sorting out
repeated rows, as `torch.nn.Embedding` with ``sparse=True`` has to, makes the host wait for an accelerator. It is the
counterpart of `ur4rec_jax.rows`.

Shapes: I items with the padding, J items of the step, ascending, with the padding last, d width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def take_rows(table_Id: Tensor, items_J: Tensor) -> Tensor:
    """The rows of these items, (J, d).

    Args:
        table_Id: The table.
        items_J: Which items, ascending, each once.

    Example:
        >>> table = torch.ones(4, 2, requires_grad=True)
        >>> take_rows(table, torch.tensor([1, 3])).sum().backward()
        >>> table.grad.is_coalesced(), table.grad.indices().tolist()
        (True, [[1, 3]])
    """
    rows_Jd: Tensor = _TakeRows.apply(table_Id, items_J)  # type: ignore[no-untyped-call]
    return rows_Jd


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_Id: Tensor, items_J: Tensor) -> Tensor:
        """The rows."""
        ctx.save_for_backward(items_J)
        ctx.shape = table_Id.shape
        return table_Id.index_select(0, items_J)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_rows_Jd: Tensor) -> tuple[Tensor, None]:
        """The sparse gradient of the table."""
        (items_J,) = ctx.saved_tensors
        by_table_Id = torch.sparse_coo_tensor(
            items_J.unsqueeze(0), by_rows_Jd, ctx.shape, is_coalesced=True, check_invariants=False
        )
        ctx.kept = by_table_Id  # autograd copies what somebody keeps; what nobody does it takes, but forgets the order
        return by_table_Id, None
