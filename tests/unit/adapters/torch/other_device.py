"""A device beside the CPU, where there is none: its tensors hold values in the host's memory and say that they do not.

Within `OtherDevice` tensors can be made on, moved to and moved from `DEVICE`, and those that live there are counted.
"""

import weakref
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("xla", 0)


class There(Tensor):
    """A tensor of the device."""

    values: Tensor
    number: int = -1

    @staticmethod
    def __new__(cls, values: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device="meta"
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.values})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, dict(kwargs or {}), lambda _: None)


class OtherDevice(TorchDispatchMode):
    """Within it there is the device, and it is known when each of its tensors was made and freed."""

    def __init__(self) -> None:
        super().__init__()
        self._log: list[tuple[int, int]] = []  # (number of a tensor, bytes made or freed)

    @property
    def num_made(self) -> int:
        """As many numbers as this have been given to tensors, or not used."""
        return len(self._log)

    @property
    def num_bytes(self) -> int:
        """The number of bytes that tensors take there now."""
        return sum(size for _, size in self._log)

    def peak(self, numbers: Collection[int]) -> int:
        """The largest number of bytes that these tensors took at the same time."""
        return max(accumulate((size for number, size in self._log if number in numbers), initial=0))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, dict(kwargs or {}), self._made)

    def _made(self, made: There) -> None:
        made.number, size = len(self._log), made.values.untyped_storage().nbytes()
        self._log.append((made.number, size))
        weakref.finalize(made, self._log.append, (made.number, -size))

    def module(self, module: nn.Module) -> nn.Module:
        """The module, with its parameters there."""
        for submodule in module.modules():
            for name, parameter in submodule._parameters.items():
                if parameter is not None:
                    submodule._parameters[name] = nn.Parameter(parameter.detach().to(DEVICE))
        return module


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Callable[[There], object]) -> Any:
    inputs = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    device = kwargs.get("device")
    is_there = device == DEVICE or (device is None and any(isinstance(each, There) for each in inputs))
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    outer = {id(each.values): each for each in inputs if isinstance(each, There)}
    values = func(*tree_map(_values_of, args), **tree_map(_values_of, kwargs))

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, There):
            return value
        if id(value) in outer:
            return outer[id(value)]
        if not is_there or value.device.type != "cpu":
            return value
        there = There(value)
        made(there)
        return there

    return tree_map(wrap, values)


def _values_of(value: Any) -> Any:
    return value.values if isinstance(value, There) else value
