"""Which module each variable of a Flax NNX model belongs to, worked out once, by identity."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from adapters.contract import ALWAYS, check_disjoint
from alternator import ConfigurationError
from alternator.checks import listed

PyTree = Any


@dataclass(frozen=True)
class Layout:
    """The names of a model's variables and their modules. Hashable, as everything static in NNX must be."""

    attributes: tuple[tuple[str, str], ...]
    """(module, attribute of the model), of the always group too."""
    params: tuple[tuple[str, str], ...]
    """(name, module) of every array of the parameters, in the order of their state's leaves."""
    others: tuple[tuple[str, tuple[str, ...]], ...]
    """(name, modules) of every other array of the model that belongs to modules, random streams aside."""

    @property
    def labels(self) -> dict[str, str]:
        """The module of each parameter."""
        return dict(self.params)

    def flat(self, state: PyTree) -> dict[str, jax.Array]:
        """The arrays of a state of parameters or of gradients, by name."""
        return dict(zip(self.labels, jax.tree.leaves(state), strict=True))

    def unflat(self, arrays: dict[str, jax.Array], like: PyTree) -> PyTree:
        """The state that `flat` took apart."""
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name, _ in self.params])

    def set_inference_mode(self, model: nnx.Module, trained: Iterable[str]) -> None:
        """Dropout off, normalisation statistics fixed in every module that does not train."""
        for module, attribute in self.attributes:
            if module not in trained:
                for _, node in nnx.iter_graph(_find(model, attribute)):
                    if isinstance(node, nnx.Module):
                        node.eval()  # type: ignore[no-untyped-call]

    def restore(self, before: PyTree, after: PyTree, trained: Iterable[str]) -> PyTree:
        """The state ``after``, with what belongs to frozen modules, and what variables there are, as ``before``."""
        owners, new = dict(self.others), dict(named_leaves(after))
        moving = set(trained)
        leaves = [
            old if name in owners and moving.isdisjoint(owners[name]) else new[name]
            for name, old in named_leaves(before)
        ]
        return jax.tree.unflatten(jax.tree.structure(before), leaves)


def layout_of(model: nnx.Module, wrt: Any, modules: tuple[str, ...], always: tuple[str, ...]) -> Layout:
    """Find the modules by attribute, and the owner of each parameter.

    Raises:
        ConfigurationError: The model has no such attribute; a parameter belongs to two modules or to none.
    """
    attributes = (*((name, name) for name in modules), *((ALWAYS, name) for name in always))
    held: dict[int, dict[str, None]] = {}  # per variable its modules; the always group owns its variables alone
    for module, attribute in reversed(attributes):
        for variable in _variables(_find(model, attribute)):
            owners = held.setdefault(id(variable), {})
            if ALWAYS not in owners:
                owners[module] = None
    params, others = nnx.state(model, wrt), nnx.state(model, nnx.Not(nnx.Any(wrt, nnx.RngState)))
    owned: dict[str, dict[int, str]] = {module: {} for module, _ in attributes}
    for name, variable in _named_variables(model, params):
        for module in held.get(id(variable), ()):
            owned[module][id(variable)] = name
    check_disjoint(owned)
    unowned = [name for name, variable in _named_variables(model, params) if id(variable) not in held]
    if unowned:
        raise ConfigurationError(
            f"every parameter of the model must belong to a module, but {listed(unowned)} belongs to none of "
            f"{modules}; name its attribute in transforms or always=, or leave it out with wrt="
        )
    return Layout(
        attributes,
        tuple((name, next(iter(held[id(variable)]))) for name, variable in _named_variables(model, params)),
        tuple(
            (name, tuple(held[id(variable)]))
            for name, variable in _named_variables(model, others)
            if id(variable) in held
        ),
    )


def named_leaves(state: PyTree) -> list[tuple[str, Any]]:
    """The arrays of a state with their names, such as ``encoder.layers.0.kernel``."""
    return [
        (".".join(str(key) for key in _keys(path)), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    ]


def _named_variables(model: nnx.Module, state: PyTree) -> list[tuple[str, Any]]:
    """The variables of the model, in the order of the leaves of a state of it."""
    found = []
    for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]:
        keys, node = _keys(path), model
        for key in keys:
            if isinstance(node, nnx.Variable):
                break
            node = _child(node, key)
        found.append((".".join(map(str, keys)), node))
    return found


def _keys(path: tuple[Any, ...]) -> list[Any]:
    """The keys of a path through a state; the attribute that holds a variable's value is left out."""
    return [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path if not hasattr(entry, "name")]


def _child(node: Any, key: Any) -> Any:
    return vars(node)[key] if isinstance(key, str) and key in getattr(node, "__dict__", ()) else node[key]


def _find(model: nnx.Module, attribute: str) -> Any:
    node: Any = model
    for part in attribute.split("."):
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
