"""optax: one optimizer over all modules, of which only the active ones move.

The freeze contract: while a module is frozen its parameters, moments, step counts and schedules do not change by a
single bit; its gradients are neither computed nor counted in clipping; and when it is active again it continues
exactly as if the frozen steps had not happened.

Each module has a transformation of its own, which sees only the module's parameters and gradients and is not called
while the module is frozen. The turn to train, `active`, is static (a name or an index: one compilation per turn, and
XLA drops what is not used) or traced (an int32 index: one compilation in all). Nothing is counted here but the
micro-steps of gradient accumulation: the schedule lives in the alternator.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from adapters.contract import ALWAYS
from adapters.jax.equinox import combined, trainable
from adapters.jax.turns import Active, Chooses, PyTree, Turns, has_gradient, owners_of
from alternator import ConfigurationError
from alternator.checks import check_integer

Labels = PyTree | Callable[[PyTree], PyTree]


class AccumulationState(NamedTuple):
    """Micro-steps since the last update.

    Attributes:
        micro_step: The number of gradients accumulated for the next update.
        active: Index of the turn that they belong to.
        gradients: Their running mean, in the structure of the parameters; zero for what is frozen.
    """

    micro_step: jax.Array
    active: jax.Array
    gradients: PyTree


class Away(NamedTuple):
    """In place of the state of a module that is frozen: it is on the host, or dropped (see `FrozenStates`).

    Attributes:
        schedules: None in a step; in what is saved, where the schedules of a dropped state are.
    """

    schedules: PyTree = None


class AlternatingState(NamedTuple):
    """What `alternating` keeps.

    Attributes:
        inner_states: Per module, the state of its transformation, or `Away`.
        accumulation: None unless gradients are accumulated.
    """

    inner_states: dict[str, Any]
    accumulation: AccumulationState | None = None


def alternating(
    transforms: Mapping[str, optax.GradientTransformation],
    labels: Labels,
    *,
    turns: Mapping[str, str | Iterable[str]] | None = None,
    always: optax.GradientTransformation | None = None,
    accumulate: int = 1,
    alternator: Chooses | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One optimizer over all modules, of which only the active ones move.

    Its ``update(gradients, state, params, active=...)`` takes the turn that trains: a name or an index (static: make it
    a static argument of your jitted step), or a traced int32 index. For what is frozen the updates are zero, and the
    inner state stays as it is; its gradients are ignored. Apply the updates with `apply_updates`.

    A traced `active` outside the turns trains nothing, the always group included; under `jax.experimental.checkify` it
    is an error. Wrapped in `optax.MultiSteps`, the `active` of the last micro-step applies to all: use ``accumulate``.

    Args:
        transforms: Per module, its optimizer, in the order of the alternator's modules. Other keyword arguments of
            ``update`` are forwarded to those that take them: trees like the parameters' with everything else masked,
            and the ``value_fn`` of a line search, which takes all parameters, as a function of the module's own.
        labels: The module of each parameter: a tree of names that is a prefix of the parameters' tree, or a function
            from parameters to it. Parameters labelled `ALWAYS` train at every step, those labelled `FROZEN` never.
        turns: Names that stand for several modules, in the order of the alternator's; by default each name is a module.
        always: The optimizer of the parameters labelled `ALWAYS` (fusion or uncertainty weights).
        accumulate: The number of calls per update, which uses the mean gradient. A change of `active` takes effect with
            the next update's first call: until then take gradients for `in_force` (state, active).
        alternator: What chooses `active`, an `alternator.Alternator`, or a `DeviceAlternator` or `HostAlternator` of
            `adapters.jax`, if it is to be checked that the turns have its names in its order, and are such as its rule
            chooses among.

    Raises:
        ConfigurationError: A turn is wrong; and by ``init``: a parameter without a label, a label without an optimizer,
            a module without a parameter.
        UnknownModuleError: By ``update``: a static `active` that is not a turn.

    Example:
        >>> params = {"encoder": jnp.ones(2), "head": jnp.ones(2)}
        >>> optimizer = alternating(
        ...     {"encoder": optax.adamw(0.1), "head": optax.sgd(0.5)}, {"encoder": "encoder", "head": "head"}
        ... )
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params, active="head")
        >>> {name: weights.tolist() for name, weights in apply_updates(params, updates).items()}
        {'encoder': [1.0, 1.0], 'head': [0.5, 0.5]}
    """
    check_integer("accumulate", accumulate, 1)
    table = Turns.of(transforms, turns, alternator)
    given = {**transforms, **({} if always is None else {ALWAYS: always})}
    optimizers = {name: optax.with_extra_args_support(transform) for name, transform in given.items()}

    def init(params: PyTree) -> AlternatingState:
        params = trainable(params)
        if not jax.tree.leaves(params):  # a stand-in, with which optax.tree.map_params probes
            return AlternatingState({name: optimizer.init(params) for name, optimizer in optimizers.items()})
        owners = owners_of(params, labels, tuple(optimizers))
        inner = {name: optimizer.init(kept_of(params, owners, name)) for name, optimizer in optimizers.items()}
        if accumulate == 1:
            return AlternatingState(inner)
        zero = jnp.zeros((), jnp.int32)
        return AlternatingState(inner, AccumulationState(zero, zero, jax.tree.map(jnp.zeros_like, params)))

    def update(
        updates: PyTree, state: AlternatingState, params: PyTree = None, *, active: Active, **extra_args: Any
    ) -> tuple[PyTree, AlternatingState]:
        whole, params, updates = params, trainable(params), trainable(updates)
        reference = updates if params is None else params
        structures: list[Any] = [jax.tree.structure(tree) for tree in (updates, reference)]
        if structures[0] != structures[1]:
            raise ConfigurationError("gradients must have the structure of the parameters; give zeros for frozen ones")
        step = _Step(optimizers, table, owners_of(reference, labels, tuple(optimizers)), params, whole, extra_args)
        if state.accumulation is None:
            return step.update(updates, state.inner_states, table.find(active))
        return step.accumulate(updates, state.inner_states, state.accumulation, table.find(active), accumulate)

    return optax.GradientTransformationExtraArgs(init, update)


def in_force(state: AlternatingState, active: int | jax.Array) -> int | jax.Array:
    """The index of the turn that the next ``update(..., active=active)`` is for: take gradients for this one.

    It differs from `active` only inside an accumulation, where a change of `active` waits.
    """
    if state.accumulation is None:
        return active
    return jnp.where(state.accumulation.micro_step == 0, active, state.accumulation.active)


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """Add the updates, and leave a parameter whose update is zero as it is, to the bit.

    Use it in place of `optax.apply_updates`: XLA flushes subnormal weights to 0 when it adds a zero to them, and typed
    random keys among the parameters cannot be added. It takes the place of `equinox.apply_updates` too: where an update
    is None, the leaf stays.

    Example:
        >>> apply_updates(jnp.array([-0.0, 1.0]), jnp.array([0.0, 0.5]))
        Array([-0. ,  1.5], dtype=float32)
    """
    return jax.tree.map(_added, updates, params, is_leaf=lambda node: node is None)


def active_value_and_grad(
    losses: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    labels: Labels,
    modules: Iterable[str],
    *,
    turns: Mapping[str, str | Iterable[str]] | None = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
    """Like `jax.value_and_grad`, but only the gradients of what is active are computed; the others are zero.

    With a static `active` only the active parameters are differentiated. With a traced one `jax.lax.switch` chooses
    among such functions, one per turn, so frozen gradients are not computed either. (Under `jax.vmap` over `active` a
    switch becomes a selection, and all are.)

    Args:
        losses: A loss ``(params, *args, **kwargs)``, or one per turn: so a frozen module can run in inference mode, and
            a GAN or an actor-critic have a loss per player.
        labels: As given to `alternating`.
        modules: The names of the modules, in the order of the transforms given to `alternating`.
        turns: As given to `alternating`.
        has_aux: Whether a loss returns (value, auxiliary data).

    Returns:
        A function ``(params, *args, active=..., **kwargs)`` that returns (value, gradients), or ((value, aux),
        gradients). For a traced `active` out of range the value is the first turn's, and all gradients are zero.

    Raises:
        ConfigurationError: A turn is wrong, or ``losses`` lacks one.

    Example:
        >>> gradients = active_value_and_grad(
        ...     lambda params: params["a"] * params["b"], {"a": "a", "b": "b"}, ("a", "b")
        ... )
        >>> value, grads = gradients({"a": 2.0, "b": 3.0}, active="a")
        >>> float(value), float(grads["a"]), float(grads["b"])
        (6.0, 3.0, 0.0)
    """
    known = tuple(modules)
    table = Turns.of(known, turns)
    per_turn = losses if isinstance(losses, Mapping) else dict.fromkeys(table.names, losses)
    if set(per_turn) != set(table.names):
        raise ConfigurationError(f"losses must be one function, or one per turn {table.names}; got {tuple(per_turn)}")

    def evaluate(params: PyTree, *args: Any, active: Active, **kwargs: Any) -> tuple[Any, PyTree]:
        kept = trainable(params)
        owners = owners_of(kept, labels, known, optional=(ALWAYS,))

        def branch(turn: int, trained: tuple[str, ...]) -> Callable[[], tuple[Any, PyTree]]:
            loss = per_turn[table.names[turn]]
            of_kept = lambda p: loss(combined(p, params), *args, **kwargs)  # noqa: E731
            return lambda: _differentiate(of_kept, kept, owners, trained, has_aux)

        index = table.find(active)
        if isinstance(index, int):
            return branch(index, table.trained[index])()
        branches = [branch(turn, trained) for turn, trained in enumerate(table.trained)]
        outside = (index < 0) | (index >= len(branches))
        value, gradients = jax.lax.switch(jnp.where(outside, len(branches), index), [*branches, branch(0, ())])
        return value, gradients

    return evaluate


@dataclass(frozen=True)
class _Step:
    """One call of ``update``."""

    optimizers: dict[str, optax.GradientTransformationExtraArgs]
    turns: Turns
    owners: list[str]
    params: PyTree
    whole: PyTree
    extra_args: dict[str, Any]

    def update(
        self, gradients: PyTree, states: dict[str, Any], index: int | jax.Array
    ) -> tuple[PyTree, AlternatingState]:
        """Update the modules of a turn."""
        moved = {
            name: self._gate(self.turns.trains(name, index), name, kept_of(gradients, self.owners, name), states[name])
            for name in self.optimizers
        }
        updates = self._merge(gradients, {name: update for name, (update, _) in moved.items()})
        return updates, AlternatingState({name: state for name, (_, state) in moved.items()})

    def accumulate(
        self, gradients: PyTree, states: dict[str, Any], so_far: AccumulationState, index: int | jax.Array, every: int
    ) -> tuple[PyTree, AlternatingState]:
        """Add to the mean gradient of the turn in force, and update with it at the last micro-step."""
        micro_step = so_far.micro_step
        current = jnp.where(micro_step == 0, index, so_far.active).astype(jnp.int32)
        last = micro_step == every - 1
        trains = [jnp.asarray(self.turns.trains(owner, current)) for owner in self.owners]
        old, structure = jax.tree.flatten(so_far.gradients)
        mean = [
            jnp.where(train, (m + (g - m) / (micro_step + 1)).astype(m.dtype), m) if has_gradient(m) else m
            for train, m, g in zip(trains, old, jax.tree.leaves(gradients), strict=True)
        ]
        index = jnp.where(last, current, -1)
        updates, (new_states, _) = self.update(jax.tree.unflatten(structure, mean), states, index)
        kept = jax.tree.unflatten(structure, [jnp.where(last, 0, m) if has_gradient(m) else m for m in mean])
        return updates, AlternatingState(new_states, AccumulationState((micro_step + 1) % every, current, kept))

    def _gate(self, trains: bool | jax.Array, name: str, gradients: PyTree, state: Any) -> tuple[PyTree, Any]:
        if isinstance(state, Away) and trains is not False:
            raise ConfigurationError(
                f"the state of {name!r}, which is or may be active, must be here, but it has left: make active static, "
                "and call enter() of FrozenStates at each switch"
            )

        def move() -> tuple[PyTree, Any]:
            own = None if self.params is None else kept_of(self.params, self.owners, name)
            updates, new_state = self.optimizers[name].update(gradients, state, own, **self._arguments_of(name))
            return updates, new_state

        if isinstance(trains, bool):
            return move() if trains else (jax.tree.map(_zero, gradients), state)
        shapes, _ = jax.eval_shape(move)
        updates, new_state = jax.lax.cond(trains, move, lambda: (jax.tree.map(_zero, shapes), state))
        return updates, new_state

    def _arguments_of(self, name: str) -> dict[str, Any]:
        """The extra arguments as a module's optimizer needs them: trees masked, ``value_fn`` of its own parameters."""
        structure: Any = jax.tree.structure(self.params)
        given = dict(self.extra_args)
        for key, value in given.items():
            tree = trainable(value)
            if self.params is not None and jax.tree.structure(tree) == structure:
                given[key] = kept_of(tree, self.owners, name)
        if "value_fn" in given and self.params is not None:
            given["value_fn"] = self._with_the_others(given["value_fn"])
        return given

    def _with_the_others(self, value_fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function of a module's parameters that is ``value_fn`` with those of the others as they are."""
        leaves, structure = jax.tree.flatten(self.params)

        def of_own(own: PyTree, *args: Any, **kwargs: Any) -> Any:
            given = jax.tree.leaves(own, is_leaf=_is_masked)
            filled = [old if _is_masked(new) else new for new, old in zip(given, leaves, strict=True)]
            return value_fn(combined(jax.tree.unflatten(structure, filled), self.whole), *args, **kwargs)

        return of_own

    def _merge(self, like: PyTree, per_module: dict[str, PyTree]) -> PyTree:
        leaves, structure = jax.tree.flatten(like)
        columns = {name: jax.tree.leaves(tree, is_leaf=_is_masked) for name, tree in per_module.items()}
        chosen = [
            columns[owner][position] if owner in columns else _zero(leaves[position])
            for position, owner in enumerate(self.owners)
        ]
        return jax.tree.unflatten(structure, chosen)


def _differentiate(
    loss: Callable[[PyTree], Any], params: PyTree, owners: list[str], trained: tuple[str, ...], has_aux: bool
) -> tuple[Any, PyTree]:
    leaves, structure = jax.tree.flatten(params)
    moving = [position for position, owner in enumerate(owners) if owner in trained]

    def of_moving(values: list[Any]) -> Any:
        merged = list(leaves)
        for position, value in zip(moving, values, strict=True):
            merged[position] = value
        return loss(jax.tree.unflatten(structure, merged))

    value, gradients = jax.value_and_grad(of_moving, has_aux=has_aux)([leaves[position] for position in moving])
    full = [jnp.zeros_like(leaf) for leaf in leaves]
    for position, gradient in zip(moving, gradients, strict=True):
        full[position] = gradient
    return value, jax.tree.unflatten(structure, full)


def kept_of(tree: PyTree, owners: list[str], name: str) -> PyTree:
    """The tree with everything masked that is not the module's."""
    leaves, structure = jax.tree.flatten(tree)
    kept = [leaf if owner == name else optax.MaskedNode() for leaf, owner in zip(leaves, owners, strict=True)]
    return jax.tree.unflatten(structure, kept)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _added(update: Any, param: Any) -> Any:
    if update is None or not _is_number(update):
        return param
    return jnp.where(update == 0, param, jnp.asarray(param + update, jnp.result_type(param)))


def _is_number(leaf: Any) -> bool:
    """Whether it can be added: typed random keys and JAX's gradients of integers (float0) cannot."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.number))


def _zero(leaf: Any) -> Any:
    """Minus zero: adding it changes no number, 0.0 and -0.0 included."""
    if not _is_number(leaf):
        return leaf
    zeros = jnp.zeros_like(leaf)
    return -zeros if has_gradient(zeros) else zeros
