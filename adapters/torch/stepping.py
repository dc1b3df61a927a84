"""Clipping gradients and stepping the optimizers and schedulers of a turn, with a GradScaler or without one."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

from adapters.torch.checks import needs_no_closure, parameters_of
from adapters.torch.freezer import Freezer
from adapters.torch.schedules import Epochs, Schedulers, check_schedulers, list_schedulers
from adapters.torch.shares import Shares, showing
from alternator import ConfigurationError
from alternator.checks import one_line


class Stepper:
    """Steps what has gradients: the optimizers of the applied turn, each followed by its scheduler.

    Args:
        freezer: Knows the turns and holds the optimizers.
        schedulers: Per module name (or ``"always"``) a scheduler or several, stepped after that module's updates only,
            or as ``(scheduler, "epoch")`` by `epochs`.
        clip_norm: Clip the gradients of all that trains to this total norm.
        scaler: A GradScaler for float16, which skips updates whose gradients are not finite.
        step: Steps optimizers and returns those that updated; by default `step_optimizers`.

    Raises:
        ConfigurationError: A scheduler drives what is not its module's, or ``clip_norm`` is not positive.
    """

    def __init__(
        self,
        freezer: Freezer,
        *,
        schedulers: Schedulers | None = None,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        step: Callable[[Sequence[Optimizer]], Sequence[Optimizer]] | None = None,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigurationError(f"clip_norm must be above 0 or None, got {clip_norm!r}")
        given = list_schedulers(schedulers)
        check_schedulers(freezer.groups, given, freezer.optimizers)
        self.epochs = Epochs(given, freezer.groups)
        """The schedulers that move at the end of an epoch."""
        self._clip_norm = clip_norm
        self._scaler = scaler
        self._step = partial(step_optimizers, scaler=scaler) if step is None else step
        self._shares = Shares(freezer)
        self._turn_schedulers = {
            name: [scheduled for scheduled in given if turn.trains(scheduled.module)]
            for name, turn in freezer.turns.items()
        }
        self.grad_norm: Tensor | None = None
        """Total norm of the last update's gradients before clipping, on its device; None without ``clip_norm``."""

    def update(self, name: str) -> bool:
        """Clip and step for the turn of this name; False if the scaler skipped an optimizer."""
        shares = [share for share in self._shares.find() if any(p.grad is not None for p in share.parameters)]
        stepping = [share.optimizer for share in shares]
        if self._clip_norm is not None:
            self.grad_norm = clip(stepping, self._clip_norm, self._scaler)
        with showing(shares):
            try:
                updated = self._step(stepping)
            except (TypeError, ValueError, RuntimeError, AssertionError) as error:
                refuse_closures(stepping, error)
                raise
        for scheduled in self._turn_schedulers[name]:
            if not scheduled.drives(updated):
                continue
            if scheduled.per_epoch:
                self.epochs.note(scheduled)
            else:
                scheduled.scheduler.step()
        return len(updated) == len(stepping)


def clip(optimizers: Sequence[Optimizer], clip_norm: float, scaler: GradScaler | None) -> Tensor:
    """Clip the gradients of these optimizers to a total norm; returns the norm before.

    Parameters without a gradient (frozen ones) do not count.
    """
    if scaler is not None:
        unscale(optimizers, scaler)
    parameters = [p for optimizer in optimizers for p in parameters_of(optimizer) if p.grad is not None]
    dense = [_with_dense_gradient(parameter) for parameter in parameters]
    norm = nn.utils.get_total_norm([each.grad for each in dense if each.grad is not None])
    nn.utils.clip_grads_with_norm_(dense, clip_norm, norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded parameters


def _with_dense_gradient(parameter: nn.Parameter) -> Tensor:
    """The parameter; if its gradient is sparse, a tensor whose gradient is what that holds, each row once, in place.

    To scale the sparse gradient itself would mark it as one that may hold rows several times again, and to sort them
    out makes the host wait for the device.
    """
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        return parameter
    parameter.grad = gradient.coalesce()
    values = parameter.grad.values()
    holder = torch.empty_like(values)
    holder.grad = values
    return holder


def step_optimizers(optimizers: Sequence[Optimizer], scaler: GradScaler | None) -> list[Optimizer]:
    """Step each optimizer; returns those that updated. A scaler skips those with infinite or NaN gradients."""
    if scaler is None:
        for optimizer in optimizers:
            optimizer.step()
        return list(optimizers)
    fused = any(skips_in_kernel(optimizer) for optimizer in optimizers)
    scale = scaler.get_scale() if fused else 0.0
    updated = [optimizer for optimizer in optimizers if _runs(optimizer, scaler)]
    scaler.update()
    return [] if fused and scaler.get_scale() < scale else updated


def unscale(optimizers: Sequence[Optimizer], scaler: GradScaler) -> None:
    """Divide the gradients of these optimizers by the scale, where the user has not done so in this step."""
    for optimizer in optimizers:
        state = scaler._per_optimizer_states.get(id(optimizer))
        if state is None or state["stage"] is not OptState.UNSCALED:
            scaler.unscale_(optimizer)


def forget_unscaled(scaler: GradScaler) -> None:
    """The step's gradients are dropped: the next ones are not taken for divided by the scale.

    If the user has had them divided, the scale falls or grows by what was found in them, as after a step.
    """
    if any(state["found_inf_per_device"] for state in scaler._per_optimizer_states.values()):
        scaler.update()
    scaler._per_optimizer_states.clear()


def refuse_closures(optimizers: Sequence[Optimizer], error: Exception) -> None:
    """Say what to do, if it is for a closure that the step of an optimizer has failed.

    Raises:
        ConfigurationError: With the optimizer's own error.
    """
    said = str(error)
    if "closure" in said or "'NoneType' object is not callable" in said:
        raise ConfigurationError(needs_no_closure(optimizers, f"but one asks for it ({one_line(said)})")) from error


def skips_in_kernel(optimizer: Optimizer) -> bool:
    """Whether the optimizer is a fused one, whose kernel skips a step of a GradScaler without the host's knowing.

    Only a lower scale shows that it did, and reading that waits for the device.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _runs(optimizer: Optimizer, scaler: GradScaler) -> bool:
    """Step the optimizer through the scaler, and find out with a hook whether it ran: the scaler does not say."""
    runs: list[bool] = []
    hook = optimizer.register_step_post_hook(lambda *_: runs.append(True))
    try:
        scaler.step(optimizer)
    finally:
        hook.remove()
    return bool(runs)
