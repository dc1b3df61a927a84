"""Losses on their way from the device to the alternator: read late, so that the host never waits for the device."""

from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from alternator import LossError

Loss = Tensor | float
"""A scalar: a tensor of one element on any device, or a number."""


class LateScalar:
    """A copy of one scalar that is under way to the host; `read` waits only if it has not arrived.

    From CUDA it is copied into pinned memory without blocking and marked with an event; elsewhere it is cloned.
    """

    def __init__(self, value: Loss) -> None:
        self._event: torch.cuda.Event | None = None
        self._host: Loss
        if not isinstance(value, Tensor):
            self._host = float(value)
        elif value.is_cuda:
            self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._host.copy_(value.detach(), non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(value.device))
        else:
            self._host = value.detach().clone()

    def read(self) -> float:
        """The number."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)


class PendingLosses:
    """The losses of the last steps, each under the name it belongs to, and the sums of the step being accumulated.

    Args:
        delay: How many steps later a step's losses are read.
    """

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._steps: deque[tuple[int, dict[str, LateScalar]]] = deque()
        self._sums: dict[str, tuple[Loss, int]] = {}

    def add(self, losses: Mapping[str, Loss]) -> None:
        """Add the losses of one micro-step to the step's means."""
        for name, value in losses.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            if name in self._sums:
                total, count = self._sums[name]
                self._sums[name] = (total + _widened(detached), count + 1)
            else:
                self._sums[name] = (detached, 1)

    def close_step(self, step: int) -> Iterator[tuple[int, str, float]]:
        """End the step of this number: its means set out for the host; those that are due are yielded, oldest first."""
        means = {name: total if count == 1 else total / count for name, (total, count) in self._sums.items()}
        self._steps.append((step, {name: LateScalar(mean) for name, mean in means.items()}))
        self._sums = {}
        return self._read(self._delay)

    def flush(self) -> Iterator[tuple[int, str, float]]:
        """All that is still under way, oldest first."""
        return self._read(0)

    def _read(self, keep: int) -> Iterator[tuple[int, str, float]]:
        while len(self._steps) > keep:
            step, losses = self._steps.popleft()
            for name, scalar in losses.items():
                yield step, name, scalar.read()

    def state(self) -> list[dict[str, str]]:
        """The losses under way, as texts that give the same floats back (JSON has no NaN)."""
        return [{name: repr(scalar.read()) for name, scalar in losses.items()} for _, losses in self._steps]

    def load(self, state: list[dict[str, float]], step: int) -> None:
        """Replace the losses under way by those of `state`, of which the last are of this step."""
        first = step - len(state) + 1
        late = ({name: LateScalar(value) for name, value in losses.items()} for losses in state)
        self._steps = deque(enumerate(late, first))
        self._sums = {}


def check_scalar(name: str, value: object) -> None:
    """Refuse a loss that is no real scalar, without reading it from its device.

    Raises:
        LossError: Naming the module and what was given.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise LossError(
                f"a loss must be a real scalar, got a {value.dtype} tensor of shape {tuple(value.shape)} for {name!r}; "
                "reduce it with .mean()"
            )
        return
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise LossError(f"a loss must be a real scalar, got {value!r} for {name!r} ({error})") from error


def _widened(value: Loss) -> Loss:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
