"""The catalogue in parts: each process of a group has the same rows of a batch, and tables of its own items alone.

A row of a table is found by a masked look-up in each part and a sum over the group, and logits are those of a part's
items, as in the vocabulary-parallel layers of Megatron-LM (Shoeybi et al., 2019, section 3). What moves between
processes is what has a row per position or per item that a batch holds, never a table and never logits.

A table in parts has a row for each of the part's items and last one for padding, which counts in the last part alone:
there it is the row that follows the last item in the whole table.

What all processes of the group compute alike is called replicated here. Of something replicated each process has the
whole gradient; of what is in parts, that of its own part.

Shapes: I items of the part, J = I + 1 rows with the padding, d width, P parts, n positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ur4rec.errors import ConfigurationError
from ur4rec.training.processes import part_of
from ur4rec_torch.rows import take_rows


class ItemShard:
    """The items of this process, and the group of processes that have the others.

    Args:
        num_items: The number of items in the whole catalogue.
        group: The processes, each with one part in the order of their ranks.

    Attributes:
        group: The processes.
        items: This process's items.
        num_items: The number of items in the whole catalogue.
        num_parts: The number of parts.
        part: The number of this part.
        size: The number of items in the largest part.

    Raises:
        ConfigurationError: There is a part without items.
    """

    def __init__(self, num_items: int, group: dist.ProcessGroup) -> None:
        self.group, self.num_items = group, num_items
        self.part, self.num_parts = dist.get_rank(group), dist.get_world_size(group)
        parts = [part_of(num_items, part, self.num_parts) for part in range(self.num_parts)]
        self.items, self.size = parts[self.part], parts[0].stop
        if parts[-1].start == num_items:
            raise ConfigurationError(
                f"each part of the items must have some, but {num_items} items do not fill {self.num_parts} parts; "
                "take a smaller number for items in mesh"
            )

    def cut(self, table_Jd: Tensor) -> Tensor:
        """This process's part of a whole table that ends with a row for padding."""
        return torch.cat([table_Jd[self.items], table_Jd[-1:]])

    def join(self, table_Jd: Tensor) -> Tensor | None:
        """The whole table in the memory of the first process of the group, from the parts of all; None in the others.

        One part at a time is on the device.
        """
        ranks = dist.get_process_group_ranks(self.group)
        own_Jd = table_Jd.detach().contiguous()
        if self.part > 0:
            dist.send(own_Jd, ranks[0], group=self.group)
            return None
        whole_Jd = torch.empty(self.num_items + 1, *own_Jd.shape[1:], dtype=own_Jd.dtype)
        for part, rank in enumerate(ranks):
            rows = part_of(self.num_items, part, self.num_parts)
            if part > 0:
                own_Jd = own_Jd.new_empty(rows.stop - rows.start + 1, *own_Jd.shape[1:])
                dist.recv(own_Jd, rank, group=self.group)
            whole_Jd[rows.start : rows.stop + 1] = own_Jd  # the padding is overwritten by all but the last
        return whole_Jd

    def find(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each item in this part, that of the padding for items of other parts; and whether it counts."""
        num_items = self.items.stop - self.items.start
        rows = items - self.items.start
        is_own = (rows >= 0) & (rows < num_items + self._is_last)
        return rows.where(is_own, num_items), is_own

    def own(self, items_J: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of those items that are of this part, and where they are among all. The host waits for them."""
        rows_J, is_own_J = self.find(items_J)
        places = is_own_J.nonzero()[:, 0]
        return rows_J[places], places

    def look_up(self, items: Tensor, *tables_Jd: Tensor) -> tuple[Tensor, ...]:
        """The rows of replicated items in some tables, replicated; one message for all tables.

        A table may also lack the row for padding: padding then gets the row of the last item.
        """
        rows, is_own = self.find(items)
        found = (F.embedding(rows.clamp(max=len(table_Jd) - 1), table_Jd) for table_Jd in tables_Jd)
        own = torch.cat(list(found), dim=-1).masked_fill(~is_own.unsqueeze(-1), 0)
        return torch.split(self.sum(own), [table_Jd.shape[-1] for table_Jd in tables_Jd], dim=-1)

    def sum(self, own: Tensor) -> Tensor:
        """The sum over all parts, replicated: the gradient of each part is that of the sum."""
        total: Tensor = _Sum.apply(own, self.group)  # type: ignore[no-untyped-call]
        return total

    def replicated(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Replicated tensors as they are, for use with what is in parts: their gradients are summed over all parts."""
        found: tuple[Tensor, ...] = _Replicated.apply(self.group, *tensors)  # type: ignore[no-untyped-call]
        return found

    def gather(self, own: Tensor) -> Tensor:
        """What each part has, (P, ...), without gradients."""
        parts = own.new_empty(self.num_parts, *own.shape)
        dist.all_gather(list(parts.unbind()), own.detach().contiguous(), group=self.group)
        return parts

    def columns(self, own_BI: Tensor) -> Tensor:
        """What each row has for every item of the whole catalogue, from the parts of all, without gradients."""
        padded_Bs = F.pad(own_BI, (0, self.size - own_BI.shape[1]))
        return torch.cat(list(self.gather(padded_Bs)), dim=1)[:, : self.num_items]

    def logsumexp(self, logs_B1: Tensor) -> Tensor:
        """The logarithm of the sum of all items' exponentials, from those of each part, without gradients."""
        return self.gather(logs_B1).logsumexp(0)

    def add_up(self, *own: Tensor) -> None:
        """Replace tensors of one type by their sums over all parts, in one message."""
        if own:
            flat = torch.cat([each.flatten() for each in own])
            dist.all_reduce(flat, group=self.group)
            for each, total in zip(own, torch.split(flat, [each.numel() for each in own]), strict=True):
                each.copy_(total.view_as(each))

    def normalise(self, logits_nI: Tensor, targets_n1: Tensor, *sums_n1: Tensor) -> tuple[Tensor, ...]:
        """Of logits of the part's items, the logarithm of the sum of all items' exponentials, and the targets' own.

        Then come the sums over all parts of what else is given. All are (n, 1), replicated, without gradients.
        """
        rows_n1, is_own_n1 = self.find(targets_n1)
        own_n1 = logits_nI.gather(1, rows_n1.clamp(max=logits_nI.shape[1] - 1))
        own_n1 = own_n1.masked_fill(~is_own_n1, -torch.inf)
        found = self.gather(torch.cat([logits_nI.logsumexp(1, keepdim=True), own_n1, *sums_n1], dim=1))
        logs_Pn1, owns_Pn1, *others = torch.split(found, 1, dim=-1)
        return logs_Pn1.logsumexp(0), owns_Pn1.amax(0), *(each_Pn1.sum(0) for each_Pn1 in others)

    @property
    def _is_last(self) -> bool:
        return self.part == self.num_parts - 1


class ShardedEmbedding(nn.Embedding):
    """The part of an embedding of items that a process has; it maps replicated items to replicated rows.

    Args:
        whole: The embedding of all items, whose last row is padding and zeros.
        shard: Which part.
    """

    def __init__(self, whole: nn.Embedding, shard: ItemShard) -> None:
        rows_Jd = shard.cut(whole.weight.detach())
        num_rows, dim = rows_Jd.shape
        super().__init__(num_rows, dim, padding_idx=num_rows - 1, sparse=whole.sparse, _weight=rows_Jd)
        self.shard = shard

    def forward(self, input: Tensor) -> Tensor:
        """The rows of items; those of other parts are found there."""
        rows, _ = self.shard.find(input)
        return self.shard.sum(super().forward(rows))

    def take(self, items_J: Tensor) -> Tensor:
        """As `take_rows`: the rows of items, ascending and each once, of which the gradient is sparse."""
        rows, places = self.shard.own(items_J)
        own_Jd = self.weight.new_zeros(len(items_J), self.embedding_dim)
        return self.shard.sum(own_Jd.index_copy(0, places, take_rows(self.weight, rows)))


def look_up(items: Tensor, tables_Jd: Sequence[Tensor], shard: ItemShard | None) -> tuple[Tensor, ...]:
    """The rows of items in tables that are whole, or in parts."""
    if shard is not None:
        return shard.look_up(items, *tables_Jd)
    return tuple(F.embedding(items, table_Jd) for table_Jd in tables_Jd)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = own.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=ctx.group)
        sums = torch.split(flat, [gradient.numel() for gradient in gradients])
        return None, *(total.view_as(gradient) for total, gradient in zip(sums, gradients, strict=True))
