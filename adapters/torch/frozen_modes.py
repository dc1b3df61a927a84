"""How a frozen module runs with ``frozen_mode="batch"``: as in training, but nothing that it holds changes.

BatchNorm in training mode with ``track_running_stats`` off normalises by the batch and is given no running statistics;
in inference mode it uses them whatever the flag says. What else holds saved buffers may write them in training mode
(spectral norm, codebooks, observers), so its own flag stays in inference mode, and those of its submodules do not.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from adapters.contract import unchosen
from alternator import ConfigurationError
from alternator.checks import listed


def has_statistics(submodule: nn.Module) -> bool:
    """Whether it is a BatchNorm with running statistics, SyncBatchNorm and subclasses included."""
    return isinstance(submodule, _BatchNorm) and submodule.running_mean is not None


def may_write(submodule: nn.Module) -> bool:
    """Whether it may write saved buffers of its own in training mode, and no flag but the mode keeps it from that."""
    return not isinstance(submodule, _BatchNorm) and any(
        buffer is not None and name not in submodule._non_persistent_buffers_set
        for name, buffer in submodule._buffers.items()
    )


def check_batch_mode(submodules: Mapping[str, nn.Module]) -> None:
    """Refuse what cannot normalise by its input without writing its statistics.

    Raises:
        ConfigurationError: Naming an InstanceNorm that tracks running statistics.
    """
    tracking = [key for key, each in submodules.items() if isinstance(each, _InstanceNorm) and each.track_running_stats]
    if tracking:
        raise ConfigurationError(
            f"frozen_mode='batch' must leave statistics as they are, but {listed(tracking)} is an InstanceNorm with "
            "track_running_stats=True, which cannot use those of its input without writing its own: build it with "
            "track_running_stats=False (then it uses its input's in every mode), or choose 'inference'"
        )


class Tracking:
    """The ``track_running_stats`` flags of BatchNorm layers, off while their module is frozen."""

    def __init__(self) -> None:
        self._stopped: list[_BatchNorm] = []

    def stop(self, norms: Iterable[nn.Module]) -> None:
        """Turn the flags off that are on; what the user had turned off is left alone for good."""
        for norm in norms:
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                self._stopped.append(norm)
                norm.track_running_stats = False

    def resume(self) -> None:
        """Turn on again what `stop` has turned off."""
        while self._stopped:
            self._stopped.pop().track_running_stats = True


class Unchosen:
    """Warns, once, of gradients through a frozen BatchNorm in inference mode that nobody has asked for.

    Each such layer has a hook while its module is frozen, until it has warned. Under ``torch.compile`` it does nothing.

    Args:
        name: The module's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_warned = False
        self._handles: list[RemovableHandle] = []
        self._parameters: tuple[Tensor, ...] = ()

    def listen(self, norms: Iterable[nn.Module], parameters: Iterable[Tensor]) -> None:
        """Hook these layers, and no others, of a module with these parameters."""
        self.stop()
        self._parameters = tuple(parameters)
        if not self._has_warned:
            self._handles = [norm.register_forward_pre_hook(_Hook(self.warn)) for norm in norms]

    def stop(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def warn(self) -> None:
        """Say what the choices are, and stop; gradients may be of what the user has unfrozen within the module."""
        if any(parameter.requires_grad for parameter in self._parameters):
            return
        self.stop()
        self._has_warned = True
        warnings.warn(unchosen(self._name), stacklevel=6)


class _Hook:
    """Called before the forward pass of a layer. Copies of a module have a hook that does nothing."""

    def __init__(self, warn: Callable[[], None]) -> None:
        self._warn: weakref.ref[Callable[[], None]] | None = weakref.WeakMethod(warn)

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.compiler.is_compiling() or norm.training or not (inputs and torch.is_grad_enabled()):
            return
        warn = None if self._warn is None else self._warn()
        if warn is not None and inputs[0].requires_grad:
            warn()

    def __getstate__(self) -> dict[str, None]:
        return {"_warn": None}
