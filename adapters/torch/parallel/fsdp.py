"""Modules that ``fully_shard`` (FSDP2) has spread over processes: what they need to be frozen in turns.

FSDP2 takes ``requires_grad`` from the sharded parameter when it gathers the whole one, and a module that no backward
pass has reached may stay gathered: switched in that state, it would train or freeze as before the switch. So all are
sharded again before anything is switched. Measured with torch 2.13 and checked by
tests/unit/adapters/torch/test_sharding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from adapters.torch.parallel.ddp import all_inside, check_reduced
from alternator import ConfigurationError
from alternator.checks import listed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def find_sharded(given: Iterable[object]) -> list[Any]:
    """Every module under ``fully_shard`` that is, or is in, one of the modules given; each once."""
    return [each for each in all_inside(given) if _is_sharded(each)]


def reshard(sharded: Iterable[Any]) -> None:
    """Put the sharded parameters back in their modules, so that the next forward pass gathers them as they are then."""
    for module in sharded:
        module.reshard()


def check_sharded(
    sharded: Iterable[Any],
    parameters: Mapping[str, nn.Parameter],
    process_group: ProcessGroup | None,
    *,
    with_ddp: bool,
) -> ProcessGroup:
    """The processes that share the parameters, once every one that trains is known to be spread over the same ones.

    Args:
        sharded: What `find_sharded` found.
        parameters: The parameters of all modules, by name.
        process_group: The user's choice of processes, if any.
        with_ddp: Whether there are DDP wrappers too.

    Raises:
        ConfigurationError: Some are not, or under DDP too, or the mesh has several dimensions.
    """
    if with_ddp:
        raise ConfigurationError("modules must be under fully_shard or DistributedDataParallel, got both; choose one")
    check_reduced(whole(sharded, parameters))
    meshes = [each.device_mesh for each in parameters.values() if hasattr(each, "device_mesh")]
    if any(mesh != meshes[0] or mesh.ndim > 1 for mesh in meshes):
        raise ConfigurationError(
            "all parameters must be sharded over one mesh of one dimension, got "
            f"{listed(sorted({str(mesh) for mesh in meshes}))}; give the same to each fully_shard()"
        )
    group: ProcessGroup = process_group if process_group is not None else meshes[0].get_group()
    return group


def whole(sharded: Iterable[Any], parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters that none of the modules has spread."""
    under = {id(parameter) for module in sharded for parameter in module.parameters()}
    return {name: p for name, p in parameters.items() if id(p) not in under or not hasattr(p, "device_mesh")}


def _is_sharded(module: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
