"""JAX: the alternator inside ``jit`` and ``lax.scan``, and one outside for losses that are still on the device.

`DeviceAlternator` is the core's `Alternator` as pure functions of a pytree: whole epochs run without the host, and the
decisions come back as arrays. It counts and decides as the core does, in float32: decisions agree until a number that a
rule compares lies within the rule's stated float32 margin of its limit.

`HostAlternator` feeds the core's own with device arrays, one step late, so that the host never waits for the device.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any, NamedTuple, get_args, get_type_hints
from warnings import warn

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from adapters.contract import refuse_loss
from adapters.jax.losses import Losses, check_scalar, check_vector
from adapters.jax.rules import REASONS, DeviceFacts, DeviceVerdict, device_step, reason_code
from alternator import (
    Alternator,
    ConfigurationError,
    Decision,
    LossError,
    Reason,
    Rule,
    StateError,
    Trial,
    UnknownModuleError,
)
from alternator.checks import check_integer, to_integer
from alternator.errors import quoted
from alternator.rules.random_tenure import RandomTenureState
from alternator.rules.trial import unmeasured_trial
from alternator.state import dump_state, parse_state


class DeviceState(NamedTuple):
    """Everything that decides what comes next, as arrays; the names are those of the core's saved state.

    Legend: N modules, R the rule's ring size, D the delay (1 where it is 0: Orbax saves no arrays of size zero).
    """

    step: jax.Array
    active: jax.Array
    tenure: jax.Array
    entered: jax.Array
    entered_at: jax.Array
    observed: jax.Array
    updates: jax.Array
    trained_at_N: jax.Array
    rings_NR: jax.Array
    ring_lengths_N: jax.Array
    training_steps_N: jax.Array
    skipped_steps_N: jax.Array
    nonfinite_losses_N: jax.Array
    nonfinite_streaks_N: jax.Array
    plateaued_N: jax.Array
    switch_count: jax.Array
    rule_state: Any
    pending_DN: jax.Array
    pending_known_DN: jax.Array


class DeviceDecision(NamedTuple):
    """`alternator.Decision` as arrays: one step, or a log stacked by ``lax.scan``. See `DeviceAlternator.decisions`.

    Attributes:
        step: The step that was counted, 1-based.
        active: Index of the module that trains from now on.
        previous: Index of the module that was active in the counted step.
        switched: Whether they differ.
        reason: An index of `REASONS`.
        value: The number that was compared, as a float.
        limit: The number that it was compared with.
        all_plateaued: True at a switch after which every module's last tenure ended on a plateau.
    """

    step: jax.Array
    active: jax.Array
    previous: jax.Array
    switched: jax.Array
    reason: jax.Array
    value: jax.Array
    limit: jax.Array
    all_plateaued: jax.Array


class DeviceAlternator:
    """The alternator as a state machine on the device: `init` a state, then ``state, decision = step(state, losses)``.

    All methods that take a state are pure and may be called under ``jit``, ``scan`` and ``vmap``; ``state.active`` is
    the index of the module that trains next, to be passed on as a traced `active`.

    Losses are kept in float32, or in float64 where JAX's x64 mode is on. Without it, float64 losses are rounded to
    float32 (those beyond 3.4e38 count as infinite), and the decisions are those for the rounded losses.

    Args:
        modules: As for `Alternator`: the names, in order.
        rule: As for `Alternator`; a rule of your own needs a device version, see `device_step`.
        nonfinite_limit: As for `Alternator`.
        num_steps: As for `Alternator`: it is warned of a limit of the rule that is longer than a tenth of the run. A
            module that has not trained for so long is named by the `Alternator` of `to_host` only, as nothing on the
            device can warn.
        delay: The number of steps after which losses given to `step` count. 0 is the core's `observe`; 1 decides as
            adapters do that read losses one step late.
        dtype: The type in which losses are kept: float32, or float64 under x64; by default the widest enabled.

    Raises:
        ConfigurationError: As for `Alternator`; or no device version, a negative delay, or float64 without x64.

    Example:
        >>> from alternator import Plateau
        >>> machine = DeviceAlternator(("encoder", "head"), Plateau(min_steps=1, window=3))
        >>> state, log = jax.lax.scan(machine.step, machine.init(), jnp.array([0.71, 0.70, 0.70, 0.70]))
        >>> [decision.active for decision in machine.decisions(log)]
        ['encoder', 'encoder', 'head', 'head']
        >>> machine.decisions(log)[2].explain()
        'step 3: encoder → head (change rate 0 < 0.01)'
    """

    def __init__(
        self,
        modules: Iterable[str],
        rule: Rule | None = None,
        *,
        nonfinite_limit: int = 10,
        num_steps: int | None = None,
        delay: int = 0,
        dtype: DTypeLike | None = None,
    ) -> None:
        host = Alternator(modules, rule, nonfinite_limit=nonfinite_limit, num_steps=num_steps)
        self._set_up(host, delay, dtype)

    def _set_up(self, host: Alternator, delay: int, dtype: DTypeLike | None) -> None:
        """Take the configuration, and what is planned, of an alternator that has counted nothing."""
        self._host = host
        self._delay = check_integer("delay", delay, 0)
        self._warns_of_unmeasured = isinstance(self.rule, Trial)
        _check_integers(self.rule)
        if device_step.dispatch(type(self.rule)) is device_step.dispatch(object):
            raise ConfigurationError(
                f"a rule on the device needs a device version, but {type(self.rule).__name__} has none; register one "
                "with device_step.register"
            )
        self._dtype = _float_type(dtype)

    @classmethod
    def of(cls, alternator: Alternator, *, delay: int = 0, dtype: DTypeLike | None = None) -> "DeviceAlternator":
        """The machine with the configuration of an `Alternator`: ``machine.load_state_dict`` takes its state.

        Args:
            alternator: What decides on the host; it is left as it is.
            delay: As above.
            dtype: As above.

        Raises:
            ConfigurationError: As above.

        Example:
            >>> alternator = Alternator(("encoder", "head"))
            >>> decision = alternator.observe(0.7)
            >>> machine = DeviceAlternator.of(alternator)
            >>> int(machine.load_state_dict(alternator.state_dict()).step)
            1
        """
        host = deepcopy(alternator)  # with what is planned, and what has been warned of
        host.reset()
        machine = cls.__new__(cls)
        machine._set_up(host, delay, dtype)
        return machine

    def expect(self, num_steps: int | None = None, turns: Mapping[str, str | Iterable[str]] | None = None) -> None:
        """Say what is planned, as `Alternator.expect` does: the alternators of `to_host` know it from then on.

        Raises:
            ConfigurationError: As there.
            UnknownModuleError: As there.
        """
        self._host.expect(num_steps, turns)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names, in order."""
        return self._host.modules

    @property
    def rule(self) -> Rule:
        """The switching rule."""
        return self._host.rule

    def init(self) -> DeviceState:
        """The state before the first step."""
        return self.load_state_dict(self._host.state_dict())

    def step(self, state: DeviceState, losses: Losses, updated: ArrayLike = True) -> tuple[DeviceState, DeviceDecision]:
        """Record the losses of a step, count it, and decide who trains next: the core's `observe`.

        Args:
            state: The state.
            losses: The active module's loss; or an array with the losses of all modules, in order; or a mapping with
                those of some. A mapping may lack the active module's; then nothing is recorded for it.
            updated: False if the update was skipped.

        Raises:
            UnknownModuleError: A mapping has a name that is not a module.
            LossError: The losses have another shape, are not real, or the active module's alone is given to a rule that
                decides by payoffs.
        """
        values_N, known_N = self._spread(state, losses)
        if self._delay == 0:
            return self.advance(_record(state, values_N, known_N), updated)
        due_N, due_known_N = state.pending_DN[0], state.pending_known_DN[0]
        state = state._replace(
            pending_DN=jnp.concatenate([state.pending_DN[1:], values_N[None]]),
            pending_known_DN=jnp.concatenate([state.pending_known_DN[1:], known_N[None]]),
        )
        late = state.step + 1 - self._delay <= state.entered_at
        return self.advance(_record(state, due_N, due_known_N, late), updated)

    def record(self, state: DeviceState, module: str | int | jax.Array, value: ArrayLike) -> DeviceState:
        """Append a loss to a module's ring at once, whatever the delay. It counts no step and decides nothing.

        Raises:
            UnknownModuleError: A name or a static index that is not a module.
            LossError: The loss is not a real scalar.
        """
        check_scalar(repr(module) if isinstance(module, str) else "a module", value)
        known_N = jnp.arange(len(self.modules)) == self._find(module)
        return _record(state, jnp.where(known_N, jnp.asarray(value, self._dtype), 0), known_N)

    def advance(self, state: DeviceState, updated: ArrayLike = True) -> tuple[DeviceState, DeviceDecision]:
        """Count one step of the active module and decide, from what has been recorded so far, who trains next."""
        active = state.active
        state = _count(state, jnp.asarray(updated, bool))
        rule_state, verdict = self._ask_rule(state, jnp.asarray(updated, bool))
        state = state._replace(rule_state=rule_state, entered=jnp.zeros_like(state.entered))
        switch, reason, value, limit, plateaued, target = self._overrule(state, verdict)
        mine_N = jnp.arange(len(self.modules)) == active
        state = state._replace(
            plateaued_N=jnp.where(switch & mine_N, plateaued, state.plateaued_N),
            switch_count=state.switch_count + switch,
        )
        state = _enter(state, jnp.where(target < 0, (active + 1) % len(self.modules), target), switch)
        ended = switch & state.plateaued_N.all()
        return state, DeviceDecision(state.step, state.active, active, switch, reason, value, limit, ended)

    def force(self, state: DeviceState, module: str | int | jax.Array) -> DeviceState:
        """Start a new tenure of a module now, as `Alternator.force`.

        Raises:
            UnknownModuleError: A name or a static index that is not a module.
        """
        target = jnp.asarray(self._find(module), jnp.int32)
        mine_N = jnp.arange(len(self.modules)) == state.active
        state = state._replace(plateaued_N=state.plateaued_N & ~mine_N)
        return _enter(state, target, jnp.array(True))

    def decisions(self, log: DeviceDecision) -> list[Decision]:
        """The core's decisions from a log of one dimension, or from one decision.

        Warns once of a trial (see `Trial`) without held-out losses, of which nothing on the device can warn.
        """
        columns = [np.atleast_1d(np.asarray(column)).tolist() for column in log]
        decided = [
            Decision(step, self.modules[active], self.modules[previous], switched, REASONS[reason], value, limit, ended)
            for step, active, previous, switched, reason, value, limit, ended in zip(*columns, strict=True)
        ]
        self._warn_of_unmeasured(decided)
        return decided

    def to_host(self, state: DeviceState) -> Alternator:
        """An `Alternator` that continues from the state: its counts, statistics and decisions."""
        host = deepcopy(self._host)  # with what is planned, and what has been warned of
        host.load_state_dict(self.state_dict(state))
        return host

    def state_dict(self, state: DeviceState) -> dict[str, Any]:
        """The state as `Alternator.state_dict` would have it, JSON-safe; pending losses are added to it."""
        plain = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), state)
        counts = {name.removesuffix("_N"): value for name, value in plain._asdict().items() if name in _COUNTS}
        lengths = plain.ring_lengths_N
        counts["rings"] = [ring[len(ring) - kept :] for ring, kept in zip(plain.rings_NR, lengths, strict=True)]
        rule_state = type(plain.rule_state)(*(tuple(v) if isinstance(v, list) else v for v in plain.rule_state))
        pending = [
            {name: repr(value) for name, value, known in zip(self.modules, values, knowns, strict=True) if known}
            for values, knowns in zip(plain.pending_DN, plain.pending_known_DN, strict=True)
        ][: self._delay]
        saved = self._host.state_dict()
        return dump_state(saved["configuration"], counts, rule_state) | {"pending_losses": pending}

    def load_state_dict(self, saved: Mapping[str, Any]) -> DeviceState:
        """The state from `state_dict`, or from that of an `Alternator` of the same configuration.

        Raises:
            StateError: The saved state is of another version or configuration, or damaged.
        """
        counts, rule_state = parse_state(saved, self._host.state_dict()["configuration"], self.rule)
        ring_size = max(self.rule.ring_size, 1)
        rings_NR = np.zeros((len(self.modules), ring_size))
        for row, ring in zip(rings_NR, counts["rings"], strict=True):
            row[ring_size - len(ring) :] = ring
        pending_DN, known_DN = self._load_pending(saved.get("pending_losses", []))
        arrays = {f"{name}_N" if f"{name}_N" in _COUNTS else name: value for name, value in counts.items()}
        return DeviceState(
            **{name: _array(name, arrays[name], bool if name in _FLAGS else jnp.int32) for name in _COUNTS},
            rings_NR=_array("rings", rings_NR, self._dtype),
            ring_lengths_N=jax.device_put(np.array([len(ring) for ring in counts["rings"]], np.int32)),
            rule_state=_to_device(rule_state, self._dtype),
            pending_DN=jax.device_put(np.asarray(pending_DN, self._dtype)),
            pending_known_DN=jax.device_put(np.asarray(known_DN)),
        )

    def _warn_of_unmeasured(self, decided: list[Decision]) -> None:
        unmeasured = [decision.step for decision in decided if decision.reason == Reason.UNMEASURED]
        if unmeasured and self._warns_of_unmeasured:
            self._warns_of_unmeasured = False
            warn(unmeasured_trial(unmeasured[0]), stacklevel=3)

    def _find(self, module: str | int | jax.Array) -> int | jax.Array:
        if isinstance(module, jax.Array):
            return module
        if isinstance(module, str) and module in self.modules:
            return self.modules.index(module)
        index = to_integer(module)
        if index is not None and 0 <= index < len(self.modules):
            return index
        raise UnknownModuleError(module, self.modules)

    def _spread(self, state: DeviceState, losses: Losses) -> tuple[jax.Array, jax.Array]:
        """The losses of a step per module, and which of them are known."""
        count = len(self.modules)
        if isinstance(losses, list | tuple):
            if len(losses) != count:
                raise LossError(f"losses must be one per module ({count}), got {len(losses)}")
            losses = dict(zip(self.modules, losses, strict=True))
        if isinstance(losses, Mapping):
            for name in losses:
                if name not in self.modules:
                    raise UnknownModuleError(name, self.modules)
                check_scalar(repr(name), losses[name])
            given = [jnp.asarray(losses.get(name, 0), self._dtype) for name in self.modules]
            return jnp.stack(given), jnp.array([name in losses for name in self.modules])
        if isinstance(losses, jax.Array | np.ndarray) and losses.shape != ():
            check_vector(losses, count)
            return jnp.asarray(losses, self._dtype), jnp.ones(count, bool)
        refuse_loss(self.rule)
        check_scalar("the active module", losses)
        return jnp.full(count, jnp.asarray(losses, self._dtype)), jnp.arange(count) == state.active

    def _ask_rule(self, state: DeviceState, updated: jax.Array) -> tuple[Any, DeviceVerdict]:
        known = state._asdict()
        facts = DeviceFacts(**{name: known[name] for name in DeviceFacts._fields if name != "updated"}, updated=updated)
        rule_state, verdict = device_step(self.rule, state.rule_state, facts)
        kinds = (bool, jnp.int32, self._dtype, self._dtype, bool, jnp.int32)
        return rule_state, DeviceVerdict(*(jnp.asarray(part, kind) for part, kind in zip(verdict, kinds, strict=True)))

    def _overrule(self, state: DeviceState, verdict: DeviceVerdict) -> DeviceVerdict:
        """Too many non-finite losses of the active module in a row switch, to the rule's target if it names one."""
        streak = state.nonfinite_streaks_N[state.active]
        bad = streak >= self._host.nonfinite_limit
        return DeviceVerdict(
            switch=verdict.switch | bad,
            reason=jnp.where(bad, reason_code(Reason.NONFINITE), verdict.reason),
            value=jnp.where(bad, streak.astype(self._dtype), verdict.value),
            limit=jnp.where(bad, self._host.nonfinite_limit, verdict.limit),
            plateaued=verdict.plateaued & ~bad,
            target=jnp.asarray(verdict.target),
        )

    def _load_pending(self, saved: Any) -> tuple[np.ndarray, np.ndarray]:
        values_DN = np.zeros((max(self._delay, 1), len(self.modules)))
        known_DN = np.zeros(values_DN.shape, bool)
        try:
            if len(saved) > self._delay:
                raise StateError(f"the state has pending losses of {len(saved)} steps, but delay is {self._delay}")
            for row, losses in enumerate(saved, start=self._delay - len(saved)):
                for name, value in losses.items():
                    column = self.modules.index(name)
                    values_DN[row, column], known_DN[row, column] = float(value), True
        except (ValueError, AttributeError, TypeError, OverflowError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"the pending losses are damaged ({error}); load an intact state") from error
        return values_DN, known_DN


def _check_integers(rule: Rule) -> None:
    """Refuse lengths that the device, which counts in 32 bits, could not reach."""
    for name, value in ((field.name, getattr(rule, field.name)) for field in fields(rule)):  # type: ignore[arg-type]
        numbers = [to_integer(number) for number in (value if isinstance(value, tuple) else (value,))]
        if any(number is not None and number > _MAX_COUNT for number in numbers) and name != "seed":
            raise ConfigurationError(f"{name} must be at most {_MAX_COUNT} on a device, got {quoted(value)}")


_MAX_COUNT = 2**31 - 1
_FLAGS = {"entered", "plateaued_N"}
_COUNTS = tuple(
    name
    for name in DeviceState._fields
    if name not in ("rings_NR", "ring_lengths_N", "rule_state", "pending_DN", "pending_known_DN")
)


def _record(state: DeviceState, values_N: jax.Array, known_N: jax.Array, late: jax.Array | bool = False) -> DeviceState:
    """Losses into the rings; those of the active module that are older than its tenure are not observed by it."""
    finite_N = known_N & jnp.isfinite(values_N)
    bad_N = known_N & ~jnp.isfinite(values_N)
    of_tenure_N = (jnp.arange(len(known_N)) == state.active) & ~jnp.asarray(late)
    shifted_NR = jnp.concatenate([state.rings_NR[:, 1:], values_N[:, None]], axis=1)
    return state._replace(
        rings_NR=jnp.where(finite_N[:, None], shifted_NR, state.rings_NR),
        ring_lengths_N=jnp.minimum(state.ring_lengths_N + finite_N, state.rings_NR.shape[1]),
        observed=state.observed + (finite_N & of_tenure_N).any(),
        nonfinite_losses_N=state.nonfinite_losses_N + bad_N,
        nonfinite_streaks_N=jnp.where(finite_N, 0, state.nonfinite_streaks_N + (bad_N & of_tenure_N)),
    )


def _count(state: DeviceState, updated: jax.Array) -> DeviceState:
    mine_N = jnp.arange(len(state.trained_at_N)) == state.active
    updates = state.updates + updated
    return state._replace(
        step=state.step + 1,
        tenure=state.tenure + updated,
        updates=updates,
        trained_at_N=jnp.where(mine_N & updated, updates, state.trained_at_N),
        training_steps_N=state.training_steps_N + (mine_N & updated),
        skipped_steps_N=state.skipped_steps_N + (mine_N & ~updated),
    )


def _enter(state: DeviceState, target: jax.Array, switch: jax.Array) -> DeviceState:
    target_N = jnp.arange(len(state.trained_at_N)) == target
    return state._replace(
        active=jnp.where(switch, target, state.active).astype(jnp.int32),
        tenure=jnp.where(switch, 0, state.tenure),
        observed=jnp.where(switch, 0, state.observed),
        entered=state.entered | switch,
        entered_at=jnp.where(switch, state.step, state.entered_at),
        nonfinite_streaks_N=jnp.where(switch & target_N, 0, state.nonfinite_streaks_N),
    )


def _to_device(rule_state: Any, dtype: DTypeLike) -> Any:
    """The rule's state as arrays: floats of the losses' type, integers of 32 bits."""
    integer = jnp.uint32 if isinstance(rule_state, RandomTenureState) else jnp.int32  # its count wraps at 2**32
    kinds: dict[Any, DTypeLike] = {bool: bool, int: integer, float: dtype}
    hints = get_type_hints(type(rule_state))
    types = [(get_args(hints[name]) or (hints[name],))[0] for name in rule_state._fields]
    named = zip(rule_state._fields, rule_state, types, strict=True)
    return type(rule_state)(*(_array(name, value, kinds[kind]) for name, value, kind in named))


def _array(name: str, values: Any, dtype: DTypeLike) -> jax.Array:
    """The numbers of a saved state on the device.

    Raises:
        StateError: One is beyond the type: a host counts in 64 bits.
    """
    given = np.asarray(values)
    with np.errstate(over="ignore"):
        array = given.astype(dtype)
    exact = np.isinf(array) == np.isinf(given) if jnp.issubdtype(dtype, jnp.floating) else array == given
    if not exact.all():
        raise StateError(
            f"the state does not fit on a device: {name} must be of {jnp.dtype(dtype)}, got {quoted(given.tolist())}; "
            "continue with an Alternator on the host"
        )
    placed: jax.Array = jax.device_put(array)  # explicitly, for jax.transfer_guard
    return placed


def _float_type(dtype: DTypeLike | None) -> Any:
    widest = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32  # type: ignore[attr-defined]
    if dtype is None:
        return jnp.dtype(widest)
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.float32), jnp.dtype(widest)):
        raise ConfigurationError(
            f"dtype must be float32, or float64 with jax_enable_x64 on, got {jnp.dtype(dtype)}; switch x64 on, or let "
            "losses be rounded to float32"
        )
    return jnp.dtype(dtype)
