"""The memory bank: text vectors of past targets, as further negatives of the retriever.

Shapes: B rows, L positions, N positions with a target (padded), M entries of the bank, K preference vectors, d width,
I items.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ur4rec.training import arrays
from ur4rec_jax.layers import normalize
from ur4rec_jax.losses import StepInputs

_EMPTY = -1


LastTargets: TypeAlias = arrays.LastTargets[Array]


def find_last_targets(inputs: StepInputs, num_items: int) -> LastTargets:
    """The last target of each row."""
    num_rows, length = inputs.items_BL.shape
    rows_N, is_target_N = inputs.positions_N // length, inputs.targets_N < num_items
    count_B = jnp.zeros(num_rows, jnp.int32).at[rows_N].add(is_target_N)
    index_B = jnp.maximum(jnp.cumsum(count_B) - 1, 0)
    return LastTargets(index_B, inputs.targets_N[index_B], count_B > 0)


class MemoryBank(NamedTuple):
    """A FIFO of (item, key) pairs: the projected, normalised text of past targets, as it was when they were targets.

    It belongs to the trainer, starts empty, and is neither read nor written while the retriever is frozen.
    """

    items_M: Array
    """The items; -1 where there is no entry yet."""
    keys_Md: Array
    """Their keys; 0 where there is none."""
    cursor: Array
    """Where the next entry goes."""

    @classmethod
    def empty(cls, size: int, dim: int) -> "MemoryBank":
        """A bank without entries.

        Args:
            size: The number of entries it can hold; then the oldest are overwritten.
            dim: Width of a key.
        """
        return cls(jnp.full(size, _EMPTY, jnp.int32), jnp.zeros((size, dim)), jnp.zeros((), jnp.int32))

    def loss(self, preferences_NKd: Array, keys_Id: Array, last: LastTargets, temperature: float) -> Array:
        """InfoNCE: what each row wants next, against its target's key and the bank's of other items; a mean over rows.

        Args:
            preferences_NKd: Preference vectors where a target is.
            keys_Id: Keys of all items now; gradients reach the targets'.
            last: Of the batch.
            temperature: Cosines are divided by it.
        """
        queries_Bd = normalize(preferences_NKd[last.index_B].mean(1))
        keys_Bd = keys_Id.at[last.items_B].get(mode="clip")
        positive_B = (queries_Bd * keys_Bd).sum(1).astype(jnp.float32) / temperature
        negative_BM = (queries_Bd @ self.keys_Md.astype(queries_Bd.dtype).T).astype(jnp.float32) / temperature
        is_negative_BM = (self.items_M != last.items_B[:, None]) & (self.items_M != _EMPTY)
        negative_BM = jnp.where(is_negative_BM, negative_BM, -jnp.inf)
        largest_B = jax.lax.stop_gradient(jnp.maximum(positive_B, negative_BM.max(1)))
        total_B = jnp.exp(positive_B - largest_B) + jnp.exp(negative_BM - largest_B[:, None]).sum(1)
        loss_B = jnp.log(total_B) + largest_B - positive_B
        return jnp.where(last.is_real_B, loss_B, 0).sum() / last.is_real_B.sum()

    def write(self, items_B: Array, keys_Bd: Array, is_kept_B: Array) -> "MemoryBank":
        """The bank with the rows that are to be kept, in their order; of more than it holds, the newest.

        Example:
            >>> bank = MemoryBank.empty(3, 1)
            >>> bank = bank.write(jnp.array([5, 6, 7]), jnp.ones((3, 1)), jnp.array([True, False, True]))
            >>> bank.items_M.tolist(), int(bank.cursor)
            ([5, 7, -1], 2)
        """
        size, count_B = len(self.items_M), jnp.cumsum(is_kept_B)
        is_kept_B = is_kept_B & (count_B > count_B[-1] - size)
        places_B = jnp.where(is_kept_B, (self.cursor + count_B - 1) % size, size)  # out of range, so that it is dropped
        return MemoryBank(
            self.items_M.at[places_B].set(items_B, mode="drop"),
            self.keys_Md.at[places_B].set(keys_Bd.astype(self.keys_Md.dtype), mode="drop"),
            ((self.cursor + count_B[-1]) % size).astype(jnp.int32),
        )
