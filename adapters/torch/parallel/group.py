"""Which processes train together: those of the DDP wrappers, of the mesh of ``fully_shard``, or those given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from adapters.torch.parallel.ddp import check_wrappers, find_wrappers
from adapters.torch.parallel.fsdp import check_sharded, find_sharded, whole
from adapters.torch.parallel.ranks import Ranks, Spread
from alternator import ConfigurationError

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


def join(
    given: Iterable[object],
    modules: Mapping[str, Mapping[str, nn.Parameter]],
    turns: Mapping[str, Collection[str]],
    process_group: dist.ProcessGroup | None,
    check_every: int | None,
) -> Ranks | None:
    """The processes that train these modules together; None if this process trains them alone.

    Args:
        given: What the user gave: the model, the modules, the always group.
        modules: Per module its parameters by name.
        turns: Per turn the names of the parameters that train in it.
        process_group: The user's choice of processes, if any.
        check_every: See `Ranks`.

    Raises:
        ConfigurationError: Under these wrappers modules cannot train in turns, or the processes are not known.
    """
    given = list(given)
    wrappers, sharded = find_wrappers(given), find_sharded(given)
    parameters = {name: parameter for named in modules.values() for name, parameter in named.items()}
    if sharded:
        unreduced = whole(sharded, parameters)
        group: dist.ProcessGroup | None = check_sharded(sharded, parameters, process_group, with_ddp=bool(wrappers))
    else:
        unreduced = check_wrappers(wrappers, parameters, turns) if wrappers else {}
        group = _group_of(wrappers, process_group)
    if group is None:
        return None
    spread = Spread(wrappers=wrappers, sharded=sharded, unreduced=unreduced)
    return Ranks(group, turns, {name: tuple(named.values()) for name, named in modules.items()}, spread, check_every)


def check_single() -> None:
    """Refuse to train alone where there are several processes: each would decide by its own losses.

    Raises:
        ConfigurationError: With what to give.
    """
    if dist.get_world_size() > 1:
        raise ConfigurationError(
            f"{dist.get_world_size()} processes must decide the same, but none of modules and model= is in "
            "DistributedDataParallel or under fully_shard; wrap the model, then give the wrapper as model= (or each "
            "module's in modules). If you average gradients yourself, give process_group=; for processes that train "
            "apart, one of this process alone"
        )


def _group_of(
    wrappers: Sequence[DistributedDataParallel], process_group: dist.ProcessGroup | None
) -> dist.ProcessGroup | None:
    """The processes that must decide the same: those given, else those of the wrappers; None is this one alone."""
    if process_group is not None:
        return process_group
    groups = {id(wrapper.process_group): wrapper.process_group for wrapper in wrappers}
    if len(groups) > 1:
        raise ConfigurationError(
            f"all DistributedDataParallel wrappers must have one process group, got {len(groups)}; say with "
            "process_group= which ranks must decide the same"
        )
    if groups:
        return next(iter(groups.values()))
    check_single()
    return None
