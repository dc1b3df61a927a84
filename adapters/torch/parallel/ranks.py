"""Processes that train one model together: losses averaged so that every rank decides the same, and checks of that."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adapters.contract import FreezeError
from adapters.torch.losses import LateCopy, Loss
from adapters.torch.parallel.ddp import check_reduced
from adapters.torch.parallel.fsdp import reshard
from alternator import ConfigurationError, Decision

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How modules are spread over processes."""

    wrappers: Sequence[DistributedDataParallel] = ()
    """The DDP wrappers; none if users average gradients themselves."""
    sharded: Sequence[Any] = ()
    """The modules under ``fully_shard``."""
    unreduced: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """The parameters whose gradients nobody averages, by name: they must stay frozen."""


class Ranks:
    """What must be the same in every process of a group: the losses behind each decision, and frozen buffers.

    Args:
        group: The processes.
        names: The names that losses may have.
        modules: Per module its parameters.
        spread: How the modules are spread over the processes.
        check_every: Compare decisions and parameters every this many decisions; None is never.

    Raises:
        ConfigurationError: This process is not in the group.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        names: Iterable[str],
        modules: Mapping[str, Sequence[nn.Parameter]],
        spread: Spread,
        check_every: int | None,
    ) -> None:
        if dist.get_rank(group) < 0:
            raise ConfigurationError("process_group must hold this process, got one that does not; give another")
        self._group = group
        self._names = tuple(names)
        self._modules = modules
        self._spread = spread
        self._check_every = check_every
        self._num_decisions = 0
        self._digest = b""

    def send(self, losses: Mapping[str, Loss]) -> AveragedLosses:
        """Average the losses of one step, without waiting for it."""
        return AveragedLosses(losses, self._names, self._group, self._device)

    def mean(self, value: Loss) -> Tensor:
        """The mean of a scalar over the ranks, on the device."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        total += value.detach() if isinstance(value, Tensor) else value
        dist.all_reduce(total, group=self._group)
        return total / dist.get_world_size(self._group)

    @property
    def aligned_buffers(self) -> frozenset[int]:
        """The ``id`` of the buffers that DDP copies from the first rank in each forward pass."""
        return frozenset(id(buffer) for wrapper in self._spread.wrappers for buffer in _broadcast_buffers(wrapper))

    def align_buffers(self, submodules: Iterable[nn.Module]) -> None:
        """Copy the first rank's buffers now: DDP would in the next forward pass, when they must not change any more."""
        aligned = self.aligned_buffers
        first = dist.get_global_rank(self._group, 0)
        for submodule in submodules:
            for buffer in submodule.buffers(recurse=False):
                if id(buffer) in aligned:
                    dist.broadcast(buffer, src=first, group=self._group)

    def reshard(self) -> None:
        """Shard parameters again that a forward pass has left gathered; must come before anything is switched."""
        reshard(self._spread.sharded)

    def check_reduced(self) -> None:
        """Refuse an update whose gradients have not been averaged.

        Raises:
            FreezeError: A wrapper is in ``no_sync()``.
            ConfigurationError: A parameter trains whose gradients no wrapper averages.
        """
        check_reduced(self._spread.unreduced)
        if not all(wrapper.require_backward_grad_sync for wrapper in self._spread.wrappers):
            raise FreezeError(
                "an update must have gradients that are averaged across ranks, but a DistributedDataParallel is in "
                "no_sync(): leave that before the forward pass of the last micro-step"
            )

    def check_decision(self, decision: Decision) -> None:
        """Note a decision; every ``check_every`` decisions compare all since the start, and the parameters.

        Raises:
            FreezeError: Ranks differ; raised on every rank, with the decision of each.
        """
        if self._check_every is None:
            return
        said = repr((decision.step, decision.active, decision.reason, decision.value, decision.limit))
        self._digest = hashlib.blake2b(self._digest + said.encode(), digest_size=8).digest()
        self._num_decisions += 1
        if self._num_decisions % self._check_every == 0:
            self._compare(decision)

    def _compare(self, decision: Decision) -> None:
        bits = {name: _bits(parameters) for name, parameters in self._modules.items()} if self._spread.wrappers else {}
        every = [(self._digest, decision.explain(), bits)] * dist.get_world_size(self._group)
        dist.all_gather_object(every, (self._digest, decision.explain(), bits), group=self._group)
        digests, said, bits_of_ranks = zip(*every, strict=True)
        differing = self._differing(digests)
        if differing:
            raise FreezeError(
                f"decisions must be the same on every rank, but by now those of {differing}: {_listed_by_rank(said)}. "
                "Record only values that are averaged across ranks, and call the same methods on all"
            )
        for name in bits:
            differing = self._differing([each[name] for each in bits_of_ranks])
            if differing:
                raise FreezeError(
                    f"parameters must be the same on every rank, but after step {decision.step} those of {name!r} of "
                    f"{differing}: gradients were not averaged (is a forward pass in no_sync() or past the wrapper?), "
                    "or something else changed them"
                )

    def _differing(self, every: Sequence[object]) -> str:
        """Which ranks differ from the first, in words; empty if none does."""
        ranks = dist.get_process_group_ranks(self._group)
        differing = [str(rank) for rank, each in zip(ranks, every, strict=True) if each != every[0]]
        return f"rank {', '.join(differing)} differ from rank {ranks[0]}'s" if differing else ""

    @property
    def _device(self) -> torch.device:
        return next(each.device for parameters in self._modules.values() for each in parameters)


class AveragedLosses:
    """The means over all ranks of one step's losses, not yet read; a rank that has no loss does not count in its mean.

    Args:
        losses: This rank's.
        names: All names that any rank may give, the same and in the same order on all.
        group: The processes.
        device: Where the group communicates.
    """

    def __init__(
        self, losses: Mapping[str, Loss], names: tuple[str, ...], group: dist.ProcessGroup, device: torch.device
    ) -> None:
        self._names = names
        sums_2N = torch.zeros(
            2, len(names), dtype=torch.float64, device=device
        )  # sums of losses, and counts of ranks that gave one
        for name, value in losses.items():
            sums_2N[0, names.index(name)] = value.detach().squeeze() if isinstance(value, Tensor) else value
            sums_2N[1, names.index(name)] = 1
        self._sums_2N = sums_2N
        self._copy: LateCopy | None = None
        self._work = dist.all_reduce(sums_2N, group=group, async_op=True)
        if sums_2N.is_cuda:
            self._finish()  # there the stream waits, not the host

    def read(self) -> dict[str, float]:
        """The means by name."""
        if self._copy is None:
            self._finish()
        assert self._copy is not None
        totals, counts = self._copy.wait().tolist()
        return {
            name: total / count for name, total, count in zip(self._names, totals, counts, strict=True) if count > 0
        }

    def _finish(self) -> None:
        assert self._work is not None
        self._work.wait()
        self._copy = LateCopy(self._sums_2N)


def _broadcast_buffers(wrapper: DistributedDataParallel) -> list[Tensor]:
    if not getattr(wrapper, "forward_sync_buffers", getattr(wrapper, "broadcast_buffers", True)):
        return []
    ignored = wrapper.parameters_to_ignore
    return [buffer for name, buffer in wrapper.module.named_buffers() if name not in ignored]


def _listed_by_rank(said: Sequence[str]) -> str:
    """What the ranks say, each different string once.

    Example:
        >>> _listed_by_rank(["a", "b", "a"])
        "'a' (2 ranks), 'b' (1 rank)"
    """
    counts = Counter(said)
    return ", ".join(f"{each!r} ({count} rank{'s' * (count > 1)})" for each, count in counts.most_common(3))


def _bits(parameters: Sequence[nn.Parameter]) -> list[int]:
    """One number per parameter that depends on its bits."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    views = (each.detach().contiguous().view(sizes.get(each.element_size(), torch.uint8)) for each in parameters)
    return [int(view.sum(dtype=torch.int64)) for view in views]
