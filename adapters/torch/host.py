"""Memory of the host, to which tensors of a device go and from which they come back; on CUDA the host does not wait."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Host:
    """Copies to the host and back.

    On CUDA they go to pinned memory, on a stream of their own beside what the device computes, and come back on the
    stream that computes. The host waits in `wait` alone, for those who read what has been fetched. On other devices
    every copy is made at once.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._is_copying = False

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor takes no memory of a device."""
        return tensor.device.type in ("cpu", "meta")

    def fetch(self, tensor: Tensor) -> Tensor:
        """Begin a copy of a tensor, which must be neither written nor freed until `finish`; read it after `wait`."""
        fetched: Tensor = _rebuilt(tensor.detach(), self._begin)
        return fetched

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

    def send(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy on a device of what has been fetched, if there has been a `finish` since."""
        sent: Tensor = _rebuilt(tensor, lambda part: part.to(device, non_blocking=_is_cuda(device)))
        return sent

    def _begin(self, tensor: Tensor) -> Tensor:
        if not _is_cuda(tensor.device):
            return tensor.to("cpu")
        if tensor.device not in self._streams:
            self._streams[tensor.device] = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        stream = self._streams[tensor.device]
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        self._is_copying = True
        with torch.cuda.stream(stream):
            copied = torch.empty_like(tensor, device="cpu", pin_memory=True)
            return copied.copy_(tensor, non_blocking=True)


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()  # fake tensors are on devices that are not there


def _rebuilt(tensor: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tensor with its values changed; of one made of tensors (a part of a DTensor, a quantised one) these are."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return change(tensor) if isinstance(tensor, Tensor) else tensor  # a DTensor names its mesh too
    names, context = tensor.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(tensor, name), change) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
