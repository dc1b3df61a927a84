"""Which tensors share memory: one parameter under two names that are different objects (`weight.data = other.data`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from adapters.torch.modules import Freezable
from alternator import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Span:
    """The bytes from the first to the last element of a tensor; not all between them need to be its own."""

    module: str
    name: str
    is_parameter: bool
    tensor: Tensor
    start: int
    stop: int


def check_storage(groups: Mapping[str, Freezable]) -> None:
    """Refuse memory of a parameter that a tensor of another module uses too: it would be frozen and active at once.

    Buffers may share theirs: they are often constants. Tensors without memory of their own (meta, fake, empty,
    not initialised, sparse) share nothing.

    Raises:
        ConfigurationError: Naming both tensors and the remedy.
    """
    per_device: dict[torch.device, list[Span]] = {}
    for module, group in groups.items():
        for name, tensor in (*group.parameters.items(), *buffers_of(group).items()):
            span = _span(module, name, tensor, name in group.parameters)
            if span is not None:
                per_device.setdefault(span.tensor.device, []).append(span)
    for spans in per_device.values():
        _check_spans(sorted(spans, key=lambda span: span.start))


def buffers_of(group: Freezable) -> dict[str, Tensor]:
    """The buffers of a module by name, each where it is registered."""
    return {
        f"{key}.{name}": buffer
        for key, submodule in group.submodules.items()
        for name, buffer in submodule.named_buffers(recurse=False)
    }


def _check_spans(spans: Iterable[Span]) -> None:
    """Compare each span with those before it that have not ended where it starts."""
    open_spans: list[Span] = []
    for span in spans:
        open_spans = [other for other in open_spans if other.stop > span.start]
        for other in open_spans:
            if span.module != other.module and (span.is_parameter or other.is_parameter) and _share_a_byte(span, other):
                raise ConfigurationError(
                    f"memory must belong to one module, but {other.name!r} of {other.module!r} shares it with "
                    f"{span.name!r} of {span.module!r}; give each a copy of its own (.clone()), or use one parameter "
                    "for both and declare it with always= if it may train in every step"
                )
        open_spans.append(span)


def _share_a_byte(first: Span, second: Span) -> bool:
    """Whether two tensors whose spans overlap meet in an element: columns of one matrix do not."""
    if first.tensor.is_contiguous() and second.tensor.is_contiguous():
        return True
    start = min(first.start, second.start)
    places = torch.arange(max(first.stop, second.stop) - start)
    return bool(torch.isin(_bytes_of(places, first, start), _bytes_of(places, second, start)).any())


def _bytes_of(places: Tensor, span: Span, start: int) -> Tensor:
    size = span.tensor.element_size()
    strides = [stride * size for stride in span.tensor.stride()]
    return places.as_strided((*span.tensor.shape, size), (*strides, 1), span.start - start)


def _span(module: str, name: str, whole: Tensor, is_parameter: bool) -> Span | None:
    tensor = _local(whole)
    if tensor.layout is not torch.strided or is_lazy(tensor) or hasattr(tensor, "fake_mode") or not tensor.numel():
        return None
    start = tensor.data_ptr()
    if not start:
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    stop = start + (last + 1) * tensor.element_size()
    return Span(module=module, name=name, is_parameter=is_parameter, tensor=tensor, start=start, stop=stop)


def _local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor, or the tensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
