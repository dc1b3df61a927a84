"""Modules in DistributedDataParallel (DDP): which of them can train in turns.

What DDP does with frozen parameters, measured with torch 2.13 and checked by
tests/unit/adapters/torch/test_distributed.py:

- it averages gradients of what required them when it was built, and silently of nothing else;
- a backward pass that reaches some of these but not all leaves it waiting, unless it was built with
  ``find_unused_parameters=True``; one that reaches none does no harm;
- with ``static_graph=True`` it assumes that every backward pass reaches the parameters that the first one reached.
"""

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alternator import ConfigurationError
from alternator.checks import listed


def find_wrappers(given: Iterable[object]) -> list[DistributedDataParallel]:
    """Every DDP wrapper that is, or is in, one of the modules given; each once."""
    return [each for each in all_inside(given) if isinstance(each, DistributedDataParallel)]


def all_inside(given: Iterable[object]) -> list[nn.Module]:
    """The modules among what is given and all that is in them; each once."""
    inside = (submodule for module in given if isinstance(module, nn.Module) for submodule in module.modules())
    return list({id(submodule): submodule for submodule in inside}.values())


def check_wrappers(
    wrappers: Iterable[DistributedDataParallel],
    parameters: Mapping[str, nn.Parameter],
    turns: Mapping[str, Collection[str]],
) -> dict[str, nn.Parameter]:
    """Refuse wrappers that wait forever for a frozen module, or let an active one drift apart between processes.

    Args:
        wrappers: All DDP wrappers.
        parameters: The parameters of all modules, by name.
        turns: Per turn the names of the parameters that train in it.

    Returns:
        The parameters whose gradients no wrapper averages: all frozen, and they must stay frozen.

    Raises:
        ConfigurationError: Naming the wrapper's option, or the parameter.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    reduced: dict[int, DistributedDataParallel] = {}
    for wrapper in wrappers:
        _check_options(wrapper)
        own = registered(wrapper)
        twice = [names.get(id(each), "one of no module") for each in own if id(each) in reduced]
        if twice:
            raise ConfigurationError(
                f"a parameter must be in one DistributedDataParallel, but {listed(twice)} is in two; wrap either the "
                "whole model or each module"
            )
        reduced |= {id(each): wrapper for each in own}
        if not wrapper.find_unused_parameters:
            _check_trains_as_one(own, names, turns)
    unreduced = {name: parameter for name, parameter in parameters.items() if id(parameter) not in reduced}
    check_reduced(unreduced)
    return unreduced


def check_reduced(unreduced: Mapping[str, nn.Parameter]) -> None:
    """Refuse a parameter that trains though no wrapper averages its gradients.

    Raises:
        ConfigurationError: Naming it.
    """
    training = [name for name, parameter in unreduced.items() if parameter.requires_grad]
    if training:
        raise ConfigurationError(
            "what trains must be in a DistributedDataParallel (and have required gradients when that was built) or "
            f"under fully_shard, but {listed(training)} is not, and would drift apart between processes: unfreeze it "
            "(release() of an earlier AlternatingOptimizer does), wrap it, then build the AlternatingOptimizer; if the "
            "whole model is wrapped, give it as model="
        )


def registered(wrapper: DistributedDataParallel) -> list[Tensor]:
    """The parameters whose gradients the wrapper averages: those that required them when it was built."""
    buckets = wrapper.reducer._get_zeros_like_grad_buckets()  # DDP keeps no other list of them
    return [parameter for bucket in buckets for parameter in bucket.parameters()]


def _check_options(wrapper: DistributedDataParallel) -> None:
    for option, remedy in (
        ("static_graph", "the graph changes with each switch; use find_unused_parameters=True"),
        ("mixed_precision", "it is not known to leave frozen parameters alone; use torch.autocast"),
        ("_use_python_reducer", "it is not known to leave frozen parameters alone; set optimize_ddp to another mode"),
    ):
        if getattr(wrapper, option, None):
            raise ConfigurationError(
                f"DistributedDataParallel must be without {option.removeprefix('_use_')}, "
                f"got {getattr(wrapper, option)!r}: {remedy}"
            )


def _check_trains_as_one(own: list[Tensor], names: Mapping[int, str], turns: Mapping[str, Collection[str]]) -> None:
    for turn, training in turns.items():
        frozen = [
            names.get(id(each), "one of no module")
            for each in own
            if (names[id(each)] not in training if id(each) in names else not each.requires_grad)
        ]
        if 0 < len(frozen) < len(own):
            raise ConfigurationError(
                f"a DistributedDataParallel in which {turn!r} freezes some parameters ({listed(frozen)}) and trains "
                "others must not wait for the frozen ones, but find_unused_parameters is False; set it to True (with "
                "Accelerate: kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]), or wrap "
                "each module by itself"
            )
