"""Digests of all that a module's training moves: equal if and only if every bit of it is.

Values are read where they are and hashed on the host; no count of writes, flag or gradient is asked.
"""

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from adapters.torch.modules import Freezable

Digests = dict[str, dict[str, bytes]]
"""Per owner (a parameter, a buffer, a parameter group, a scheduler) the digest of each of its values by name."""
VALUE = "value"
"""The name of the value of a parameter or buffer itself."""
MOVED_BY_SCHEDULERS = frozenset({"lr", "momentum", "betas"})


class Digester:
    """Hashes values, and counts the bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0
        """The number of bytes hashed so far."""

    def of(self, value: Any) -> bytes:
        """The digest of a tensor, a number, a string, or containers of these.

        Example:
            >>> import torch
            >>> digester = Digester()
            >>> digester.of(torch.tensor(0.0)) == digester.of(torch.tensor(-0.0))
            False
        """
        state = blake2b(digest_size=16)
        for part in _parts(value):
            state.update(part)
            self.num_bytes += len(part)
        return state.digest()

    def of_module(
        self,
        group: Freezable,
        optimizers: Sequence[Optimizer],
        *,
        learning_rates: bool,
        is_dropped: Callable[[Tensor], bool] | None = None,
    ) -> Digests:
        """What must stay while the module is frozen: parameters, saved buffers, optimizer state.

        Args:
            group: The module.
            optimizers: Any; of each what belongs to the module is taken: the state of its parameters, and the options
                of parameter groups that hold nothing else.
            learning_rates: Whether what schedulers move is among these options.
            is_dropped: Whether the state of a parameter is not to stay.
        """
        left_out = {"params", "param_names"} | (set() if learning_rates else MOVED_BY_SCHEDULERS)
        found = {key: {VALUE: self.of(buffer)} for key, buffer in _saved_buffers(group).items()}
        for key, parameter in group.parameters.items():
            stay = () if is_dropped is not None and is_dropped(parameter) else optimizers
            states = [state for optimizer in stay if (state := optimizer.state.get(parameter))]
            found[key] = {VALUE: self.of(parameter), **self._merged(states)}
        for first, options in _groups_of(group, optimizers).items():
            found[f"the group of {first}"] = self._merged([options], left_out)
        return found

    def of_schedulers(self, schedulers: Sequence[Any]) -> Digests:
        """The states of a module's schedulers."""
        return {f"scheduler {number}": self._merged([each.state_dict()]) for number, each in enumerate(schedulers)}

    def _merged(self, states: Sequence[Mapping[str, Any]], left_out: Collection[str] = ()) -> dict[str, bytes]:
        keys = {key for state in states for key in state} - set(left_out)
        return {str(key): self.of([state.get(key) for state in states]) for key in sorted(keys, key=str)}


def find_changed(before: Digests, now: Digests) -> list[str]:
    """The names of what has changed. A parameter or buffer that has been added or taken out has not."""
    return [
        owner if name == VALUE else f"{name} of {owner}"
        for owner in before
        if owner in now
        for name in dict.fromkeys((*before[owner], *now[owner]))
        if before[owner].get(name) != now[owner].get(name)
    ]


def _groups_of(group: Freezable, optimizers: Sequence[Optimizer]) -> dict[str, dict[str, Any]]:
    """The parameter groups that hold parameters of this module alone, by the name of their first."""
    names = {id(parameter): key for key, parameter in group.parameters.items()}
    every = [(options, options["params"]) for optimizer in optimizers for options in optimizer.param_groups]
    return {names[id(p[0])]: options for options, p in every if p and all(id(each) in names for each in p)}


def _saved_buffers(group: Freezable) -> dict[str, Tensor]:
    """Buffers that are not saved are caches, which may change."""
    return {
        f"{key}.{name}": buffer
        for key, submodule in group.submodules.items()
        for name, buffer in submodule.named_buffers(recurse=False)
        if name not in submodule._non_persistent_buffers_set
    }


def _parts(value: Any) -> Iterator[bytes]:
    """The bytes of a value, each kind and length before its content."""
    if isinstance(value, Tensor):
        yield from _tensor_parts(value)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value, key=repr):
            yield repr(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"sequence {len(value)}".encode()
        for each in value:
            yield from _parts(each)
    elif hasattr(value, "tobytes"):  # an array of NumPy, of which repr shows a part
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    else:
        yield repr(value).encode()


def _tensor_parts(tensor: Tensor) -> Iterator[bytes]:
    if is_lazy(tensor) or tensor.is_meta:
        yield b"no values"
    elif hasattr(
        tensor, "__tensor_flatten__"
    ):  # a tensor of tensors: this process's part of a DTensor, a quantised one
        names, _ = tensor.__tensor_flatten__()
        yield from _parts({name: getattr(tensor, name) for name in names})
    else:
        yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
        yield _bytes_of(tensor.detach())


def _bytes_of(tensor: Tensor) -> bytes:
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    flat = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return ctypes.string_at(flat.data_ptr(), flat.numel())  # PyTorch may be there without NumPy
