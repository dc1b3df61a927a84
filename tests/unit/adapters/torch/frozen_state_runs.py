"""Runs of blocks in a row that take turns, on a device that is not the host, with each choice of a frozen state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle
from tests.conformance.torch_host import MarkedHost
from tests.unit.adapters.torch.other_device import DEVICE, OtherDevice, There

CHOICES = ("keep", "offload", "drop")


class Blocks:
    """Some blocks that train in turns, and what is known of their optimizers' states.

    Args:
        device: Where the parameters are.
        frozen_state: The choice.
        make: Makes an optimizer.
        num_blocks: How many blocks there are.
        apart: Whether each has an optimizer of its own.
        rule: Decides.
        options: Of the adapter.
    """

    def __init__(
        self,
        device: OtherDevice,
        frozen_state: Any = "keep",
        make: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
        *,
        num_blocks: int = 4,
        apart: bool = False,
        rule: Any = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = device.module(nn.ModuleDict({f"b{i}": nn.Linear(8, 8, bias=False) for i in range(num_blocks)}))
        self.blocks: dict[str, Any] = dict(self.model.items())
        if apart:
            self.optimizers: Any = {name: make(list(block.parameters())) for name, block in self.blocks.items()}
        else:
            self.optimizers = make([{"params": list(block.parameters())} for block in self.blocks.values()])
        self.alternating = AlternatingOptimizer(
            Alternator(tuple(options.get("turns") or self.blocks), rule=rule or Cycle(3)),
            *(self.blocks, self.optimizers),
            frozen_state=frozen_state,
            **options,
        )
        self.numbers: set[int] = set()
        """Those of all tensors on the device that have been optimizer state."""

    @property
    def every(self) -> list[Any]:
        return list(self.optimizers.values()) if isinstance(self.optimizers, dict) else [self.optimizers]

    def loss(self, step: int) -> Tensor:
        x_BD = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        for block in self.blocks.values():
            x_BD = torch.tanh(block(x_BD))
        return (x_BD - 1).square().mean()

    def train(self, start: int, stop: int) -> "Blocks":
        for step in range(start, stop):
            self.alternating.step(self.loss(step))
            self.note()
        return self

    def note(self) -> None:
        for optimizer in self.every:
            self.numbers |= {each.number for s in optimizer.state.values() for each in s.values() if is_there(each)}

    def state_of(self, name: str) -> dict[str, Any]:
        """The state of a block's weight."""
        parameter = self.blocks[name].weight
        return next((optimizer.state[parameter] for optimizer in self.every if optimizer.state.get(parameter)), {})

    def weights(self) -> list[Tensor]:
        return [values_of(parameter) for parameter in self.model.parameters()]

    def everything(self) -> dict[str, Any]:
        """Weights and states, wherever they are."""
        states = {
            f"{name} {key}": values_of(each)
            for name in self.blocks
            for key, each in self.state_of(name).items()
            if isinstance(each, Tensor)
        }
        return dict(zip(self.blocks, self.weights(), strict=True)) | states


def is_there(value: Any) -> bool:
    return isinstance(value, There)


def values_of(tensor: Any) -> Tensor:
    """A copy, on the host."""
    return (tensor.values if is_there(tensor) else tensor).detach().clone()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key, value in found.items() if value.dtype != expected[key].dtype] == []
    assert [key for key, value in found.items() if not torch.equal(value, expected[key])] == []


def bytes_on_device(optimizers: Any) -> int:
    """The bytes of this process's parts of moments that are not on a `MarkedHost`."""
    values = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    there = [each for each in values if not MarkedHost().has(each)]
    return sum((each.to_local() if hasattr(each, "to_local") else each).nbytes for each in there)
