"""How the devices of a run are laid out: batches are divided along one axis, the catalogue along the other."""

import re
from dataclasses import dataclass

from alternator.checks import check_integer
from ur4rec.errors import ConfigurationError

_FORM = re.compile(r"(data|items)=([1-9][0-9]*)")


@dataclass(frozen=True)
class Mesh:
    """A grid of devices; device number ``d * items + i`` has part ``d`` of each batch and part ``i`` of the items.

    Example:
        >>> Mesh(data=4, items=2).size
        8
    """

    data: int = 1
    """Parts of a batch."""
    items: int = 1
    """Parts of the catalogue: of the table of item embeddings, of the item texts, and of what is scored with them."""

    def __post_init__(self) -> None:
        check_integer("data", self.data, 1)
        check_integer("items", self.items, 1)

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.items

    def __str__(self) -> str:
        return f"data={self.data},items={self.items}"


def parse_mesh(text: str | Mesh | None, num_devices: int) -> Mesh:
    """Read a mesh, and check that it uses all devices; None divides batches among all of them.

    Args:
        text: Such as ``data=4,items=2``; an axis that is left out is 1.
        num_devices: Devices of all processes together.

    Raises:
        ConfigurationError: It has another form, or another number of devices.

    Example:
        >>> parse_mesh("data=4,items=2", 8), parse_mesh(None, 3)
        (Mesh(data=4, items=2), Mesh(data=3, items=1))
        >>> parse_mesh("items=2", 4)
        Traceback (most recent call last):
        ...
        alternator.errors.ConfigurationError: mesh must have as many devices as there are, 4, ...
    """
    if text is None:
        return Mesh(data=num_devices)
    mesh = text if isinstance(text, Mesh) else _parse(text)
    if mesh.size != num_devices:
        raise ConfigurationError(
            f"mesh must have as many devices as there are, {num_devices}, got {mesh.size} ({mesh}); "
            "data times items is their number"
        )
    return mesh


def _parse(text: str) -> Mesh:
    found = [_FORM.fullmatch(part.strip()) for part in text.split(",")]
    sizes = {each[1]: int(each[2]) for each in found if each is not None}
    if None in found or len(sizes) < len(found):
        raise ConfigurationError(f"mesh must be such as 'data=4,items=2' (data, items, or both), got {text!r}")
    return Mesh(**sizes)
