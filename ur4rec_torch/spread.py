"""A model that is spread over the processes that divide batches, by ``fully_shard`` (FSDP2).

Each process keeps a part of each parameter and of what its optimizer keeps; a module's parameters are gathered for a
step, and the gradients of the step are averaged and divided again. A frozen module stays gathered from step to step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from adapters.torch.parallel.fsdp import reshard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Found = TypeVar("Found")


class Spread:
    """The parts of a model under ``fully_shard``, each by itself.

    Args:
        parts: The parts of the model, by name; those without parameters are left alone.
        mesh: The processes, along one dimension.
        apart: Parameters that stay whole in each process, with gradients of its own.
    """

    def __init__(self, parts: Mapping[str, nn.Module], mesh: "DeviceMesh", apart: Iterable[nn.Parameter]) -> None:
        from torch.distributed.fsdp import fully_shard  # slow to import, and only needed here

        self._whole = _Whole(parts)
        ignored = {*apart}
        for module in (*self._whole.parts.values(), self._whole):
            fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=ignored)

    def run(self, names: Iterable[str], compute: Callable[[], Found]) -> Found:
        """What ``compute`` returns with all parameters gathered; a backward pass averages gradients of these parts."""
        training = {*names}
        for name, part in self._whole.parts.items():
            part.set_reshard_after_backward(name in training)
        result: Found = self._whole(compute)
        return result

    def reshard(self) -> None:
        """Let go of what is gathered: parameters are those of the optimizers again."""
        reshard([*self._whole.parts.values(), self._whole])

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
        self.parts: Any = nn.ModuleDict(
            {name: part for name, part in parts.items() if any(True for _ in part.parameters())}
        )

    def forward(self, compute: Callable[[], Found]) -> Found:
        for part in self.parts.values():
            part.unshard()  # their methods besides forward need parameters, too
        return compute()


def is_spread(tensor: Tensor) -> bool:
    """Whether this process has a part of the tensor."""
    return hasattr(tensor, "full_tensor")


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
