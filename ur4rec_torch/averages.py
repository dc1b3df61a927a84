"""Moving averages of the weights, one count of updates per module; see `ur4rec.config.TrainerConfig.ema_decay`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ur4rec.training.shapes import AVERAGE
from ur4rec_torch.checkpoint import plain_name
from ur4rec_torch.spread import is_spread, spread_like


class Averages:
    """The average of each weight, by its module.

    `torch.optim.swa_utils.AveragedModel` has one count for a whole model, of which it copies text vectors and buffers
    too. Here a module's average follows its own updates, so that what is frozen keeps every bit.

    A table whose rows are updated as they are used is averaged whole in each update of its module: so the average is
    the same as that of every other weight, at the cost of reading and writing the table once.

    Args:
        modules: The parts of the model that train, as their optimizers know them.
        optimizers: Their optimizers, whose counts of updates are those of the averages.
        decay: At most this share of an average remains in an update.

    Example:
        >>> linear = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1)
        >>> averages, before = Averages({"linear": linear}, {"linear": optimizer}, 0.9), linear.weight.item()
        >>> linear(torch.ones(1, 1)).sum().backward()
        >>> optimizer.step()
        >>> averages.follow(["linear"], None)
        >>> expected = before + (1 - 2 / 11) * (linear.weight.item() - before)
        >>> abs(averages.state_dict()["linear.weight/average"].item() - expected) < 1e-6
        True
    """

    def __init__(self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], decay: float) -> None:
        self._optimizers = optimizers
        self._decay = decay
        self._names = {
            part: [f"{part}.{plain_name(name)}/{AVERAGE}" for name, _ in module.named_parameters()]
            for part, module in modules.items()
        }
        self._weights = {part: [*module.parameters()] for part, module in modules.items()}
        self._averages = {part: [each.detach().clone() for each in own] for part, own in self._weights.items()}

    @torch.no_grad()
    def follow(self, parts: Iterable[str], is_finite: Tensor | None) -> None:
        """Take an update into account.

        Args:
            parts: What was updated.
            is_finite: Whether the step had an effect, on the device; None where it is known that it had.
        """
        for part in parts:
            count = next((each["step"] for each in self._optimizers[part].state.values()), None)
            if count is None:
                continue
            averages, weights = _local(self._averages[part]), _local(self._weights[part])
            if is_finite is None:
                share = 1 - min(self._decay, (1 + count.item()) / (10 + count.item()))
                torch._foreach_lerp_(averages, weights, share)
                continue
            share_on_device = 1 - ((1 + count) / (10 + count)).clamp(max=self._decay)
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(torch.where(is_finite, torch.lerp(average, weight, share_on_device), average))

    @torch.no_grad()
    def restart(self, part: str) -> None:
        """Average a part from its weights as they are now."""
        torch._foreach_copy_(_local(self._averages[part]), _local(self._weights[part]))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for weights within it, and afterwards its own again, to the bit."""
        with torch.no_grad():
            weights = [each for part in self._weights.values() for each in _local(part)]
            own = [each.clone() for each in weights]
            torch._foreach_copy_(weights, [each for part in self._averages.values() for each in _local(part)])
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by their names in a checkpoint."""
        return {
            name: average
            for part, names in self._names.items()
            for name, average in zip(names, self._averages[part], strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned, or whole tensors in its place."""
        for name, average in self.state_dict().items():
            found = state[name] if is_spread(state[name]) else spread_like(state[name], average)
            for to, each in zip(_local([average]), _local([found]), strict=True):
                to.copy_(each)


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process has of each, to be written without being counted as a write: it is undone, or no weight."""
    return [getattr(each, "to_local")() if is_spread(each) else each.data for each in tensors]  # noqa: B009
