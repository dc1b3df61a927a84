"""The optimizer states of modules that are frozen: on the host, or dropped, at each switch.

A pytree that a compiled function is given has a fixed structure, so nothing can leave it within ``jit``. With a static
`active` there is one compilation per turn anyway: at a switch, outside of ``jit``, the states that leave are replaced
by `Away`, which has no arrays, and those of the turn take their places. The structure is then a function of the turn,
and there are as many compilations as before.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from adapters.contract import ALWAYS, FrozenState, check_frozen_states
from adapters.jax.equinox import trainable
from adapters.jax.turns import Active, Chooses, PyTree, Turns, owners_of
from adapters.optax.carried_schedules import schedules_of, with_schedules
from adapters.optax.optimizer import AlternatingState, Away, Labels, alternating, kept_of
from alternator import ConfigurationError

HOST = "pinned_host"
"""The kind of memory to which states are offloaded."""


class FrozenStates:
    """An `alternating` whose states of frozen modules are on the host, or dropped: call `enter` at each switch.

    It belongs to one run and lives outside of ``jit``; what is on the host is held here. `active` must be static.

    Args:
        transforms: As `alternating` has it.
        labels: As `alternating` has it.
        frozen_state: What becomes of the state of what is frozen, for all or by name: ``"offload"`` moves it to the
            host (memory of the kind ``pinned_host``) until the module trains again, and nothing of the contract
            changes; ``"drop"`` frees it: the module starts again with a new state, as if with a new optimizer, but
            schedules (those of ``inject_hyperparams`` too) continue; ``"keep"`` leaves it where it is.
        turns: As `alternating` has it.
        always: As `alternating` has it; its state stays.
        alternator: As `alternating` has it.
        donate: Whether what leaves is deleted from the device at once, as what is donated to ``jit`` is, so that it and
            the new turn's states are never there together. False if you hold on to it, as snapshots do.

    Attributes:
        optimizer: The `alternating`.

    Raises:
        ConfigurationError: As `alternating`; or a choice does not exist.

    Example:
        >>> params = {"encoder": jnp.ones(2), "head": jnp.ones(2)}
        >>> states = FrozenStates(
        ...     {"encoder": optax.adam(0.1), "head": optax.adam(0.1)},
        ...     {"encoder": "encoder", "head": "head"},
        ...     frozen_state="drop",
        ... )
        >>> state = states.init(params, active="encoder")
        >>> updates, state = states.optimizer.update(params, state, params, active="encoder")
        >>> state = states.enter(state, params, active="head")  # at a switch
        >>> state.inner_states["encoder"]
        Away(schedules=None)
    """

    def __init__(
        self,
        transforms: Mapping[str, optax.GradientTransformation],
        labels: Labels,
        *,
        frozen_state: FrozenState | Mapping[str, FrozenState],
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: optax.GradientTransformation | None = None,
        alternator: Chooses | None = None,
        donate: bool = True,
    ) -> None:
        self.optimizer = alternating(transforms, labels, turns=turns, always=always, alternator=alternator)
        self._turns = Turns.of(transforms, turns)
        self._choices = check_frozen_states(frozen_state, transforms)
        self._labels = labels
        self._transforms = {**transforms, **({} if always is None else {ALWAYS: always})}
        self._donate = donate
        self._on_host: dict[str, PyTree] = {}
        self._schedules: dict[str, PyTree] = {}

    def init(self, params: PyTree, active: str | int) -> AlternatingState:
        """The state before the first step, in place of ``optimizer.init``: of what trains, and of what is kept."""
        self._on_host, self._schedules = {}, {}
        return self.enter(AlternatingState(dict.fromkeys(self._transforms, Away())), params, active)

    def enter(self, state: AlternatingState, params: PyTree, active: str | int) -> AlternatingState:
        """The state for a turn: what is frozen has left, what trains has come back, or is new.

        Call it at each switch, outside of ``jit``; calls for the same turn change nothing. The host waits for copies to
        it, so that their memory is free before what trains is given some.

        Args:
            state: The state so far.
            params: The parameters.
            active: The turn that trains from now on.

        Raises:
            UnknownModuleError: `active` is not a turn.
            ConfigurationError: The devices have no memory of the kind ``pinned_host``.
        """
        inner = dict(state.inner_states)
        trained = self._trained(active)
        for name, choice in self._choices.items():
            if choice != "keep" and name not in trained and not isinstance(inner[name], Away):
                inner[name] = self._leave(name, inner[name], params, offload=choice == "offload")
        for name, own in inner.items():
            if isinstance(own, Away) and (name in trained or self._choices.get(name, "keep") == "keep"):
                inner[name] = self._arrive(name, params)
        return AlternatingState(inner)

    def whole(self, state: AlternatingState) -> AlternatingState:
        """The state with what is on the host in its places, to save it or as a snapshot; `Away` is what is nowhere."""
        dropped = {name: Away(schedules) for name, schedules in self._schedules.items()}
        return AlternatingState({**state.inner_states, **dropped, **self._on_host})

    def split(self, whole: AlternatingState, params: PyTree, active: str | int) -> AlternatingState:
        """The state for a turn, of what `whole` returned: to load it, or to go back to a snapshot."""
        inner = whole.inner_states
        self._on_host = {}
        self._schedules = {
            name: own.schedules for name, own in inner.items() if isinstance(own, Away) and own.schedules is not None
        }
        inner = {name: Away() if isinstance(own, Away) else own for name, own in inner.items()}
        return self.enter(AlternatingState(inner), params, active)

    def _trained(self, active: Active) -> tuple[str, ...]:
        index = self._turns.find(active)
        if not isinstance(index, int):
            raise ConfigurationError("active must be static where states leave, got a traced one; give a name")
        return self._turns.trained[index]

    def _leave(self, name: str, own: PyTree, params: PyTree, *, offload: bool) -> Away:
        if offload:
            left = self._on_host[name] = jax.tree.map(_on_host, own)
            jax.block_until_ready(left)  # type: ignore[no-untyped-call]
        else:
            left = self._schedules[name] = schedules_of(own)
        held = {id(leaf) for leaf in jax.tree.leaves((params, left))}
        for leaf in jax.tree.leaves(own) if self._donate else ():
            if isinstance(leaf, jax.Array) and id(leaf) not in held:
                leaf.delete()
        return Away()

    def _arrive(self, name: str, params: PyTree) -> PyTree:
        if name in self._on_host:
            return jax.tree.map(_on_device, self._on_host.pop(name))
        params = trainable(params)
        owners = owners_of(params, self._labels, tuple(self._transforms))
        new = self._transforms[name].init(kept_of(params, owners, name))
        return with_schedules(new, self._schedules.pop(name)) if name in self._schedules else new


def _on_host(leaf: Any) -> Any:
    """The array in the host's memory; counts and random keys stay where they are."""
    if not isinstance(leaf, jax.Array) or leaf.ndim == 0 or not jnp.issubdtype(leaf.dtype, jnp.number):
        return leaf
    kinds = {memory.kind for memory in _device_of(leaf).addressable_memories()}
    if HOST not in kinds:
        raise ConfigurationError(
            f"frozen_state='offload' must have devices with memory of the kind {HOST!r}, got {sorted(kinds)}; use "
            "'drop', or 'keep'"
        )
    return jax.device_put(leaf, leaf.sharding.with_memory_kind(HOST))


def _on_device(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.sharding.memory_kind != HOST:
        return leaf
    return jax.device_put(leaf, leaf.sharding.with_memory_kind(_device_of(leaf).default_memory().kind))


def _device_of(leaf: jax.Array) -> Any:
    return next(iter(leaf.sharding.device_set))
