"""Accelerate: `Follower` keeps the freeze contract in a loop of your own that `Accelerator.prepare` has prepared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer

import adapters.torch
from adapters.contract import FrozenMode, FrozenState
from adapters.torch.checks import Optimizers
from adapters.torch.losses import Loss
from adapters.torch.modules import Parameters
from alternator import Alternator, ConfigurationError, Decision

T = TypeVar("T")
SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
"""One process, or several that each hold the whole model."""


class Follower(adapters.torch.Follower):
    """Freezes and decides in a loop that Accelerate prepared; backward, clipping and steps stay its own.

    Build it once, after ``accelerator.prepare``, of what that returned, and call `after_step` last in every batch. It
    is saved and loaded by ``accelerator.save_state`` and ``load_state``. Several processes decide the same, by the
    means of their losses.

    Args:
        accelerator: Says when gradients are synchronised, and saves the schedule.
        alternator: Decides who trains.
        modules: Per module name what it is, as `adapters.torch.AlternatingOptimizer` has it.
        optimizers: As they were prepared: one over all, or one per module name, or several for each.
        model: The model that holds them all, as it was prepared. Needed with several processes, unless each module has
            been prepared by itself.
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.
        frozen_mode: How modules run while they are frozen, as `adapters.torch.AlternatingOptimizer` has it.
        frozen_state: What becomes of the optimizer state of what is frozen, likewise.
        check_ranks_every: For debugging: compare decisions and parameters across ranks after this many decisions each.

    Raises:
        ConfigurationError: Names, ownership or coverage are wrong, or the model is sharded; the message says which and
            what to do.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from adapters.accelerate import Follower
        >>> from alternator import Alternator, Cycle
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
        >>> model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        >>> modules = {"encoder": model[0], "head": model[1]}
        >>> follower = Follower(accelerator, Alternator(modules, rule=Cycle(2)), modules, optimizer, model=model)
        >>> for step in range(3):
        ...     with accelerator.accumulate(model):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         accelerator.backward(loss)
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         decision = follower.after_step(loss)
        >>> decision.active
        'head'
    """

    def __init__(
        self,
        accelerator: Accelerator,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        delay: int = 1,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        check_ranks_every: int | None = None,
    ) -> None:
        if accelerator.distributed_type not in [getattr(DistributedType, name, None) for name in SUPPORTED]:
            raise ConfigurationError(
                "every process must hold the whole model for now, got "
                f"{accelerator.distributed_type.value}: frozen modules are not known to stay as they are; use "
                "DistributedDataParallel (multi_gpu or multi_cpu)"
            )
        if isinstance(optimizers, Mapping):
            inside: Optimizers = {name: _unwrapped(each) for name, each in optimizers.items()}
        else:
            inside = _unwrapped(optimizers)
        if isinstance(always, tuple):
            always = tuple(_unwrapped(each) for each in always)
        self._accelerator = accelerator
        super().__init__(
            alternator,
            modules,
            inside,
            model=model,
            turns=turns,
            always=always,
            delay=delay,
            scaler=accelerator.scaler,
            frozen_mode=frozen_mode,
            frozen_state=frozen_state,
            check_ranks_every=check_ranks_every,
        )
        accelerator.register_for_checkpointing(self)

    def after_step(
        self,
        losses: Loss | Mapping[str, Loss] | None = None,
        *,
        ended: bool | None = None,
        updated: bool | None = None,
        summed: bool = False,
    ) -> Decision | None:
        """See `adapters.torch.Follower.after_step`; the window ends where Accelerate synchronises gradients.

        Call it within ``accelerator.accumulate``, after ``optimizer.step()``, on every process.
        """
        ended = bool(self._accelerator.sync_gradients) if ended is None else ended
        return super().after_step(losses, ended=ended, updated=updated, summed=summed)


def _unwrapped(given: T) -> T:
    """The optimizer that moves parameters, where `Accelerator.prepare` has wrapped it; or several."""
    if isinstance(given, AcceleratedOptimizer):
        return given.optimizer  # type: ignore[no-any-return]
    if isinstance(given, Sequence) and not isinstance(given, str):
        return type(given)(_unwrapped(each) for each in given)  # type: ignore[call-arg]
    return given
