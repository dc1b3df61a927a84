"""Flax NNX: an `nnx.Optimizer` that moves the active modules only, and gradients for these alone.

The freeze contract: while a module is frozen its parameters, its optimizer state and its normalisation statistics do
not change by a single bit; its gradients are neither computed nor counted in clipping; and when it is active again it
continues exactly as if the frozen steps had not happened. It runs in inference mode, or as in training (`frozen_mode`).

Modules are attributes of the model, so there are no labels to write. Both functions work on the split state inside, so
they serve `nnx.jit`, where the model is updated in place, and pure code under `jax.jit` that splits and merges itself.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from flax import nnx
from flax.nnx.training.optimizer import OptState, to_opt_state

from adapters.contract import ALWAYS, FrozenMode, FrozenState, check_frozen_modes, check_frozen_states
from adapters.jax.turns import Active, Chooses, PyTree, Turns
from adapters.nnx.frozen_modes import Reported, on_gradients
from adapters.nnx.layout import is_variable, layout_of, leaves_by_path, mask_whole, named, pure, set_inference_mode
from adapters.nnx.naming import Modules
from adapters.nnx.snapshots import Snapshot, restore, take
from adapters.optax import FrozenStates, active_value_and_grad, alternating, apply_updates, in_force
from alternator import ConfigurationError
from alternator.checks import listed, names_in


class AlternatingOptimizer(nnx.Optimizer):  # type: ignore[type-arg]
    """An `nnx.Optimizer` whose `update` moves the active modules and leaves every other as it is, to the bit.

    Take gradients with its `value_and_grad`: it differentiates the active modules only and runs the frozen ones in
    inference mode. `active` is a module's (or turn's) name or index, static, or a traced int32 index. Under `nnx.jit`
    make it static (one compilation per turn) or pass an array (one in all).

    Args:
        model: The model.
        transforms: Per module its optax optimizer, in the order of the alternator's modules. A module's name is that of
            the model's attribute, with dots for one further down (``"towers.user"``).
        wrt: The variables that train, as for `nnx.Optimizer`. What you leave out here is never trained.
        turns: Names that stand for several modules; by default each name is a module.
        always: An attribute, or several, that train at every step, with their optimizer, such as
            ``("fusion", optax.adam(1e-3))``. A parameter that two modules share must be among them.
        accumulate: The number of calls per update, which uses the mean gradient; a change of `active` waits for it.
        alternator: What chooses `active`, an `alternator.Alternator`, or a `DeviceAlternator` or `HostAlternator` of
            `adapters.jax`, if it is to be checked that the turns have its names in its order, and are such as its rule
            chooses among.
        frozen_mode: How modules run while they are frozen, for all or by name: ``"inference"``, or ``"batch"`` for
            players such as those of a GAN: in the modes that they have for training, so that BatchNorm normalises by
            the batch and dropout is on, but what they hold stays as it is. None is inference mode, with a warning where
            that may not be meant (docs/freezing.md).
        frozen_state: What becomes of the optimizer state of modules while they are frozen, for all or by name, as
            `adapters.optax.FrozenStates` has it: ``"keep"``, ``"offload"`` to the host, or ``"drop"``. With one of the
            last two `active` must be static; call `enter` at each switch. At first the first turn's states are there.
        modules: Per name of ``transforms`` what it stands for, if that is not the attribute of its name: a path, a
            pattern whose ``*`` matches dots too, ``"*"`` for the rest of the model, or several of these
            (``{"adapter": "*.lora_a", "backbone": "*"}``). The deepest match wins, and ``always`` is named so too. A
            submodule all of whose parameters belong to a module belongs to it, with its statistics and its mode.

    Raises:
        ConfigurationError: The model has no such attribute, or one without parameters; a parameter belongs to no module
            or to two; a turn is wrong.

    Example:
        >>> class Model(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.encoder = nnx.Linear(3, 4, rngs=rngs)
        ...         self.head = nnx.Linear(4, 1, rngs=rngs)
        >>> model = Model(nnx.Rngs(0))
        >>> optimizer = AlternatingOptimizer(model, {"encoder": optax.adamw(1e-3), "head": optax.adamw(1e-3)})
        >>> def loss(model, inputs):
        ...     return (model.head(model.encoder(inputs)) ** 2).mean()
        >>> @nnx.jit(static_argnames="active")
        ... def train_step(model, optimizer, inputs, active):
        ...     value, gradients = optimizer.value_and_grad(loss)(model, inputs, active=active)
        ...     optimizer.update(model, gradients, active=active)
        ...     return value
        >>> kernel = model.encoder.kernel[...]
        >>> value = train_step(model, optimizer, jnp.ones((8, 3)), active="head")
        >>> bool((model.encoder.kernel[...] == kernel).all())
        True
    """

    def __init__(
        self,
        model: nnx.Module,
        transforms: Mapping[str, optax.GradientTransformation],
        *,
        wrt: Any = nnx.Param,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: tuple[str | Iterable[str], optax.GradientTransformation] | None = None,
        accumulate: int = 1,
        alternator: Chooses | None = None,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        modules: Modules | None = None,
    ) -> None:
        names: str | Iterable[str] = ()
        transform = None
        if always is not None:
            names, transform = always
        self._turns = Turns.of(transforms, turns, alternator)
        self._modules = tuple(transforms)
        self._frozen_modes = tuple(check_frozen_modes(frozen_mode, transforms).items())
        self._reported = Reported()
        self._layout = layout = layout_of(model, wrt, self._modules, names_in(names), modules)
        parts = {name: _of_variables(name, each) for name, each in transforms.items()}
        extra = None if transform is None else _of_variables(ALWAYS, transform)
        self._frozen_states: FrozenStates | None = None
        if any(choice != "keep" for choice in check_frozen_states(frozen_state, transforms).values()):
            if accumulate != 1:
                raise ConfigurationError(
                    f"accumulate must be 1 where states leave, got {accumulate}: a switch within an accumulation waits "
                    "for its end, which is not known outside of jit; average gradients yourself, or keep the states"
                )
            self._frozen_states = FrozenStates(
                parts, layout.labels, frozen_state=frozen_state, turns=turns, always=extra
            )
            tx = self._frozen_states.optimizer
            first = self._turns.names[0]
            super().__init__(model, tx._replace(init=partial(self._frozen_states.init, active=first)), wrt=wrt)
            self.tx = tx
            return
        tx = alternating(parts, layout.labels, turns=turns, always=extra, accumulate=accumulate)
        super().__init__(model, tx, wrt=wrt)

    @property
    def frozen_states(self) -> FrozenStates | None:
        """What moves the states of frozen modules: to save all of ``opt_state`` (``whole``); None if all are kept."""
        return self._frozen_states

    def enter(self, model: nnx.Module, active: str | int) -> None:
        """At a switch, outside of ``nnx.jit``: the states of what is frozen leave, those of the turn are there.

        What leaves is deleted from the device, as what is donated is. Nothing happens if all states are kept.

        Args:
            model: The model.
            active: The turn that trains from now on, static.

        Raises:
            UnknownModuleError: `active` is not a turn.
            ConfigurationError: The devices have no memory of the kind ``pinned_host``.

        Example:
            >>> class Model(nnx.Module):
            ...     def __init__(self, rngs):
            ...         self.encoder, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
            >>> model = Model(nnx.Rngs(0))
            >>> transforms = {"encoder": optax.adamw(1e-3), "head": optax.adamw(1e-3)}
            >>> optimizer = AlternatingOptimizer(model, transforms, frozen_state="drop")
            >>> optimizer.enter(model, "head")
            >>> optimizer.opt_state.inner_states["encoder"]
            Away(schedules=None)
        """
        if self._frozen_states is not None:
            entered = self._frozen_states.enter(self.opt_state, nnx.state(model, self.wrt), active)
            self.opt_state = nnx.data(jax.tree.map(_as_state, entered, is_leaf=is_variable))

    def value_and_grad(
        self, losses: Callable[..., Any] | Mapping[str, Callable[..., Any]], *, has_aux: bool = False
    ) -> Callable[..., tuple[Any, PyTree]]:
        """Like `nnx.value_and_grad`, for the active modules only.

        The modules outside the turn run in inference mode, whatever their own mode, or with ``frozen_mode="batch"`` in
        their own; and what they hold besides parameters (normalisation statistics) stays as it is. Variables that a
        loss adds to the model are dropped: return them as auxiliary data. Inside an accumulation pass
        ``active=optimizer.in_force(active)``.

        Args:
            losses: A loss ``(model, *args, **kwargs)``, or one per turn.
            has_aux: Whether a loss returns (value, auxiliary data).

        Returns:
            A function ``(model, *args, active=..., **kwargs)`` that returns (value, gradients), or ((value, aux),
            gradients), and updates the model's statistics in place. The gradients are those of all parameters, zero for
            what is frozen.
        """
        per_turn = losses if isinstance(losses, Mapping) else dict.fromkeys(self._turns.names, losses)
        trained = dict(zip(self._turns.names, self._turns.trained, strict=True))
        turns = {name: tuple(module for module in group if module != ALWAYS) for name, group in trained.items()}

        def evaluate(model: nnx.Module, *args: Any, active: Active, **kwargs: Any) -> tuple[Any, PyTree]:
            parts: Any = nnx.split(model, self.wrt, ...)
            graphdef, params, rest = parts
            pure = {
                name: partial(self._evaluate, loss, graphdef, trained.get(name, ()), has_aux)
                for name, loss in per_turn.items()
            }
            gradients = active_value_and_grad(pure, self._layout.labels, self._modules, turns=turns, has_aux=True)
            (value, (after, aux)), of_params = gradients(params, rest, args, kwargs, active=active)
            nnx.update(model, after)
            return ((value, aux) if has_aux else value), of_params

        return evaluate

    def update(self, model: nnx.Module, gradients: PyTree, /, *, active: Active, **extra_args: Any) -> None:  # type: ignore[override]
        """Update the active modules of the model, and their optimizer state, in place.

        Args:
            model: The model.
            gradients: An `nnx.State` of the parameters' gradients. Those of frozen modules may have any value; with a
                static `active` they may be missing, as from `nnx.grad` with a filter.
            active: The turn that trains.
            **extra_args: Forwarded to the optimizers that take them.

        Raises:
            ConfigurationError: Gradients of what is active are missing.
            UnknownModuleError: A static `active` that is not a turn.
        """
        params = pure(nnx.state(model, self.wrt))
        given = self._complete(gradients, params, active)
        updates, new_state = self.tx.update(given, pure(self.opt_state), params, active=active, **pure(extra_args))
        nnx.update(model, apply_updates(params, updates))
        nnx.update(self.opt_state, nnx.state(new_state))
        self.step[...] += 1

    def in_force(self, active: Active) -> int | jax.Array:
        """The index of the turn that the next `update` is for; it differs from `active` only inside an accumulation."""
        return in_force(pure(self.opt_state), self._turns.find(active))

    def snapshot(self, model: nnx.Module) -> Snapshot:
        """Copies of all that training changes, for `rollback`: to try turns and undo them, as `alternator.Trials` does.

        All variables of the model (parameters, statistics, the keys and counts of its `nnx.Rngs`) and of this
        optimizer, in arrays of their own on their devices: donated buffers leave it as it is, and nothing waits. A
        pytree, so it may be taken, passed and used under `nnx.jit`. The schedule is not part of it: an alternator
        counts what was tried.

        Example:
            >>> class Model(nnx.Module):
            ...     def __init__(self, rngs):
            ...         self.encoder, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
            >>> model = Model(nnx.Rngs(0))
            >>> optimizer = AlternatingOptimizer(model, {"encoder": optax.adamw(1e-3), "head": optax.adamw(1e-3)})
            >>> saved, gradients = optimizer.snapshot(model), jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
            >>> optimizer.update(model, gradients, active="head")
            >>> optimizer.rollback(model, saved)
            >>> int(optimizer.step[...])
            0

        Raises:
            ConfigurationError: States of frozen modules are elsewhere.
        """
        if self._frozen_states is not None:
            raise ConfigurationError(
                "snapshot() must find all optimizer states, but frozen_state= moves some: keep them, or build "
                "adapters.optax.FrozenStates(donate=False), whose whole() and split() are snapshots"
            )
        return take(model, self)

    def rollback(self, model: nnx.Module, snapshot: Snapshot) -> None:
        """Set the model and this optimizer to a `snapshot`, in place, to the bit; it may be used again.

        Raises:
            StateError: The model has other variables now; nothing has been changed then.
        """
        restore(model, self, snapshot)

    def _evaluate(
        self,
        loss: Callable[..., Any],
        graphdef: Any,
        trained: tuple[str, ...],
        has_aux: bool,
        params: PyTree,
        rest: PyTree,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, tuple[PyTree, Any]]:
        """The loss of the model in one turn; what the model holds besides parameters, and auxiliary data."""
        inner = jax.tree.map(lambda array: array, rest)  # variables of this trace, which the loss may change
        model = nnx.merge(graphdef, params, inner)
        self._set_frozen_modes(model, trained)
        result = loss(model, *args, **kwargs)
        value, aux = result if has_aux else (result, None)
        return value, (self._layout.restore(rest, nnx.state(model), trained), aux)

    def _set_frozen_modes(self, model: nnx.Module, trained: tuple[str, ...]) -> None:
        """Inference mode for what is frozen, unless it was to be as in training; the model is one of a single trace."""
        modes = {name: mode for name, mode in self._frozen_modes if name not in trained and mode != "batch"}
        nodes = list(self._layout.nodes(model, modes))
        for name, node in nodes:
            if modes[name] is None and isinstance(node, nnx.BatchNorm) and not node.use_running_average:
                on_gradients(node, partial(self._reported.warn, name))
        for _, node in nodes:
            set_inference_mode(node)

    def _complete(self, gradients: PyTree, params: PyTree, active: Active) -> PyTree:
        """The gradients in the tree of the parameters, zeros for what is missing."""
        index = self._turns.find(active)
        trained = self._turns.trained[index] if isinstance(index, int) else (*self._modules, ALWAYS)
        given = dict(leaves_by_path(gradients))
        if missing := [named(path) for path, module in self._layout.params if path not in given and module in trained]:
            raise ConfigurationError(f"gradients must hold all that is active, but {listed(missing)} is missing")
        leaves = [given[path] if path in given else jnp.zeros_like(param) for path, param in leaves_by_path(params)]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _as_state(node: Any) -> Any:
    """A leaf of a new state as the variable that `nnx.Optimizer` makes of it; those that it has made are."""
    return node if isinstance(node, OptState) else to_opt_state(node)  # type: ignore[no-untyped-call]


def _of_variables(name: str, transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation for trees of variables, whose metadata its state keeps, as in plain Flax."""
    extended = optax.with_extra_args_support(transform)

    def init(params: PyTree) -> PyTree:
        try:
            return mask_whole(transform.init(mask_whole(params)))
        except AttributeError as error:
            if not isinstance(error.obj, optax.MaskedNode):
                raise
            raise ConfigurationError(
                f"an optimizer must read its own parameters only, but that of {name!r} reads .{error.name} of what "
                "other modules train, which is masked; make its mask with jax.tree.map, which passes over what is "
                "masked, or give it as a tree"
            ) from error

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, PyTree]:
        moved, new_state = extended.update(mask_whole(updates), state, mask_whole(params), **extra_args)
        return moved, mask_whole(new_state)

    return optax.GradientTransformationExtraArgs(init, update)
