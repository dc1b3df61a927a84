"""The memory bank: text vectors of past targets, as further negatives of the retriever.

Shapes: B rows, L positions, N positions with a target, M entries of the bank, K preference vectors, d width, I items.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ur4rec.training import arrays
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS
from ur4rec_torch.losses import StepInputs

_EMPTY = -1


LastTargets: TypeAlias = arrays.LastTargets[Tensor]


def find_last_targets(inputs: StepInputs) -> LastTargets:
    """The last target of each row; nothing waits for the device."""
    num_rows, length = inputs.items_BL.shape
    rows_N = inputs.positions_N // length
    count_B = rows_N.new_zeros(num_rows).index_add_(0, rows_N, torch.ones_like(rows_N))
    index_B = (count_B.cumsum(0) - 1).clamp(min=0)
    return LastTargets(index_B, inputs.targets_N[index_B], count_B > 0)


class MemoryBank:
    """A FIFO of (item, key) pairs: the projected, normalised text of past targets, as it was when they were targets.

    It belongs to the trainer, starts empty, and is neither read nor written while the retriever is frozen.

    Args:
        size: The number of entries it can hold; then the oldest are overwritten.
        dim: Width of a key.
        temperature: Cosines are divided by it.
        device: Where it lives.
    """

    def __init__(self, size: int, dim: int, temperature: float, device: torch.device) -> None:
        self.size = size
        self.temperature = temperature
        # One place more than entries: what is not to be kept is written there, so that all shapes are constant.
        self._items = torch.full((size + 1,), _EMPTY, dtype=torch.int32, device=device)
        self._keys = torch.zeros(size + 1, dim, device=device)
        self._cursor = torch.zeros((), dtype=torch.int32, device=device)

    def loss(self, preferences_NKd: Tensor, keys_Id: Tensor, last: LastTargets) -> Tensor:
        """InfoNCE: what each row wants next, against its target's key and the bank's of other items; a mean over rows.

        Args:
            preferences_NKd: Preference vectors where a target is.
            keys_Id: Keys of all items now; gradients reach the targets'.
            last: Of the batch.
        """
        filled = self._filled()
        items_M, keys_Md = self._items[:filled], self._keys[:filled]
        queries_Bd = F.normalize(preferences_NKd[last.index_B].mean(1), dim=-1)
        positive_B1 = (queries_Bd * keys_Id[last.items_B]).sum(1, keepdim=True)
        negative_BM = (queries_Bd @ keys_Md.T).masked_fill(
            (items_M == last.items_B[:, None]) | (items_M == _EMPTY), -torch.inf
        )
        logits_BM = torch.cat([positive_B1.float(), negative_BM.float()], dim=1) / self.temperature
        loss_B = logits_BM.logsumexp(1) - logits_BM[:, 0]
        return (loss_B * last.is_real_B).sum() / last.is_real_B.sum()

    def write(self, items_B: Tensor, keys_Bd: Tensor, is_kept_B: Tensor) -> None:
        """Append the rows that are to be kept, in their order; of more than it holds, the newest."""
        count_B = is_kept_B.cumsum(0)
        is_kept_B = is_kept_B & (count_B > count_B[-1] - self.size)
        places_B = torch.where(is_kept_B, (self._cursor + count_B - 1) % self.size, self.size)
        self._items.index_copy_(0, places_B, items_B.to(self._items.dtype))
        self._keys.index_copy_(0, places_B, keys_Bd.to(self._keys.dtype))
        self._cursor = ((self._cursor + count_B[-1]) % self.size).to(torch.int32)

    def state_dict(self) -> dict[str, Tensor]:
        """Its content, by its names in a checkpoint."""
        return {BANK_ITEMS: self._items[:-1], BANK_KEYS: self._keys[:-1], BANK_CURSOR: self._cursor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._items[:-1].copy_(state[BANK_ITEMS])
        self._keys[:-1].copy_(state[BANK_KEYS])
        self._cursor.copy_(state[BANK_CURSOR])

    def _filled(self) -> int:
        """Entries to look at: on the CPU those that are filled, elsewhere all, so that nothing waits for the device."""
        return int((self._items[:-1] != _EMPTY).sum()) if self._items.device.type == "cpu" else self.size
