"""Which parameters a turn trains: labels of a parameter tree, and the index of the turn, static or traced."""

import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from adapters.contract import ALWAYS, check_turns
from alternator import Alternator, ConfigurationError, Rule, UnknownModuleError
from alternator.checks import listed, one_line
from alternator.errors import quoted

FROZEN: Final = "frozen"
"""The label of parameters that nothing trains: no optimizer, no gradient, no state."""

Active = str | int | jax.Array
"""The turn that trains: a name or an index (static), or an int32 scalar under a transformation (traced)."""

PyTree = Any


class Chooses(Protocol):
    """What chooses among the turns: an `alternator.Alternator` or a `DeviceAlternator`."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The names, in order."""
        ...

    @property
    def rule(self) -> Rule:
        """The switching rule."""
        ...


@dataclass(frozen=True)
class Turns:
    """The active sets that a rule chooses among; an integer `active` is an index into them.

    Example:
        >>> turns = Turns.of(("a", "b"), {"a": "a", "both": ("a", "b")})
        >>> turns.names, turns.trained
        (('a', 'both'), (('a', 'always'), ('a', 'b', 'always')))
    """

    names: tuple[str, ...]
    """The names of the turns, in the order of the alternator's modules."""
    trained: tuple[tuple[str, ...], ...]
    """Per turn, the labels of the parameters that it trains, the always group's among them."""

    @classmethod
    def of(
        cls,
        modules: Iterable[str],
        turns: Mapping[str, str | Iterable[str]] | None = None,
        alternator: Chooses | None = None,
    ) -> "Turns":
        """Check the names and build the table; by default each module is a turn.

        Raises:
            ConfigurationError: A turn is empty or names a module twice, a module is in none, a name is reserved, or the
                alternator has other names, in another order, or a rule that does not choose among such turns.
            UnknownModuleError: A turn names a module that does not exist.
        """
        known = tuple(modules)
        if not known:
            raise ConfigurationError("there must be a module to train, got none")
        if FROZEN in known:
            raise ConfigurationError(f"the name {FROZEN!r} is reserved for parameters that nothing trains; rename it")
        names = known if turns is None else tuple(turns)
        checked = check_turns(names, known, turns, None if alternator is None else alternator.rule)
        if alternator is not None and alternator.modules != names:
            raise ConfigurationError(
                f"turns must be the alternator's names {alternator.modules} in their order, as active may be an index, "
                f"got {names}"
            )
        if isinstance(alternator, Alternator):
            alternator.expect(turns=checked)
        return cls(tuple(checked), tuple((*members, ALWAYS) for members in checked.values()))

    def find(self, active: Active) -> int | jax.Array:
        """The index of a turn: an int for a static `active`, the array itself for a traced one.

        Raises:
            UnknownModuleError: A static `active` that is not a turn's name or index.
            ConfigurationError: A traced one that is not an integer scalar.
        """
        if isinstance(active, jax.core.Tracer):
            return self._check_traced(active)
        if isinstance(active, str):
            if active not in self.names:
                raise UnknownModuleError(active, self.names)
            return self.names.index(active)
        try:
            index = -1 if isinstance(active, bool) else operator.index(active)
        except TypeError:
            index = -1
        if not 0 <= index < len(self.names):
            raise UnknownModuleError(active, self.names)
        return index

    def trains(self, label: str, index: int | jax.Array) -> bool | jax.Array:
        """Whether a turn trains the parameters of a label; an index out of range trains none."""
        mine = [turn for turn, labels in enumerate(self.trained) if label in labels]
        if isinstance(index, int):
            return index in mine
        return (index == jnp.asarray(mine, index.dtype)).any()

    def _check_traced(self, active: jax.Array) -> jax.Array:
        if active.shape != () or not jnp.issubdtype(active.dtype, jnp.integer):
            raise ConfigurationError(
                f"a traced active must be an integer scalar, got {active.dtype}{list(active.shape)}; a name must be "
                "static (static_argnames)"
            )
        inside = (active >= 0) & (active < len(self.names))
        checkify.debug_check(inside, f"active must be an index of {self.names}, got {{index}}", index=active)
        return active


def owners_of(
    params: PyTree,
    labels: PyTree | Callable[[PyTree], PyTree],
    modules: tuple[str, ...],
    *,
    optional: tuple[str, ...] = (),
) -> list[str]:
    """The label of each leaf of the parameters: a module, `ALWAYS` or `FROZEN`.

    Args:
        params: The parameters.
        labels: A tree of names that is a prefix of the parameters' tree, or a function from parameters to it.
        modules: The labels that must each have a parameter.
        optional: Further labels, which need not have one.

    Raises:
        ConfigurationError: A parameter without a label, a label without a module, a module without a parameter, a
            module with integers, keys or what else has no gradient, or a parameter that is no array.

    Example:
        >>> owners_of({"tower": {"w": 1.0, "b": 2.0}, "scale": 3.0}, {"tower": "tower", "scale": "frozen"}, ("tower",))
        ['frozen', 'tower', 'tower']
    """
    tree = labels(params) if callable(labels) else labels
    try:
        owners = jax.tree.leaves(jax.tree.map(lambda label, part: [label] * len(jax.tree.leaves(part)), tree, params))
    except ValueError as error:
        missing = _unlabelled(tree, params)
        prefix = f"in a prefix of the parameters' tree: {one_line(str(error), 300)}"
        problem = f"got none for {listed(missing)}" if missing else prefix
        raise ConfigurationError(f"labels must name the module of every parameter, {problem}") from error
    known = (*modules, *optional, FROZEN)
    for position, owner in enumerate(owners):
        if owner not in known:
            raise ConfigurationError(
                f"the label of a parameter must be one of {known}, got {owner!r} for "
                f"{_paths(params)[position]}; give it an optimizer, or another label"
            )
    if empty := [name for name in modules if name not in owners]:
        raise ConfigurationError(f"every module must have a parameter, but no parameter is labelled {listed(empty)}")
    for position, (owner, leaf) in enumerate(zip(owners, jax.tree.leaves(params), strict=True)):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Number):
            raise ConfigurationError(
                f"a parameter must be an array or a number, got {quoted(leaf, 60)} for {_paths(params)[position]}; "
                "take it out of the tree"
            )
        if owner != FROZEN and not has_gradient(leaf):
            raise ConfigurationError(
                f"what trains must be real or complex numbers, got {_dtype(leaf)} for {_paths(params)[position]} of "
                f"{owner!r}; label it {FROZEN!r}"
            )
    return owners


def has_gradient(leaf: Any) -> bool:
    """Whether an array is of real or complex numbers; integers and typed random keys are not."""
    return bool(jnp.issubdtype(_dtype(leaf), jnp.inexact))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _unlabelled(labels: PyTree, params: PyTree) -> list[str]:
    prefixes = [path for path, _ in jax.tree_util.tree_flatten_with_path(labels)[0]]
    return [
        f"params{jax.tree_util.keystr(path)}"
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
        if not any(path[: len(prefix)] == prefix for prefix in prefixes)
    ]


def _paths(params: PyTree) -> list[str]:
    return [f"params{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
