"""Which parameters and submodules each part of a model has: all that it names, less what others name more closely.

A part is named by modules, parameters, names within the model, or several of these. Of two named modules the inner one
has all that is in it, and the outer one its rest. A parameter that is named by itself belongs where it is named; where
all parameters of a submodule belong to one part in this way, so do its mode and buffers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor, nn

from adapters.contract import ALWAYS, FrozenMode
from adapters.parts import assign
from adapters.torch.modules import Freezable, Parameters, Part
from adapters.torch.wrappers import join, shells, unwrapped
from alternator import ConfigurationError
from alternator.checks import listed


def parameters_by_module(
    modules: Mapping[str, Parameters], *, model: nn.Module | None = None, always: Parameters | None = None
) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part, to build an optimizer for each: what it names, less what others name more closely.

    Args:
        modules: Per name what belongs to it, as `AlternatingOptimizer` takes it.
        model: The model in which names are looked up.
        always: What trains in every step; it belongs to none of the others, and is returned under ``"always"``.

    Raises:
        ConfigurationError: A name names nothing, two parts have the same, or one is left with nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> parts = parameters_by_module({"backbone": model, "head": model[2]})
        >>> {name: [tuple(parameter.shape) for parameter in parameters] for name, parameters in parts.items()}
        {'backbone': [(3, 4), (3,)], 'head': [(1, 3), (1,)]}
    """
    return {name: list(part.parameters.values()) for name, part in Naming(modules, always, model).parts().items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class Claim:
    """A module or tensor that a part names."""

    part: str
    key: str
    """Its name for messages and saved states; the names of what is in it begin with this."""
    item: nn.Module | Tensor
    shells: Sequence[nn.Module] = ()
    """The DDP wrappers around it."""


class Place(NamedTuple):
    """Where a parameter or submodule is; one that is tied or shared has several."""

    claim: Claim | None
    """The innermost that names it; None in a model outside of all parts."""
    key: str
    item: nn.Module | Tensor
    holder: nn.Module | None = None
    """The module in which a parameter is registered."""


class Naming:
    """The parts as the user names them, and what each of them has now.

    Args:
        modules: Per name what belongs to it.
        always: What trains in every step.
        model: The model in which names are looked up.
    """

    def __init__(
        self, modules: Mapping[str, Parameters], always: Parameters | None = None, model: nn.Module | None = None
    ) -> None:
        given = {**modules, **({} if always is None else {ALWAYS: always})}
        self._given = {name: kept(each) for name, each in given.items()}
        self._model = model
        self._made_of: list[tuple[str, int]] | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The model and the modules given, in their wrappers."""
        items = [self._model, *(item for given in self._given.values() for item in _items(given))]
        return [item for item in items if isinstance(item, nn.Module)]

    def groups(self, frozen_modes: Mapping[str, FrozenMode | None] | None = None) -> dict[str, Freezable]:
        """What can be frozen, by name.

        Args:
            frozen_modes: Per module how it runs while it is frozen; None is in inference mode.

        Raises:
            ConfigurationError: See `parts`.
        """
        groups = {name: Freezable(part, (frozen_modes or {}).get(name)) for name, part in self.parts().items()}
        self._made_of = self._find_made_of()
        return groups

    def look_again(self, groups: Mapping[str, Freezable]) -> bool:
        """Take into the groups what belongs to them now; False if that is what did before.

        Raises:
            ConfigurationError: See `parts`; the next call raises it again.
        """
        made_of = self._find_made_of()
        if made_of == self._made_of:
            return False
        parts = self.parts()
        changed = [group.look_again(parts[name]) for name, group in groups.items()]
        self._made_of = made_of
        return any(changed)

    def parts(self) -> dict[str, Part]:
        """What each part has now.

        Raises:
            ConfigurationError: A name names nothing, what is given cannot train, two parts have the same, one is left
                with nothing, or saved buffers would follow no part.
        """
        model = None if self._model is None else unwrapped(self._model)
        nodes = None if model is None else _nodes(model)
        claims = [claim for part, given in self._given.items() for claim in _claims(part, given, nodes)]
        layout = Layout(claims, model)
        whole = layout.whole_submodules()
        if whole:
            layout = Layout([*claims, *whole], model)
        layout.check_buffers()
        return {name: layout.part(name) for name in self._given}

    def _find_made_of(self) -> list[tuple[str, int]]:
        """What modules are made of, without the names that cost time: all that is added is added to one of them."""
        inside = {id(each): each for module in self.modules for each in module.modules()}
        return [
            (key, id(item))
            for each in inside.values()
            for key, item in (*each._modules.items(), *each._parameters.items())
        ]


class Layout:
    """Where every parameter and submodule is, and to which part it belongs.

    Args:
        claims: What each part names.
        model: The model around them.

    Raises:
        ConfigurationError: A parameter or submodule belongs to two parts alike.
    """

    def __init__(self, claims: Sequence[Claim], model: nn.Module | None) -> None:
        self._claims = claims
        self._claimed: dict[int, list[Claim]] = {}
        for claim in claims:
            self._claimed.setdefault(id(claim.item), []).append(claim)
        self._places: list[Place] = []
        self._entered: set[tuple[int, int]] = set()
        if model is not None:
            self._walk(model, None, "")
        for claim in claims:
            self._enter(claim.item, claim, claim.key)
        found: dict[int, list[Place]] = {}
        for place in self._places:
            found.setdefault(id(place.item), []).append(place)
        self._insides: dict[int, set[int]] = {}
        self._owners = {number: self._owner(places) for number, places in found.items()}

    def whole_submodules(self) -> list[Claim]:
        """Claims to the submodules whose parameters all belong to one part, some of them named by themselves."""
        alone = {id(claim.item) for claim in self._claims if isinstance(claim.item, Tensor)}
        claims: list[Claim] = []
        covered: set[int] = set()
        for claim, key, module, _ in self._places if alone else ():
            if not isinstance(module, nn.Module) or id(module) in covered:
                continue
            inside = {id(parameter) for parameter in module.parameters()}
            owners = {self._owners[number] for number in inside}
            owner = owners.pop() if len(owners) == 1 else None
            if owner is None or alone.isdisjoint(inside) or not _follows_modes(module):
                continue
            covered |= {id(submodule) for submodule in module.modules()}
            if claim is None or claim.part != owner:
                claims.append(Claim(part=owner, key=join(owner, key) if claim is None else key, item=module))
        return claims

    def check_buffers(self) -> None:
        """Refuse saved buffers that no part fixes, in a submodule of which parts have parameters.

        Those of the model itself lie between its parts, as its mode does.

        Raises:
            ConfigurationError: Naming the submodule.
        """
        for claim, key, module, _ in self._places:
            if claim is not None or not key or not isinstance(module, nn.Module) or not _saves_buffers(module):
                continue
            owners = {self._owners[id(parameter)] for parameter in module.parameters(recurse=False)}
            frozen = sorted(owner for owner in owners if owner not in (None, ALWAYS))
            if frozen and self._owners[id(module)] is None:
                raise ConfigurationError(
                    f"a submodule with saved buffers must follow one module, but {key!r} has parameters of "
                    f"{listed(frozen)} and is not wholly of one; add {key!r} itself to the one that it is to follow"
                )

    def part(self, name: str) -> Part:
        """What belongs to a part.

        Raises:
            ConfigurationError: All that it names belongs to others.
        """
        claims = [claim for claim in self._claims if claim.part == name]
        own = [place for place in self._places_of(claims) if self._owners[id(place.item)] == name]
        roots = {claim.key: claim.item for claim in claims if self._owners[id(claim.item)] == name}
        modules = {key: root for key, root in roots.items() if isinstance(root, nn.Module)}
        inside = {id(each): each for root in modules.values() for each in root.modules()}
        part = Part(
            name=name,
            parameters=_parameters(own),
            submodules={place.key: place.item for place in own if isinstance(place.item, nn.Module)},
            roots=modules,
            shells=[(claim.key, shell) for claim in claims for shell in claim.shells],
            others=[each for number, each in inside.items() if self._owners[number] != name],
            loaded=[*modules.values(), *self._holders(claims)],
        )
        if not part.parameters:
            self._refuse_empty(name, claims)
        return part

    def _walk(self, module: nn.Module, claim: Claim | None, key: str) -> None:
        """What was named within a module has places of its own."""
        named = self._claimed.get(id(module), ())
        for own in named:
            self._enter(module, own, own.key)
        if not named:
            self._enter(module, claim, key)

    def _enter(self, item: nn.Module | Tensor, claim: Claim | None, key: str) -> None:
        if (id(item), id(claim)) in self._entered:
            return
        self._entered.add((id(item), id(claim)))
        self._places.append(Place(claim, key, item))
        if isinstance(item, nn.Module):
            for name, parameter in item.named_parameters(recurse=False):
                self._places.append(Place(claim, join(key, name), parameter, item))
            for name, child in item.named_children():
                self._walk(child, claim, join(key, name))

    def _owner(self, places: Sequence[Place]) -> str | None:
        """The part of what is at these places: where it is named itself, or by the inner of two modules around it."""
        named = [(place, place.claim) for place in places if place.claim is not None]
        itself = [(place, claim) for place, claim in named if claim.item is place.item]
        by_part = {claim.part: (place, claim) for place, claim in reversed(itself or named)}
        if ALWAYS in by_part:
            return ALWAYS
        for part, (place, claim) in by_part.items():
            others = [(other, outer) for other, outer in by_part.values() if outer is not claim]
            if all(other.holder is place.holder and self._is_within(claim, outer) for other, outer in others):
                return part
        if by_part:
            (second, _), (first, _) = list(by_part.values())[-2:]
            _refuse_two(first, second)
        return None

    def _is_within(self, inner: Claim, outer: Claim) -> bool:
        """Whether all that is in one named module is in the other: new containers of parts of a model are."""
        insides = [self._inside(claim) for claim in (inner, outer)]
        return insides[0] < insides[1]

    def _inside(self, claim: Claim) -> set[int]:
        if id(claim) not in self._insides:
            modules = claim.item.modules() if isinstance(claim.item, nn.Module) else ()
            self._insides[id(claim)] = {id(each) for each in modules} - {id(claim.item)}
        return self._insides[id(claim)]

    def _places_of(self, claims: Sequence[Claim]) -> list[Place]:
        """In the order of the claims."""
        found: dict[int, list[Place]] = {id(claim): [] for claim in claims}
        for place in self._places:
            if id(place.claim) in found:
                found[id(place.claim)].append(place)
        return [place for places in found.values() for place in places]

    def _holders(self, claims: Iterable[Claim]) -> list[nn.Module]:
        """The modules in which parameters named by themselves are registered."""
        alone = {id(claim.item) for claim in claims if isinstance(claim.item, Tensor)}
        return [place.holder for place in self._places if place.holder is not None and id(place.item) in alone]

    def _refuse_empty(self, name: str, claims: Iterable[Claim]) -> None:
        tensors = [each for claim in claims for each in _tensors(claim.item)]
        owners = {self._owners[id(tensor)] for tensor in tensors}
        if owners:
            raise ConfigurationError(
                f"every module must have a parameter, but all that {name!r} names belongs to "
                f"{listed(sorted(map(str, owners)))}, named more closely there or declared always; leave it out, or "
                "name less in the other"
            )


def _tensors(item: nn.Module | Tensor) -> Iterable[Tensor]:
    return item.parameters() if isinstance(item, nn.Module) else (item,)


def _parameters(places: Iterable[Place]) -> dict[str, nn.Parameter]:
    """Each once, by the first of its names."""
    found: dict[int, tuple[str, Any]] = {}
    for _, key, item, _ in places:
        if isinstance(item, Tensor):
            found.setdefault(id(item), (key, item))
    return dict(found.values())


def kept(given: Parameters) -> Parameters:
    """What can be read more than once: iterables as tuples."""
    return given if isinstance(given, (str, nn.Module, Tensor)) or not isinstance(given, Iterable) else tuple(given)


def _items(given: Parameters) -> Sequence[nn.Module | Tensor | str]:
    return given if isinstance(given, tuple) else (given,)


def _nodes(model: nn.Module) -> dict[str, nn.Module | Tensor]:
    """Modules and parameters by path, the model's own included; tied ones under each of their paths."""
    nodes: dict[str, nn.Module | Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        nodes.setdefault(join("", path), module)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        nodes.setdefault(join("", path), parameter)
    return nodes


def _claims(part: str, given: Parameters, nodes: Mapping[str, nn.Module | Tensor] | None) -> Iterator[Claim]:
    alone = not isinstance(given, tuple)
    for number, item in enumerate(_items(given)):
        key = f"{part}[{number}]"
        if isinstance(item, str):
            for path, found in _named(part, item, nodes).items():
                is_it = alone and path == item
                own = (part if isinstance(found, nn.Module) else key) if is_it else join(part, path)
                yield _claim(part, own, found)
        elif isinstance(item, nn.Module) or _can_train(item):
            yield _claim(part, part if alone and isinstance(item, nn.Module) else key, item)
        else:
            raise ConfigurationError(
                "a module must be an nn.Module, a name in model=, or an iterable of nn.Parameter, modules and names, "
                f"or of leaf tensors that require gradients; {key!r} is not"
            )


def _claim(part: str, key: str, item: nn.Module | Tensor) -> Claim:
    if isinstance(item, Tensor):
        return Claim(part=part, key=key, item=item)
    return Claim(part=part, key=key, item=unwrapped(item), shells=shells(item))


def _named(part: str, name: str, nodes: Mapping[str, nn.Module | Tensor] | None) -> Mapping[str, nn.Module | Tensor]:
    """By path what a path or pattern names."""
    if nodes is None:
        raise ConfigurationError(
            f"a name must be a path or pattern within the model, but {name!r} of {part!r} is given without one; give "
            "model=, or the module itself"
        )
    found = nodes[name] if name and name in nodes else _attribute(nodes[""], name)
    if found is not None:
        return {name: found}
    paths = [path for path, node in nodes.items() if isinstance(node, Tensor) or next(node.parameters(), None) is None]
    return {match.node: nodes[match.node] for match in assign(paths, {part: name}).values()}


def _attribute(model: object, name: str) -> nn.Module | Tensor | None:
    """What is no module or parameter of the model but one of its attributes: a property, a leaf tensor."""
    try:
        found = attrgetter(name)(model)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Module) or _can_train(found) else None


def _can_train(item: object) -> bool:
    return isinstance(item, nn.Parameter) or (isinstance(item, Tensor) and item.is_leaf and item.requires_grad)


def _refuse_two(place: Place, other: Place) -> None:
    assert place.claim is not None
    assert other.claim is not None
    if place.claim.item is place.item:
        remedy = "name it in one of them"
    elif place.holder is not other.holder:
        remedy = (
            "the two are tied: name the parameter itself in the one that trains it, as in "
            "{'tower': [tower, tower.embedding.weight]}, and the other means its rest"
        )
    else:
        remedy = "give each its own"
    raise ConfigurationError(
        f"a {'submodule' if isinstance(place.item, nn.Module) else 'parameter'} must belong to one module, but "
        f"{place.key!r} of {place.claim.part!r} is {other.key!r} of {other.claim.part!r}; {remedy}, or declare it with "
        "always= if it may train in every step"
    )


def _saves_buffers(module: nn.Module) -> bool:
    return any(name not in module._non_persistent_buffers_set for name, _ in module.named_buffers(recurse=False))


def _follows_modes(module: nn.Module) -> bool:
    """Whether neither it nor a part of it has a ``train`` of its own, as the modules of ``torch.export`` have."""
    return not any("train" in vars(submodule) for submodule in module.modules())
