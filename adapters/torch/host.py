"""Memory of the host, to which tensors of a device go and from which they come back; on CUDA the host does not wait."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Host:
    """Copies to the host and back.

    On CUDA they go to pinned memory and back on a stream of their own, beside what the device computes, which waits for
    them in `finish`. The host waits in `wait` alone, for those who read what has been fetched. On other devices every
    copy is made at once.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._is_copying = False

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor takes no memory of a device."""
        return tensor.device.type in ("cpu", "meta")

    def fetch(self, tensor: Tensor) -> Tensor:
        """Begin a copy of a tensor, which must be neither written nor freed until `finish`; read it after `wait`."""
        fetched: Tensor = _rebuilt(tensor.detach(), self._fetch)
        return fetched

    def send(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Begin a copy on a device of what has been fetched; there it can be used after `finish`."""
        sent: Tensor = _rebuilt(tensor, partial(self._send, device))
        return sent

    def is_done(self) -> bool:
        """Whether every copy has been made; waits for nothing."""
        return all(stream.query() for stream in self._streams.values())

    def finish(self) -> None:
        """Have the devices wait for the copies: what they are given from here on may write what has been copied."""
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def wait(self) -> None:
        """Wait for the copies."""
        if self._is_copying:
            for stream in self._streams.values():
                stream.synchronize()
        self._is_copying = False

    def _fetch(self, tensor: Tensor) -> Tensor:
        if not _is_cuda(tensor.device):
            return tensor.to("cpu")
        with self._copying(tensor.device):
            copied = torch.empty_like(tensor, device="cpu", pin_memory=True)
            return copied.copy_(tensor, non_blocking=True)

    def _send(self, device: torch.device, tensor: Tensor) -> Tensor:
        if not _is_cuda(device):
            return tensor.to(device)
        sent = torch.empty_like(tensor, device=device)  # memory of the stream that computes, which frees it too
        with self._copying(device):
            return sent.copy_(tensor, non_blocking=True)

    def _copying(self, device: torch.device) -> Any:
        """The stream of copies, which comes after all that the device has been given so far."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._streams[device].wait_stream(torch.cuda.current_stream(device))
        self._is_copying = True
        return torch.cuda.stream(self._streams[device])


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()  # fake tensors are on devices that are not there


def _rebuilt(tensor: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tensor with its values changed; of one made of tensors (a part of a DTensor, a quantised one) these are."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return change(tensor) if isinstance(tensor, Tensor) else tensor  # a DTensor names its mesh too
    names, context = tensor.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(tensor, name), change) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
