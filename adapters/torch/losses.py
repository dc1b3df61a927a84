"""Losses on their way from the device to the alternator: read late, so that the host never waits for the device."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from alternator import LossError
from alternator.checks import to_float
from alternator.errors import quoted

Loss = Tensor | float
"""A scalar: a tensor of one element on any device, or a number."""


class LateCopy:
    """A copy of a tensor on its way to the host; `wait` waits only if it has not arrived.

    From CUDA it is copied into pinned memory without blocking and marked with an event; elsewhere it is cloned.
    """

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not value.is_cuda:
            self._host = value.detach().clone()
            return
        self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._host.copy_(value.detach(), non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(value.device))

    def wait(self) -> Tensor:
        """The tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class LateScalar:
    """A copy of one scalar on its way to the host, see `LateCopy`.

    Args:
        value: A tensor of one element, on any device, or a number.
    """

    def __init__(self, value: Loss) -> None:
        self._copy = LateCopy(value) if isinstance(value, Tensor) else None
        self._number = 0.0 if isinstance(value, Tensor) else float(value)

    def read(self) -> float:
        """The number; waits only if it has not arrived."""
        return self._number if self._copy is None else float(self._copy.wait())


class LateLosses(Protocol):
    """The losses of one step, on their way to the host."""

    def read(self) -> dict[str, float]:
        """The losses by name."""


class LocalLosses:
    """Losses as they are in this process."""

    def __init__(self, losses: Mapping[str, Loss]) -> None:
        self._scalars = {name: LateScalar(value) for name, value in losses.items()}

    def read(self) -> dict[str, float]:
        """The losses by name."""
        return {name: scalar.read() for name, scalar in self._scalars.items()}


class PendingLosses:
    """The losses of the last steps, by name, and the sums of the step that is being accumulated.

    Args:
        delay: How many steps later a step's losses are read.
        send: Starts copying the losses of a step to the host.
    """

    def __init__(self, delay: int, send: Callable[[Mapping[str, Loss]], LateLosses] = LocalLosses) -> None:
        self._delay = delay
        self._send = send
        self._steps: deque[tuple[int, LateLosses]] = deque()
        self._sums: dict[str, tuple[Loss, int]] = {}

    def add(self, losses: Mapping[str, Loss], *, summed: bool = False) -> None:
        """Add the losses of one micro-step to the step's means; or to its sums, if they are parts of a whole."""
        for name, value in losses.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            if name in self._sums:
                total, count = self._sums[name]
                self._sums[name] = (total + _widened(detached), count + (not summed))
            else:
                self._sums[name] = (detached, 1)

    def close_step(self, step: int) -> Iterator[tuple[int, str, float]]:
        """End the step of this number: copy its means to the host; yields the losses that are due, oldest first."""
        means = {name: total if count == 1 else total / count for name, (total, count) in self._sums.items()}
        self._steps.append((step, self._send(means)))
        self._sums = {}
        return self._read(self._delay)

    def flush(self) -> Iterator[tuple[int, str, float]]:
        """All that are still pending, oldest first."""
        return self._read(0)

    def _read(self, keep: int) -> Iterator[tuple[int, str, float]]:
        while len(self._steps) > keep:
            step, losses = self._steps.popleft()
            for name, value in losses.read().items():
                yield step, name, value

    def state(self) -> list[dict[str, str]]:
        """The pending losses, as strings from which the same floats can be read (JSON has no NaN)."""
        return [{name: repr(value) for name, value in losses.read().items()} for _, losses in self._steps]

    def load(self, state: list[dict[str, float]], step: int) -> None:
        """Replace the pending losses by those of `state`, of which the last belong to this step."""
        first = step - len(state) + 1
        self._steps = deque(enumerate(map(LocalLosses, state), first))
        self._sums = {}


def check_scalar(name: str, value: object) -> None:
    """Refuse a loss that is not a real scalar, without reading it from its device.

    Raises:
        LossError: Naming the module and what was given.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise LossError(
                f"a loss must be a real scalar, got a {value.dtype} tensor of shape {tuple(value.shape)} for {name!r}; "
                f"{'take its .real' if value.is_complex() else 'reduce it with .mean()'}"
            )
        return
    try:
        to_float(value)
    except LossError as error:
        raise LossError(
            f"a loss must be a real scalar, got {quoted(value, 60)} for {name!r}; give a number or a scalar tensor"
        ) from error


def check_differentiable(active: str, loss: object) -> None:
    """Refuse to minimise what has no gradient, before PyTorch does so in words that name no module.

    Raises:
        LossError: With the remedy.
    """
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss to minimise must be a tensor, got {loss!r}; give it as the forward pass returned it, not .item()"
        )
    check_scalar(active, loss)
    if not loss.requires_grad:
        raise LossError(
            f"the loss reaches no parameter of {active!r}, which is active: it requires no gradient; give a loss that "
            "depends on it, computed without no_grad() and detach(), or call skip() if this step has nothing for it"
        )


def _widened(value: Loss) -> Loss:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
