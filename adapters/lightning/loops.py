"""The two loops behind `AlternatingCallback`: Lightning steps the optimizer, or the user's training step does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from adapters.contract import ALWAYS
from adapters.torch.checks import parameters_of
from adapters.torch.decisions import Decisions
from adapters.torch.follower import Follower
from adapters.torch.freezer import Freezer
from adapters.torch.losses import Loss, check_differentiable
from adapters.torch.modules import Parameters, Part
from adapters.torch.naming import Naming
from adapters.torch.schedules import Schedule
from adapters.torch.snapshots import Snapshot, Snapshots, Stateful
from adapters.torch.stepping import Stepper
from alternator import Alternator, ConfigurationError, Decision


class FollowedOptimizer:
    """One optimizer for which Lightning calls backward and which it steps, in a closure: this one is told of both.

    The callback calls, in this order, `before_batch`, `before_backward` (unless the batch has no loss), `before_update`
    (where the optimizer is to step) and `after_batch`.

    Args:
        follower: Freezes and decides.
    """

    def __init__(self, follower: Follower) -> None:
        self.schedule = follower
        """Applies, saves and loads what the alternator decides."""
        self._open_window()

    def before_batch(self) -> None:
        """Apply a switch that the user forced, and put frozen modules back in their frozen mode."""
        self.schedule.before_step()

    def before_backward(self, loss: Tensor) -> None:
        """Refuse gradients for a frozen module in training mode, and a loss that has none."""
        self.schedule.before_backward(loss)
        self._has_gradients = True

    def before_update(self) -> None:
        """Only what trains has gradients from here on, before they are clipped; there may be none at all."""
        self._reached = True
        if self._has_gradients:
            self.schedule.before_update()

    def after_batch(self, losses: Mapping[str, Loss]) -> Decision | None:
        """Add the losses of the batch (there may be none); decide and switch if the optimizer has had its step."""
        reached, updated = self._reached, None if self._has_gradients else False
        if reached:
            self._open_window()
        return self.schedule.after_step(losses, ended=reached, updated=updated)

    def snapshot(self, *others: Stateful) -> Snapshot:
        """Copies of all that training changes; see `Follower.snapshot`."""
        return self.schedule.snapshot(*others)

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot; see `Follower.rollback`."""
        self.schedule.rollback(snapshot)

    def close(self) -> None:
        """Unfreeze what the user had not frozen, and stop watching the optimizer."""
        self.schedule.close()

    def _open_window(self) -> None:
        self._has_gradients = self._reached = False


class ManualOptimizer:
    """Backward and the optimizers' steps go through Lightning, which counts them and sets the precision.

    Args:
        alternator: Decides who trains.
        modules: Per module name an ``nn.Module``, or parameters.
        pl_module: Its optimizers and schedulers are found by the parameters that they hold.
        always: What trains in every step.
        clip_norm: Clip the gradients of what trains to this total norm.
        delay: How many steps later losses are read.
        options: As `Freezer` has them.
    """

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        pl_module: LightningModule,
        *,
        always: Parameters | None,
        clip_norm: float | None,
        delay: int,
        **options: Any,
    ) -> None:
        self.pl_module = pl_module
        found = pl_module.optimizers()
        wrapped = found if isinstance(found, list) else [found]
        self._wrapped = {id(each.optimizer): each for each in wrapped}
        optimizers = [each.optimizer for each in wrapped]
        if len(optimizers) == 1:
            schedulers: dict[str, list[Schedule]] = {}
            freezer = Freezer(
                alternator.modules, modules, optimizers[0], always=always, rule=alternator.rule, **options
            )
        else:
            owned, extra = _assign(optimizers, Naming(modules, always, pl_module).parts())
            schedulers = _own_schedulers(pl_module, owned)
            group = always if always is None or extra is None else (always, extra)
            freezer = Freezer(alternator.modules, modules, owned, always=group, rule=alternator.rule, **options)
        self._stepper = Stepper(freezer, schedulers=schedulers, clip_norm=clip_norm, step=self._step_wrapped)
        self._freezer = freezer
        self._snapshots = Snapshots(freezer)
        self.schedule = Decisions(alternator, freezer, delay, self._stepper.epochs)
        """Applies, saves and loads what the alternator decides."""
        self._is_stepping = self._was_bypassed = False
        self._hooks = [optimizer.register_step_post_hook(lambda *_: self._note_step()) for optimizer in optimizers]

    def before_batch(self) -> None:
        """Apply a switch that the user forced, and put frozen modules back in their frozen mode."""
        if self.schedule.alternator.active != self._freezer.applied:
            self.schedule.apply()
        self._freezer.set_frozen_modes()

    def step(self, loss: Tensor, losses: Mapping[str, Loss] | None = None) -> Decision:
        """Backward, update of what is active, decision and switch; see `AlternatingCallback.step`."""
        named = self.schedule.check_losses(loss, losses)
        self.schedule.check_applied()
        check_differentiable(self._freezer.applied, loss)
        self.pl_module.manual_backward(loss)
        self._freezer.prepare_update()
        updated = self._stepper.update(self._freezer.applied)
        self.schedule.add(named)
        return self.schedule.close_step(updated=updated)

    def _step_wrapped(self, optimizers: Sequence[Optimizer]) -> Sequence[Optimizer]:
        self._is_stepping = True
        try:
            for optimizer in optimizers:
                self._wrapped[id(optimizer)].step()
        finally:
            self._is_stepping = False
        return optimizers

    def after_batch(self) -> None:
        """Refuse a batch in which an optimizer was stepped by other means than `step`.

        Raises:
            ConfigurationError: With what to call.
        """
        if self._was_bypassed:
            raise ConfigurationError(
                "optimizers must be stepped by AlternatingCallback.step(loss), but training_step has stepped one, "
                "so no module was chosen: call it in place of manual_backward() and optimizer.step()"
            )

    def end_epoch(self) -> None:
        """Advance the schedulers that move at the end of an epoch, each if its module trained in it."""
        self.schedule.end_epoch(None, torch.as_tensor)

    def snapshot(self, *others: Stateful) -> Snapshot:
        """Copies of all that training changes; see `Follower.snapshot`."""
        return self._snapshots.take(others)

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot; see `Follower.rollback`."""
        self._snapshots.restore(snapshot)
        self.schedule.apply(tentative=True)

    def close(self) -> None:
        """Unfreeze what the user had not frozen, and stop watching the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._freezer.release()

    def _note_step(self) -> None:
        self._was_bypassed = self._was_bypassed or not self._is_stepping


def _assign(
    optimizers: Sequence[Optimizer], parts: Mapping[str, Part]
) -> tuple[dict[str, list[Optimizer]], Optimizer | None]:
    """Per module the optimizers that hold its parameters, and the one of the always group if that has its own."""
    owned = {name: _holders(optimizers, part) for name, part in parts.items() if name != ALWAYS}
    extra = [each for each in optimizers if not any(each is own for holders in owned.values() for own in holders)]
    if len(extra) > (ALWAYS in parts):
        raise ConfigurationError(
            f"every optimizer must hold parameters of a module, but {len(extra)} of {len(optimizers)} hold none; "
            "leave them out, or declare what one of them trains with always="
        )
    return owned, extra[0] if extra else None


def _holders(optimizers: Sequence[Optimizer], part: Part) -> list[Optimizer]:
    own = {id(parameter) for parameter in part.parameters.values()}
    return [each for each in optimizers if any(id(parameter) in own for parameter in parameters_of(each))]


def _own_schedulers(pl_module: LightningModule, owned: Mapping[str, Sequence[Optimizer]]) -> dict[str, list[Schedule]]:
    """Per module those of its optimizers; one that needs a metric, or drives several modules, is the user's.

    Raises:
        ConfigurationError: One is to move at every n-th update or epoch only.
    """
    schedulers: dict[str, list[Schedule]] = {}
    for config in pl_module.trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        driven = [name for name, holders in owned.items() if any(each is scheduler.optimizer for each in holders)]
        if len(driven) == 1 and not isinstance(scheduler, ReduceLROnPlateau):
            if config.frequency != 1:
                raise ConfigurationError(
                    f"the scheduler of {driven[0]!r} must have frequency 1, got {config.frequency}: it moves with its "
                    "module, by its interval; give its own steps instead (StepLR has step_size)"
                )
            own: Schedule = (scheduler, "epoch") if config.interval == "epoch" else scheduler
            schedulers.setdefault(driven[0], []).append(own)
    return schedulers
