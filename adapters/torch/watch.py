"""Noticing writes to what is frozen: forward passes that write whatever the mode, and whatever else writes in place.

PyTorch counts the in-place writes of each tensor (``_version``), on the host, so that comparing the counts waits for no
device. Not counted: writes through ``.data`` or NumPy, and those of a few kernels (`check_silent_writers`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adapters.contract import FreezeError
from adapters.torch.modules import Freezable
from alternator import ConfigurationError
from alternator.checks import listed

COPIED_SIZE = 1 << 16
"""Buffers of at most this many elements are copied when their module is frozen: normalisation statistics, counters."""


class Watch:
    """The parameters and persistent buffers of one module while it is frozen.

    Buffers that are not persistent are caches, which a module may fill at any time. What ``load_state_dict`` writes is
    accepted.

    Args:
        group: The module.
    """

    def __init__(self, group: Freezable) -> None:
        self._group = group
        self._is_running = False
        self._exempt: frozenset[int] = frozenset()
        self._hooked: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._hook()

    def start(self, exempt: frozenset[int]) -> None:
        """Remember how often each has been written, and the values of small buffers.

        Args:
            exempt: The ``id`` of buffers that something writes on purpose, always with the same values.
        """
        self._hook()
        self._is_running = True
        self._exempt = exempt
        named: dict[str, Tensor] = {key: p for key, p in self._group.parameters.items() if not p.is_inference()}
        self._places = _persistent_buffers(self._group)
        named |= {key: buffer for key, (_, _, buffer) in self._places.items() if id(buffer) not in exempt}
        self._names, self._tensors = list(named), list(named.values())
        self._versions = [tensor._version for tensor in self._tensors]
        self._copies = {
            key: buffer.clone() for key, (_, _, buffer) in self._places.items() if buffer.numel() <= COPIED_SIZE
        }

    def _hook(self) -> None:
        for module in self._group.loaded:
            if module not in self._hooked:
                module.register_load_state_dict_post_hook(_LoadHook(self))  # type: ignore[no-untyped-call]
                self._hooked.add(module)

    def stop(self) -> None:
        """The module trains: it may be written."""
        self._is_running = False

    def reload(self) -> None:
        """Take the values that have been loaded for those that stay."""
        if self._is_running:
            self.start(self._exempt)

    def find_written(self) -> list[str]:
        """The names of what has been written or replaced since `start`."""
        if not self._is_running:
            return []
        versions = [tensor._version for tensor in self._tensors]
        is_replaced = any(owner.get(name) is not buffer for owner, name, buffer in self._places.values())
        if versions == self._versions and not is_replaced:
            return []
        if is_replaced and any(_is_moved(owner.get(name), buffer) for owner, name, buffer in self._places.values()):
            self.reload()  # as .to() does
            return []
        written = zip(self._names, versions, self._versions, strict=True)
        replaced = [key for key, (owner, name, buffer) in self._places.items() if owner.get(name) is not buffer]
        return [*(name for name, now, then in written if now != then), *replaced]

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Put back small buffers, whether or not their kernels have counted a write (that of BatchNorm does not).

        Returns:
            The names of what else has been written, and stays so.
        """
        if not self._is_running:
            return []
        left = [name for name in self.find_written() if name not in self._copies]
        for key, copied in self._copies.items():
            owner, name, buffer = self._places[key]
            owner[name] = buffer.copy_(copied)
        self._versions = [tensor._version for tensor in self._tensors]
        return left


class _LoadHook:
    """Called after ``load_state_dict``. Copies of a module have a hook that does nothing."""

    def __init__(self, watch: Watch) -> None:
        self._watch: weakref.ref[Watch] | None = weakref.ref(watch)

    def __call__(self, module: nn.Module, keys: object) -> None:
        watch = None if self._watch is None else self._watch()
        if watch is not None:
            watch.reload()

    def __getstate__(self) -> dict[str, Any]:
        return {"_watch": None}


def check_written(watches: Iterable[Watch], applied: str) -> None:
    """Refuse what has been written while frozen.

    Raises:
        FreezeError: With its names and the remedies.
    """
    written = [name for watch in watches for name in watch.find_written()]
    if written:
        raise FreezeError(
            f"a frozen module must not be written, but {listed(written)} has been since {applied!r} was applied: if a "
            "forward pass writes it (Embedding with max_norm, an observer, a counter), let it do so only if "
            "self.training, or declare it with always=; if you wrote it between steps, call apply() after that"
        )


def check_silent_writers(groups: Mapping[str, Freezable]) -> None:
    """Refuse modules whose forward pass writes buffers in any mode and is not counted.

    Raises:
        ConfigurationError: Naming them.
    """
    silent = [
        key
        for group in groups.values()
        for key, submodule in group.submodules.items()
        if type(submodule).__name__ == "FusedMovingAvgObsFakeQuantize"
    ]
    if silent:
        raise ConfigurationError(
            f"a frozen module must not be written unnoticed, but {listed(silent)} (FusedMovingAvgObsFakeQuantize) does "
            "so in any mode: use FakeQuantize, and disable_observer() while its module is frozen"
        )


def _persistent_buffers(group: Freezable) -> dict[str, tuple[dict[str, Tensor | None], str, Tensor]]:
    """By name: where a buffer is registered, under which name, and the buffer."""
    return {
        f"{key}.{name}": (submodule._buffers, name, buffer)
        for key, submodule in group.submodules.items()
        for name, buffer in submodule._buffers.items()
        if buffer is not None
        and name not in submodule._non_persistent_buffers_set
        and not (buffer.is_inference() or is_lazy(buffer))
    }


def _is_moved(now: Tensor | None, before: Tensor) -> bool:
    """Whether a buffer has been replaced by one elsewhere or of another type."""
    return now is not None and (now.device, now.dtype) != (before.device, before.dtype)
