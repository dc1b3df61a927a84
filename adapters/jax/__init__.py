"""JAX: the alternator inside ``jit`` and ``lax.scan``, and one outside for losses that are still on the device."""

from adapters.jax.device import DeviceAlternator, DeviceDecision, DeviceState
from adapters.jax.host import HostAlternator
from adapters.jax.rules import REASONS, DeviceFacts, DeviceVerdict, device_step, reason_code
from adapters.jax.trial import trial_step as _registered  # noqa: F401

__all__ = [
    "REASONS",
    "DeviceAlternator",
    "DeviceDecision",
    "DeviceFacts",
    "DeviceState",
    "DeviceVerdict",
    "HostAlternator",
    "device_step",
    "reason_code",
]
