"""AdamW that moves only those rows of a table that a step used: its cost does not grow with the table.

Shapes: R rows that a step used, d width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class LazyAdamW(torch.optim.AdamW):
    """AdamW whose parameters with sparse gradients have only those rows updated that the gradient has.

    Such a row is updated exactly as AdamW would with the moments that it has: its moments and its weights decay in the
    steps that use it, and in no other. The count for the correction of the bias is that of the table's updates. The
    state has AdamW's names and shapes. `torch.optim.SparseAdam` does the same without weight decay.

    Example:
        >>> table = torch.nn.Embedding(3, 2, sparse=True)
        >>> before = table.weight.detach().clone()
        >>> optimizer = LazyAdamW(table.parameters(), lr=0.1)
        >>> table(torch.tensor([1, 1])).sum().backward()
        >>> optimizer.step()
        >>> (table.weight != before).all(1).tolist()
        [False, True, False]
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        tables = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        gradients = [parameter.grad.coalesce() for parameter, _ in tables]
        for (parameter, group), gradient in zip(tables, gradients, strict=True):
            self._update_rows(parameter, gradient, group)
            parameter.grad = None
        try:
            return super().step(closure)  # type: ignore[no-any-return]
        finally:
            for (parameter, _), gradient in zip(tables, gradients, strict=True):
                parameter.grad = gradient

    def _update_rows(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """A step of AdamW on the rows of a gradient; none where an accelerator has found the loss not finite."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        rows_R, gradient_Rd = gradient.indices()[0], gradient.values()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        state["step"] += 1 if found_inf is None else 1 - found_inf
        (beta1, beta2), rate = group["betas"], group["lr"]
        before = [table[rows_R] for table in (parameter, state["exp_avg"], state["exp_avg_sq"])]
        mean_Rd = before[1].lerp(gradient_Rd, 1 - beta1)
        square_Rd = (beta2 * before[2]).addcmul_(gradient_Rd, gradient_Rd, value=1 - beta2)
        corrected_Rd = mean_Rd / (1 - beta1 ** state["step"])
        scale_Rd = (square_Rd / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        moved_Rd = (1 - rate * group["weight_decay"]) * before[0] - rate * corrected_Rd / scale_Rd
        after = [moved_Rd, mean_Rd, square_Rd]
        if found_inf is not None:
            after = [torch.where(found_inf > 0, old, new) for old, new in zip(before, after, strict=True)]
        for table, values_Rd in zip((parameter, state["exp_avg"], state["exp_avg_sq"]), after, strict=True):
            table.index_copy_(0, rows_R, values_Rd)
