"""A host to which states are offloaded where there is no device but the host itself."""

from typing import Any

import torch
from torch import Tensor

from adapters.torch.host import Host, _rebuilt


class MarkedHost(Host):
    """A host beside a device that is the host: what is on it has a mark. Copies of it have none."""

    def has(self, tensor: Tensor) -> bool:
        return tensor.dim() == 0 or hasattr(tensor, "is_on_host")

    def fetch(self, tensor: Tensor) -> Tensor:
        return self.mark(_rebuilt(tensor.detach(), torch.clone))

    def send(self, tensor: Tensor, device: torch.device) -> Tensor:
        sent: Tensor = _rebuilt(tensor, torch.clone)
        return sent

    def mark(self, tensor: Any) -> Tensor:
        """The tensor, which is on the host from here on."""
        tensor.is_on_host = True
        return tensor  # type: ignore[no-any-return]
