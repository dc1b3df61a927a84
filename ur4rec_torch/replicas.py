"""A model of which each process has a copy: gradients averaged with DistributedDataParallel (DDP).

Shapes: I items with the padding, J items of a step, d width.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ur4rec_torch.losses import StepLosses


class Replicas:
    """The parts of a model in DDP, each by itself, so that what is frozen moves no bytes.

    A wrapper runs the whole step, whose loss it takes as its output, and a step is run in the wrappers of the parts
    that train alone. DDP waits for every weight that required gradients when it was built. In a part that trains, a
    step reaches all of them, so DDP need not look for unused ones in each; where a user has frozen or unfrozen some
    since, the part is wrapped again.

    Args:
        parts: The parts of the model, by name.
        group: The processes that have a copy.
        apart: Parameters with sparse gradients, which `average_rows` takes care of.
    """

    def __init__(self, parts: Mapping[str, nn.Module], group: dist.ProcessGroup, apart: Iterable[Tensor]) -> None:
        self._parts, self._group = parts, group
        self._apart = frozenset(map(id, apart))
        self._wrapped: dict[str, tuple[list[nn.Parameter], DistributedDataParallel]] = {}

    def run(self, names: Iterable[str], compute: Callable[[], Tensor]) -> Tensor:
        """The loss that ``compute`` returns; its backward pass averages the gradients of these parts."""
        for name in names:
            if (wrapper := self._wrapper(name)) is not None:
                compute = partial(wrapper, compute)
        return compute()

    def _wrapper(self, name: str) -> DistributedDataParallel | None:
        """DDP around a part; None for a part without weights that train."""
        if name not in self._parts:
            return None
        parameters = [p for p in self._parts[name].parameters() if p.requires_grad and id(p) not in self._apart]
        wrapped, wrapper = self._wrapped.get(name, ([], None))
        if list(map(id, parameters)) != list(map(id, wrapped)):
            wrapper = DistributedDataParallel(
                _Step(parameters), process_group=self._group, gradient_as_bucket_view=True
            )
            self._wrapped[name] = parameters, wrapper
        return wrapper if parameters else None


class _Step(nn.Module):
    """Runs a step for the weights of a part."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.parameters_of_part = nn.ParameterList(parameters)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


def average_losses(losses: StepLosses, group: dist.ProcessGroup) -> StepLosses:
    """The means over the processes of all losses of a step, detached."""
    named = [losses.total, *losses.modules.values(), *(loss for loss, _ in losses.components.values())]
    values = torch.stack([loss.detach().double() for loss in named])
    dist.all_reduce(values, group=group)
    total, *others = (values / dist.get_world_size(group)).to(losses.total.dtype).unbind()
    modules = dict(zip(losses.modules, others, strict=False))
    found = zip(losses.components.items(), others[len(modules) :], strict=True)
    components = {name: component._replace(loss=loss) for (name, component), loss in found}
    return losses._replace(total=total, modules=modules, components=components)


def average_rows(table: Tensor, items_J: Tensor, group: dist.ProcessGroup) -> None:
    """Average a table's sparse gradient over the processes.

    Args:
        table: The table; without a gradient, nothing is done.
        items_J: The rows that any process has, ascending.
        group: The processes.
    """
    gradient = table.grad
    if gradient is None:
        return
    gradient = gradient.coalesce()
    values_Jd = gradient.values().new_zeros(len(items_J), *gradient.values().shape[1:])
    values_Jd.index_add_(0, torch.searchsorted(items_J, gradient.indices()[0]), gradient.values())
    dist.all_reduce(values_Jd, group=group)
    values_Jd /= dist.get_world_size(group)
    table.grad = torch.sparse_coo_tensor(
        items_J.unsqueeze(0), values_Jd, gradient.shape, is_coalesced=True, check_invariants=False
    )


def gather_rows(rows_b: Tensor, size: int, group: dist.ProcessGroup) -> Tensor:
    """The rows of all processes, in their order; of each ``size`` rows, those that are missing are zeros."""
    padded_b = rows_b.new_zeros(size, *rows_b.shape[1:])
    padded_b[: len(rows_b)] = rows_b
    found = [torch.empty_like(padded_b) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, padded_b, group=group)
    return torch.cat(found)


def sum_of_bits(tensor: Tensor) -> int:
    """A number that depends on the bits of a tensor of float32."""
    return int(tensor.detach().view(torch.int32).sum(dtype=torch.int64))
