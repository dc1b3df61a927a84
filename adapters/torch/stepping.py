"""Stepping optimizers, with a GradScaler or without one, and telling which of them updated."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


def clip(optimizers: Sequence[Optimizer], clip_norm: float, scaler: GradScaler | None) -> Tensor:
    """Clip the gradients of these optimizers to a total norm; returns the norm before.

    Parameters without a gradient (frozen ones) have no part in it.
    """
    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_([p for optimizer in optimizers for p in parameters_of(optimizer)], clip_norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded parameters


def step(optimizers: Sequence[Optimizer], scaler: GradScaler | None) -> list[Optimizer]:
    """Step each optimizer; returns those that updated. A scaler skips those with infinite or NaN gradients."""
    if scaler is None:
        for optimizer in optimizers:
            optimizer.step()
        return list(optimizers)
    # A fused optimizer skips inside its kernel: only the scale tells, at the price of waiting for the device.
    fused = any(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers)
    scale = scaler.get_scale() if fused else 0.0
    updated = [optimizer for optimizer in optimizers if _runs(optimizer, scaler)]
    scaler.update()
    return [] if fused and scaler.get_scale() < scale else updated


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _runs(optimizer: Optimizer, scaler: GradScaler) -> bool:
    """Whether the scaler lets the optimizer run: it tells nobody, so a hook listens."""
    runs: list[bool] = []
    hook = optimizer.register_step_post_hook(lambda *_: runs.append(True))
    try:
        scaler.step(optimizer)
    finally:
        hook.remove()
    return bool(runs)
