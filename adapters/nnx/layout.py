"""Which module each variable of a Flax NNX model belongs to, worked out once, by identity."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax  # type: ignore[import-untyped]
from flax import nnx

from adapters.contract import ALWAYS, check_disjoint
from adapters.jax.turns import has_gradient
from adapters.nnx.naming import Modules, parts_of
from alternator import ConfigurationError
from alternator.checks import listed

PyTree = Any
Path = tuple[Any, ...]
"""The keys from the model to an array of it, without the attribute that holds a variable's value."""


@dataclass(frozen=True)
class Layout:
    """The paths of a model's variables and their modules. Hashable, as everything static in NNX must be."""

    attributes: tuple[tuple[str, str], ...]
    """(module, attribute of the model), of the always group too."""
    params: tuple[tuple[Path, str], ...]
    """(path, module) of every array of the parameters, in the order of their state's leaves."""
    others: tuple[tuple[Path, tuple[str, ...]], ...]
    """(path, modules) of every other array of the model that belongs to modules, random streams aside."""
    submodules: tuple[tuple[str, str], ...] = ()
    """(module, path) of every submodule by itself, in place of attributes, where modules are named by ``modules=``."""

    def labels(self, params: PyTree) -> PyTree:
        """The module of each parameter, as a tree like the parameters'.

        Raises:
            ConfigurationError: The parameters are not those of the model when the optimizer was built.
        """
        known, given = dict(self.params), [path for path, _ in leaves_by_path(params)]
        if changed := [named(path) for path in {*known} ^ {*given}]:
            raise ConfigurationError(
                "the model must have the parameters that it had when the optimizer was built, but "
                f"{listed(sorted(changed))} differs; build the optimizer again"
            )
        return jax.tree.unflatten(jax.tree.structure(params), [known[path] for path in given])

    def nodes(self, model: nnx.Module, names: Collection[str]) -> Iterator[tuple[str, nnx.Module]]:
        """The module, and every `nnx.Module` within it, of these names."""
        for module, attribute in self.attributes:
            if module in names:
                for _, node in nnx.iter_graph(_find(model, attribute)):
                    if isinstance(node, nnx.Module):
                        yield module, node
        yield from ((module, _find(model, path)) for module, path in self.submodules if module in names)

    def restore(self, before: PyTree, after: PyTree, trained: Iterable[str]) -> PyTree:
        """The state ``after``, with what belongs to frozen modules, and what variables there are, as ``before``."""
        owners, new = dict(self.others), dict(leaves_by_path(after))
        moving = set(trained)
        leaves = [
            old if path in owners and moving.isdisjoint(owners[path]) else new[path]
            for path, old in leaves_by_path(before)
        ]
        return jax.tree.unflatten(jax.tree.structure(before), leaves)


def layout_of(
    model: nnx.Module, wrt: Any, modules: tuple[str, ...], always: tuple[str, ...], names: Modules | None = None
) -> Layout:
    """Find the modules, by attribute or as they are named, and the owner of each parameter.

    Raises:
        ConfigurationError: The model has no such attribute; a parameter belongs to two modules or to none, or has no
            gradient.
    """
    params, others = nnx.state(model, wrt), nnx.state(model, nnx.Not(nnx.Any(wrt, nnx.RngState)))
    if names is not None:
        if set(names) != set(modules):
            raise ConfigurationError(f"modules must have the names of the transforms {modules}, got {tuple(names)}")
        trained = {id(variable): variable for _, variable in _variables_by_path(model, params)}
        parts = parts_of(model, trained, names, always)
        _check_gradients(params)
        held = {key: dict.fromkeys(owners) for key, owners in parts.variables.items()}
        return Layout((), *_by_path(model, params, others, held), parts.submodules)
    attributes = (*((name, name) for name in modules), *((ALWAYS, name) for name in always))
    held = {}  # per variable its modules; the always group owns its variables alone
    for module, attribute in reversed(attributes):
        for variable in _variables(_find(model, attribute)):
            owners = held.setdefault(id(variable), {})
            if ALWAYS not in owners:
                owners[module] = None
    owned: dict[str, dict[int, str]] = {module: {} for module, _ in attributes}
    for path, variable in _variables_by_path(model, params):
        for module in held.get(id(variable), ()):
            owned[module][id(variable)] = named(path)
    check_disjoint(owned)
    unowned = [named(path) for path, variable in _variables_by_path(model, params) if id(variable) not in held]
    if unowned:
        raise ConfigurationError(
            f"every parameter of the model must belong to a module, but {listed(unowned)} belongs to none of "
            f"{modules}; name its attribute in transforms or always=, or leave it out with wrt="
        )
    _check_gradients(params)
    return Layout(attributes, *_by_path(model, params, others, held))


def _by_path(
    model: nnx.Module, params: PyTree, others: PyTree, held: Mapping[int, Iterable[str]]
) -> tuple[tuple[tuple[Path, str], ...], tuple[tuple[Path, tuple[str, ...]], ...]]:
    """The paths of parameters and of other arrays with their modules."""
    return (
        tuple((path, next(iter(held[id(variable)]))) for path, variable in _variables_by_path(model, params)),
        tuple(
            (path, tuple(held[id(variable)]))
            for path, variable in _variables_by_path(model, others)
            if id(variable) in held
        ),
    )


def leaves_by_path(state: PyTree) -> list[tuple[Path, Any]]:
    """The arrays of a state with their paths."""
    return [(_keys(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]]


def named(path: Path) -> str:
    """The name of an array in messages, such as ``encoder.layers.0.kernel``."""
    return ".".join(map(str, path))


def pure(tree: PyTree) -> PyTree:
    """The tree with every variable replaced by its value: what optimizers are given in updates."""
    return jax.tree.map(lambda node: _value(node) if is_variable(node) else node, tree, is_leaf=is_variable)


def mask_whole(tree: PyTree) -> PyTree:
    """The tree with `optax.MaskedNode` in place of each variable whose value is masked."""
    return jax.tree.map(
        lambda node: optax.MaskedNode() if is_variable(node) and _is_masked(_value(node)) else node,
        tree,
        is_leaf=is_variable,
    )


def set_inference_mode(node: nnx.Module) -> None:
    """Dropout off, normalisation statistics fixed, in this module and not in those within it."""
    for flag in ("deterministic", "use_running_average"):
        if hasattr(node, flag):
            setattr(node, flag, True)


def is_variable(node: Any) -> bool:
    """Whether a node of a tree is a variable."""
    return isinstance(node, nnx.Variable)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _value(variable: nnx.Variable[Any]) -> Any:
    """The value as it is: an array, None, a mask or a tree."""
    (structure,) = jax.tree.structure(variable).children()  # type: ignore[attr-defined]
    return jax.tree.unflatten(structure, jax.tree.leaves(variable))


def _check_gradients(params: PyTree) -> None:
    without = [f"{leaf.dtype} {named(path)!r}" for path, leaf in leaves_by_path(params) if not has_gradient(leaf)]
    if without:
        raise ConfigurationError(
            f"what trains must be real or complex numbers, got {', '.join(without[:3])}; leave it out with wrt=, or "
            "hold it in an nnx.Variable of another type"
        )


def _variables_by_path(model: nnx.Module, state: PyTree) -> list[tuple[Path, Any]]:
    """The variables of the model, in the order of the leaves of a state of it."""
    found = []
    for path, _ in leaves_by_path(state):
        node = model
        for key in path:
            if isinstance(node, nnx.Variable):
                break
            node = _child(node, key)
        found.append((path, node))
    return found


def _keys(path: tuple[Any, ...]) -> Path:
    return tuple(getattr(entry, "key", getattr(entry, "idx", None)) for entry in path if not hasattr(entry, "name"))


def _child(node: Any, key: Any) -> Any:
    return vars(node)[key] if isinstance(key, str) and key in getattr(node, "__dict__", ()) else node[key]


def _find(model: nnx.Module, attribute: str) -> Any:
    node: Any = model
    for part in attribute.split(".") if attribute else ():
        try:
            node = _child(node, int(part) if part.isdigit() else part)
        except (KeyError, IndexError, TypeError):
            raise ConfigurationError(
                f"a module must be an attribute of the model, but {type(model).__name__} has no {attribute!r}; "
                "use a name such as 'encoder' or 'towers.user'"
            ) from None
    return node


def _variables(node: Any) -> list[Any]:
    if isinstance(node, nnx.Variable):
        return [node]
    return [variable for _, variable in nnx.iter_graph(node) if isinstance(variable, nnx.Variable)]
