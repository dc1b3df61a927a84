"""How a model is laid out over processes, and its arrays in a checkpoint, which are those of one process.

With ``items`` above 1 in the mesh each process holds its part of SASRec's table, of the items' texts and of what
optimizers keep of them (`ur4rec_torch.item_shards`). With ``shard`` the rest is spread over the processes that divide
batches (`ur4rec_torch.spread`), else each of them has a copy (`ur4rec_torch.replicas`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ur4rec.config import FUSIONS_WITH_GRADIENTS, ModelConfig, TrainerConfig
from ur4rec.errors import ConfigurationError
from ur4rec.training.checkpoint import Arrays
from ur4rec.training.mesh import Mesh
from ur4rec.training.shapes import ITEM_EMBEDDING, ITEM_POPULARITY, ITEM_TEXTS
from ur4rec_torch.item_shards import ItemShard
from ur4rec_torch.spread import gathered, is_spread
from ur4rec_torch.ur4rec import UR4Rec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_layout(mesh: Mesh, model: ModelConfig, trainer: TrainerConfig, *, shard: bool) -> None:
    """Refuse what a layout cannot do.

    Raises:
        ConfigurationError: Naming the setting and the remedy.
    """
    for refused in _refused(mesh, model, trainer, shard=shard and mesh.data > 1):
        raise ConfigurationError(refused)


def _refused(mesh: Mesh, model: ModelConfig, trainer: TrainerConfig, *, shard: bool) -> Iterable[str]:
    is_full = trainer.catalogue_loss != "sampled"
    if model.has_text_encoder and mesh.data * mesh.items > 1:
        yield (
            f"a layout with {mesh} needs a model without a text encoder, got text_encoder={model.text_encoder!r}; take "
            "one process or text_encoder='none'"
        )
    if mesh.items > 1:
        start = f"a mesh with items={mesh.items} needs"
        if model.fusion not in FUSIONS_WITH_GRADIENTS:
            yield (
                f"{start} a fusion that asks for no order of all items, got {model.fusion!r}; "
                f"take one of {FUSIONS_WITH_GRADIENTS} or items=1"
            )
        if trainer.label_smoothing and model.fusion == "weighted":
            yield (
                f"{start} a fusion of logits to smooth labels, got label_smoothing={trainer.label_smoothing} with "
                "fusion='weighted'; take fusion='logit', label_smoothing=0 or items=1"
            )
        if trainer.use_knowledge_distillation and is_full:
            yield (
                f"{start} losses that never hold all logits, got use_knowledge_distillation=True with "
                "catalogue_loss='full'; take catalogue_loss='sampled' or items=1"
            )
        if trainer.sasrec_loss != "ce" and is_full:
            yield (
                f"{start} sasrec_loss='ce', got {trainer.sasrec_loss!r}; take that, catalogue_loss='sampled' or items=1"
            )
    if trainer.compile and (shard or mesh.items > 1):
        yield f"a layout with {mesh} and shard={shard} needs compile=False, got True; leave compile out"
    if shard and mesh.items == 1 and not is_full:
        yield (
            "shard=True needs dense gradients, got catalogue_loss='sampled'; take catalogue_loss='full', divide the "
            f"table with a mesh such as 'data={max(mesh.data // 2, 1)},items=2', or take shard=False"
        )


class Layout:
    """The parts of a model that this process has.

    Args:
        model: The model, whole and on the host; its items are divided in place.
        devices: The mesh of `torch.distributed`; None is one process.

    Attributes:
        shard: The items of this process; None is all.
    """

    def __init__(self, model: UR4Rec, devices: "DeviceMesh | None") -> None:
        self._devices, self._model = devices, model
        self.shard: ItemShard | None = None
        if devices is not None and devices["items"].size() > 1:
            self.shard = ItemShard(model.config.num_items, devices["items"].get_group())
            model.divide_items(self.shard)

    @property
    def table(self) -> list[nn.Parameter]:
        """SASRec's table, if it is in parts."""
        return [] if self.shard is None else [*self._model.sasrec.item_embedding.parameters()]

    @property
    def copies(self) -> list[Tensor]:
        """The parameters that all processes have whole."""
        in_parts = {id(parameter) for parameter in self.table}
        return [each for each in self._model.parameters() if id(each) not in in_parts and not is_spread(each)]

    def rows(self, items_J: Tensor) -> Tensor:
        """The rows of these items in this process's table, of those that it has."""
        return items_J if self.shard is None else self.shard.own(items_J)[0]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the processes that divide batches."""
        assert self._devices is not None
        group = self._devices["data"].get_group()
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= dist.get_world_size(group)

    def clip(self, optimizers: Iterable[Optimizer], clip_norm: float) -> None:
        """Clip the gradients of all that trains by their common norm, over all parts."""
        groups = (group for optimizer in optimizers for group in optimizer.param_groups)
        in_parts, kinds = {id(parameter) for parameter in self.table}, defaultdict(list)
        for parameter in (each for group in groups for each in group["params"] if each.grad is not None):
            kind = "in parts" if id(parameter) in in_parts else "spread" if is_spread(parameter) else "whole"
            kinds[kind].append(parameter)
        norm = self._norm(kinds)
        for parameters in kinds.values():
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)

    def gather(self, name: str, tensor: Tensor) -> Tensor | None:
        """The whole tensor of a name in a checkpoint, in process 0; all processes ask for the same in turn."""
        if is_spread(tensor):
            whole = gathered(tensor)
            return whole if dist.get_rank() == 0 else None
        if self.shard is not None and self._devices is not None and _has_row_per_item(name, tensor):
            return self.shard.join(tensor) if self._devices.get_local_rank("data") == 0 else None
        return tensor

    def cut(self, arrays: Arrays) -> Arrays:
        """Of the arrays of a checkpoint those rows that this process has."""
        shard = self.shard
        if shard is None:
            return arrays
        return {
            name: shard.cut(torch.from_numpy(array)).numpy() if _has_row_per_item(name, array) else array
            for name, array in arrays.items()
        }

    def _norm(self, kinds: Mapping[str, list[nn.Parameter]]) -> Tensor:
        squares = {
            kind: gathered(nn.utils.get_total_norm(map(_values, parameters))).square()
            for kind, parameters in kinds.items()
        }
        if self.shard is not None and "in parts" in squares:
            dist.all_reduce(squares["in parts"], group=self.shard.group)
        return torch.stack(list(squares.values())).sum().sqrt()


def _values(parameter: nn.Parameter) -> Tensor:
    """The gradient, or what a sparse one holds, each row once."""
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()
        return parameter.grad.values()
    return parameter.grad


def _has_row_per_item(name: str, array: Any) -> bool:
    """Whether an array of a checkpoint has a row per item; the count of an optimizer's updates has none."""
    return name.split("/")[0] in (ITEM_EMBEDDING, ITEM_TEXTS, ITEM_POPULARITY) and array.ndim > 0
