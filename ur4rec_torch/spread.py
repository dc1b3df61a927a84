"""A model that is spread over the processes that divide batches, by ``fully_shard`` (FSDP2).

Each process keeps a part of each parameter and of what its optimizer keeps. All are gathered for a step, and the
gradients of what trains are averaged and divided again. The model is one unit: its modules call each other's methods
besides ``forward``, so that gradients of a module may still come when those of its inputs are there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from adapters.torch.parallel.fsdp import reshard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Found = TypeVar("Found")


class Spread:
    """The parts of a model under ``fully_shard``, together.

    The adapter is not given what is under ``fully_shard``, but the modules: all is spread again whenever it is called.

    Args:
        parts: The parts of the model, by name.
        mesh: The processes, along one dimension.
        apart: Parameters that stay whole in each process, with gradients of its own.
    """

    def __init__(self, parts: Mapping[str, nn.Module], mesh: "DeviceMesh", apart: Iterable[nn.Parameter]) -> None:
        from torch.distributed.fsdp import fully_shard  # slow to import, and only needed here

        self._whole: Any = _Whole(parts)
        fully_shard(self._whole, mesh=mesh, ignored_params={*apart})

    def run(self, names: Iterable[str], compute: Callable[[], Found]) -> Found:
        """What ``compute`` returns with all parameters gathered; its backward pass averages gradients."""
        result: Found = self._whole(compute)
        return result

    def reshard(self) -> None:
        """Let go of what is gathered: parameters are those of the optimizers again; the backward pass does so too."""
        reshard([self._whole])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All parameters are gathered within it, outside of a training step and without gradients."""
        self._whole(lambda: None)
        try:
            yield
        finally:
            self.reshard()


class _Whole(nn.Module):
    """Runs a step in its forward pass: so ``fully_shard`` knows when one begins."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, compute: Callable[[], Found]) -> Found:
        return compute()


def is_spread(tensor: Tensor) -> bool:
    """Whether this process has a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def groups_of(module: nn.Module) -> list[dict[str, Any]]:
    """The parameters of a module in their order, as groups for an optimizer: fused ones take no mixture."""
    return [{"params": [*parameters]} for _, parameters in groupby(module.parameters(), is_spread)]


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, in all processes."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def spread_like(whole: Tensor, parameter: Any) -> Tensor:
    """A whole tensor in the layout of a parameter; all processes have the same, so nothing is sent."""
    if not is_spread(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor  # slow to import, and only needed here

    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)
