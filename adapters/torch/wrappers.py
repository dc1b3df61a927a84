"""Wrappers around a module that are taken off before its parameters are named: ``torch.compile`` and DDP."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alternator import ConfigurationError

REFUSED = ("FullyShardedDataParallel", "DataParallel")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and DistributedDataParallel; other wrappers are refused.

    Raises:
        ConfigurationError: Naming the wrapper.
    """
    for submodule in module.modules():
        if not {kind.__name__ for kind in type(submodule).__mro__}.isdisjoint(REFUSED):
            raise ConfigurationError(
                "modules must be plain, compiled, in DistributedDataParallel or under fully_shard, got a "
                f"{type(submodule).__name__}, under which frozen modules are not known to stay as they are; use one of "
                "those"
            )
    while (inside := _inside(module)) is not None:
        module = inside
    return module


def shells(module: nn.Module) -> list[DistributedDataParallel]:
    """The DDP wrappers that `unwrapped` takes off."""
    found = []
    while (inside := _inside(module)) is not None:
        if isinstance(module, DistributedDataParallel):
            found.append(module)
        module = inside
    return found


def join(name: str, key: str) -> str:
    """A dotted name, the same whether or not a part of the module is compiled."""
    return ".".join(part for part in (name, *key.split(".")) if part not in ("", "_orig_mod"))


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, DistributedDataParallel):
        inside: nn.Module | None = module.module
    else:
        inside = getattr(module, "_orig_mod", None)
    return inside
