"""The core's rules as pure functions of arrays, one per rule. Each decides as its rule does, in the same order.

A rule of your own runs on a device once its function is registered::

    @device_step.register
    def _(rule: MyRule, state, facts):
        ...
        return state, DeviceVerdict(switch, reason_code(Reason.SCHEDULED), value, limit)

It may read the rule's fields as Python values (they are constants of the compiled program), must not branch on arrays,
and returns a state of the same types. Its state is the rule's own NamedTuple with arrays in place of numbers.
"""

from functools import singledispatch
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from adapters.jax.regression import rises, robust_gain, surely_rises
from alternator import (
    Balance,
    ConfigurationError,
    Cycle,
    Gain,
    Patience,
    Payoff,
    Plateau,
    RandomTenure,
    Reason,
    Rule,
    Trend,
)
from alternator.rules._looks import MIN_LOSSES
from alternator.rules._regression import MIN_RISE, SURE_RISE
from alternator.rules.payoff import MAX_DOUBLINGS

REASONS: Final[tuple[str, ...]] = tuple(code for name, code in vars(Reason).items() if name.isupper())
"""The codes of `Reason`, by the integer that stands for each on a device."""
_FOREVER = 2**31 - 1


class DeviceFacts(NamedTuple):
    """What a rule reads: `alternator.Facts` as arrays.

    Attributes:
        step: Steps counted so far, this one included.
        active: Index of the module that trained in this step.
        tenure: Updated steps of the active module in this tenure.
        entered: True at the first decision of a tenure.
        updated: False when the update was skipped.
        observed: Finite losses of the active module that were computed in this tenure and have been recorded.
        updates: Updated steps counted so far.
        trained_at_N: Per module, the value of ``updates`` when it last trained.
        rings_NR: Per module, its newest finite losses; the newest is the last.
        ring_lengths_N: The number of these that are losses; the entries before them are undefined.
    """

    step: jax.Array
    active: jax.Array
    tenure: jax.Array
    entered: jax.Array
    updated: jax.Array
    observed: jax.Array
    updates: jax.Array
    trained_at_N: jax.Array
    rings_NR: jax.Array
    ring_lengths_N: jax.Array

    @property
    def num_modules(self) -> int:
        """The number of modules that alternate."""
        return self.trained_at_N.shape[0]


class DeviceVerdict(NamedTuple):
    """What a rule decides: `alternator.Verdict` as arrays.

    Attributes:
        switch: Whether another module takes over.
        reason: An index of `REASONS`.
        value: The number that was compared.
        limit: The number that it was compared with.
        plateaued: Whether it switches because the active module's loss has stopped falling; a rise is no plateau.
        target: Index of the module to switch to; -1 is the following one.
    """

    switch: jax.Array
    reason: jax.Array
    value: jax.Array
    limit: jax.Array
    plateaued: jax.Array | bool = False
    target: jax.Array | int = -1


def reason_code(reason: str) -> int:
    """The integer that stands for a reason on a device.

    Raises:
        ConfigurationError: The reason is not one of `Reason`: a string of your own has no number.
    """
    if reason not in REASONS:
        raise ConfigurationError(f"a reason on the device must be a code of Reason, got {reason!r}")
    return REASONS.index(reason)


@singledispatch
def device_step(rule: Rule, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    """What ``rule.step(state, facts)`` does, on arrays.

    Raises:
        ConfigurationError: No function is registered for the rule.
    """
    raise ConfigurationError(
        f"a rule on the device needs a device version, but {type(rule).__name__} has none; register one with "
        "device_step.register"
    )


@device_step.register
def _cycle(rule: Cycle, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    steps = jnp.asarray(rule.steps, jnp.int32)
    limit = steps if steps.ndim == 0 else steps[facts.active]
    switch = facts.tenure >= limit
    return state, DeviceVerdict(switch, choose(Reason.MIN_STEPS, (switch, Reason.SCHEDULED)), facts.tenure, limit)


@device_step.register
def _balance(rule: Balance, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    levels, modules = range(-rule.max_level, rule.max_level + 1), range(facts.num_modules)
    lengths_LN = jnp.asarray([[rule.length(index, level) for index in modules] for level in levels], jnp.int32)
    steps = lengths_LN[state.level + rule.max_level, facts.active]
    over = facts.tenure >= steps
    signal, known = _newest_mean(facts, rule.of, rule.window)
    judges = over & (facts.active == rule.above) & known & jnp.isfinite(signal)
    above, below = judges & (signal > rule.high), judges & (signal < rule.low)
    level = (state.level - above + below).clip(-rule.max_level, rule.max_level).astype(state.level.dtype)
    limit = jnp.where(above, rule.high, jnp.where(below, rule.low, steps))
    return state._replace(level=level), DeviceVerdict(
        switch=over,
        reason=choose(Reason.MIN_STEPS, (above, Reason.ABOVE), (below, Reason.BELOW), (over, Reason.SCHEDULED)),
        value=jnp.where(above | below, signal, facts.tenure),
        limit=limit,
    )


def _newest_mean(facts: DeviceFacts, index: int, window: int) -> tuple[jax.Array, jax.Array]:
    """The mean of a module's newest values, and whether there are any."""
    newest_w = facts.rings_NR[index][-window:]
    known_w = jnp.arange(len(newest_w)) >= len(newest_w) - facts.ring_lengths_N[index]
    count = known_w.sum()
    return jnp.where(known_w, newest_w, 0).sum() / jnp.maximum(count, 1), count > 0


@device_step.register
def _plateau(rule: Plateau, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    ring_R, length = facts.rings_NR[facts.active], facts.ring_lengths_N[facts.active]
    newest, base = ring_R[-1], ring_R[rule.window // 2]
    quotient = jnp.abs(newest - base) / jnp.where(base == 0, 1, jnp.abs(base))
    rate = jnp.where(base == 0, jnp.where(newest == 0, 0, jnp.inf), quotient)
    early, few = facts.tenure < rule.min_steps, length < rule.window
    steady = rate < rule.threshold
    reason = choose(
        Reason.CHANGING,
        (early, Reason.MIN_STEPS),
        (few, Reason.FEW_LOSSES),
        (steady, Reason.STEADY),
        (newest > base, Reason.RISING_CHANGE),
    )
    value = jnp.where(early, facts.tenure, jnp.where(few, length, rate))
    limit = jnp.where(early, rule.min_steps, jnp.where(few, rule.window, rule.threshold))
    switch = ~early & ~few & steady
    return state, DeviceVerdict(switch, reason, value, limit, switch)


@device_step.register
def _random_tenure(rule: RandomTenure, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    early = facts.tenure < rule.min_steps
    draws = ~early & facts.updated
    draw = jnp.where(draws, hash32(rule.seed, state.draws), jnp.uint32(0xFFFFFFFF))
    switch = draws & (draw <= jnp.uint32(rule.limit))
    reason = choose(Reason.DRAW_HOLD, (early, Reason.MIN_STEPS), (switch, Reason.DRAW_SWITCH))
    value = jnp.where(early, facts.tenure.astype(jnp.uint32), draw)
    limit = jnp.where(early, jnp.uint32(rule.min_steps), jnp.uint32(rule.limit))
    return state._replace(draws=state.draws + draws), DeviceVerdict(switch, reason, value, limit)


@device_step.register
def _trend(rule: Trend, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    entered = type(state)(MIN_LOSSES, 0, 0, 0)
    state = jax.tree.map(lambda new, old: jnp.where(facts.entered, new, old).astype(old.dtype), entered, state)
    early = facts.tenure < rule.min_steps
    looks = ~early & (facts.observed >= state.next_look)
    unseen = DeviceVerdict(*map(jnp.asarray, (False, jnp.int32(0), state.value, state.value, False)))
    state, seen = jax.lax.cond(looks, lambda: _look(rule, state, facts), lambda: (state, unseen))
    longest = rule.max_steps if rule.max_steps is not None else _FOREVER
    late, few = ~early & (facts.tenure >= longest), state.hold == 0
    holds = (
        (state.hold == 1, Reason.IMPROVING),
        (state.hold == 2, Reason.UNSURE),
        (state.hold == 4, Reason.RISING_UNCONFIRMED),
    )
    reason = choose(
        Reason.UNCONFIRMED_PLATEAU,
        (early, Reason.MIN_STEPS),
        (late, Reason.MAX_STEPS),
        (few, Reason.FEW_LOSSES),
        *holds,
    )
    value = jnp.where(early | late, facts.tenure, jnp.where(few, facts.observed, state.value))
    bound = jnp.asarray([rule.min_gain, rule.min_gain, rule.min_gain, rule.confirmations, -rule.min_gain])[state.hold]
    limit = jnp.where(early, rule.min_steps, jnp.where(late, longest, jnp.where(few, MIN_LOSSES, bound)))
    otherwise = DeviceVerdict(late, reason, value, limit)
    return state, DeviceVerdict(*(jnp.where(seen.switch, a, b) for a, b in zip(seen, otherwise, strict=True)))


def _look(rule: Trend, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    """Fit the line: the new state and a verdict, which counts only if it switches."""
    ring_R = facts.rings_NR[facts.active]
    count = jnp.minimum(facts.observed, rule.window)
    scale = rule.horizon * facts.observed.astype(ring_R.dtype) / facts.tenure
    recent = jnp.minimum(count, rule.window // 4)
    rate, stderr = robust_gain(ring_R, recent)
    diverging = rises(ring_R, recent) & (rate + rule.rise_z * stderr < 0)
    rise, rise_limit = rate * scale, -rule.rise_z * stderr * scale
    rate, stderr = robust_gain(ring_R, count)
    gain, bound = rate * scale, (rate + rule.z * rule.window / count * stderr) * scale
    floor = -jnp.maximum(rule.min_gain, SURE_RISE * stderr * scale)
    ends, improving, rising = ~diverging & (bound < rule.min_gain), gain >= rule.min_gain, gain <= floor
    confirmations = jnp.where(ends, state.confirmations + 1, 0)
    confirmed = ends & (confirmations >= rule.confirmations)
    switch = diverging | confirmed
    held = type(state)(
        next_look=facts.observed + jnp.maximum(8, count // 8),
        confirmations=confirmations,
        hold=jnp.where(ends, jnp.where(rising, 4, 3), jnp.where(improving, 1, 2)),
        value=jnp.where(ends & ~rising, confirmations, jnp.where(improving | ends, gain, bound)),
    )
    new_state = jax.tree.map(lambda old, new: jnp.where(switch, old, new).astype(old.dtype), state, held)
    reason = choose(Reason.PLATEAU, (diverging, Reason.DIVERGING), (rising, Reason.RISING))
    value = jnp.where(diverging, rise, jnp.where(rising, gain, bound))
    limit = jnp.where(diverging, rise_limit, jnp.where(rising, floor, rule.min_gain))
    return new_state, DeviceVerdict(switch, reason, value, limit, confirmed & ~rising)


@device_step.register
def _patience(rule: Patience, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    mine_N = jnp.arange(facts.num_modules) == facts.active
    forgets_N = mine_N & facts.entered & rule.restart
    state = state._replace(
        seen=jnp.where(facts.entered, 0, state.seen),
        bad=jnp.where(facts.entered, 0, state.bad),
        best=jnp.where(forgets_N, jnp.inf, state.best),
        smoothed=jnp.where(forgets_N, jnp.inf, state.smoothed),
    )
    state, bad, is_new = _judge(rule, state, facts)
    out = is_new & (bad > rule.patience)
    longest = _FOREVER if rule.max_steps is None else rule.max_steps
    late, cooling = ~out & (facts.tenure >= longest), state.cooldown[facts.active]
    state = state._replace(bad=jnp.where(out, 0, bad), cooldown=jnp.where(out & mine_N, rule.cooldown, state.cooldown))
    newest = jnp.minimum(jnp.minimum(jnp.maximum(bad, MIN_RISE), facts.observed), rule.ring_size)
    rising = out & surely_rises(facts.rings_NR[facts.active] * (1 if rule.mode == "min" else -1), newest)
    cases = (
        (rising, Reason.RISING_OUT_OF_PATIENCE),
        (out, Reason.OUT_OF_PATIENCE),
        (late, Reason.MAX_STEPS),
        (cooling > 0, Reason.COOLDOWN),
    )
    waits = ~out & (cooling > 0)
    value = jnp.where(late, facts.tenure, jnp.where(waits, cooling, bad))
    limit = jnp.where(late, longest, jnp.where(waits, rule.cooldown, rule.patience))
    return state, DeviceVerdict(out | late, choose(Reason.WAITING, *cases), value, limit, out & ~rising)


def _judge(rule: Patience, state: Any, facts: DeviceFacts) -> tuple[Any, jax.Array, jax.Array]:
    """The detector's steps for the new losses, up to one that switches; its bad losses, and whether any is new."""
    ring_R, active = facts.rings_NR[facts.active], facts.active
    size = ring_R.shape[0]
    new = jnp.minimum(facts.observed - state.seen, size)

    def judge(carry: Any) -> Any:
        index, bad, best, smoothed, cooldown = carry
        value = ring_R[size - new + index] * (1 if rule.mode == "min" else -1)
        averaged = rule.smoothing * smoothed + (1 - rule.smoothing) * value
        value = jnp.where((smoothed == jnp.inf) | (rule.smoothing == 0), value, averaged)
        better, cools = value < best * rule.factor - rule.margin, cooldown > 0
        bad = jnp.where(better | cools, 0, bad + 1)
        return index + 1, bad, jnp.where(better, value, best), value, cooldown - cools

    own = (state.best[active], state.smoothed[active], state.cooldown[active])
    carry: Any = (jnp.zeros_like(new), state.bad, *own)
    _, bad, best, smoothed, cooldown = jax.lax.while_loop(
        lambda carry: (carry[0] < new) & (carry[1] <= rule.patience), judge, carry
    )
    if rule.smoothing == 0:
        smoothed = own[1]
    state = state._replace(
        seen=facts.observed,
        best=state.best.at[active].set(best),
        smoothed=state.smoothed.at[active].set(smoothed),
        cooldown=state.cooldown.at[active].set(cooldown),
    )
    return state, bad, new > 0


@device_step.register
def _gain(rule: Gain, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    others = (facts.active + 1 + jnp.arange(facts.num_modules - 1)) % facts.num_modules
    idle = (facts.updates - facts.trained_at_N)[others]
    stale, longest = others[idle.argmax()], idle.max()
    overdue, early = longest >= rule.max_wait, facts.tenure < rule.min_steps
    state = state._replace(
        next_look=jnp.where(facts.entered, MIN_LOSSES, state.next_look),
        rival=jnp.where(facts.entered, jnp.inf, state.rival),
    )
    looks = ~early & ~overdue & (facts.observed >= state.next_look)
    few = ~looks & (state.next_look == MIN_LOSSES)
    state, target = jax.lax.cond(
        looks, lambda: _measure(rule, state, facts, others), lambda: (state, jnp.asarray(facts.active))
    )
    less = target != facts.active
    cases = (early, Reason.MIN_STEPS), (overdue, Reason.STALE), (few, Reason.FEW_LOSSES), (less, Reason.LESS_GAIN)
    own = state.scores[facts.active]
    value = jnp.where(early, facts.tenure, jnp.where(overdue, longest, jnp.where(few, facts.observed, own)))
    bound = jnp.where(few, MIN_LOSSES, state.rival)
    limit = jnp.where(early, rule.min_steps, jnp.where(overdue, rule.max_wait, bound))
    target = jnp.where(overdue, stale, jnp.where(less, target, -1))
    return state, DeviceVerdict(
        ~early & (overdue | less), choose(Reason.BEST_GAIN, *cases), value, limit, False, target
    )


def _measure(rule: Gain, state: Any, facts: DeviceFacts, others: jax.Array) -> tuple[Any, jax.Array]:
    """The active module's score measured again, and who trains next: the best other if it is better."""
    ring_R, active = facts.rings_NR[facts.active], facts.active
    rate, _ = robust_gain(ring_R, jnp.minimum(facts.observed, rule.window))
    cost = jnp.asarray(rule.step_costs or (1.0,) * facts.num_modules, ring_R.dtype)[active]
    scores = state.scores.at[active].set(rate * facts.observed.astype(ring_R.dtype) / facts.tenure / cost)
    rival = others[scores[others].argmax()]
    next_look = (facts.observed + max(rule.min_steps, MIN_LOSSES)).astype(state.next_look.dtype)
    measured = state._replace(next_look=next_look, rival=scores[rival], scores=scores)
    return measured, jnp.where(scores[rival] > scores[active], rival, active)


@device_step.register
def _payoff(rule: Payoff, state: Any, facts: DeviceFacts) -> tuple[Any, DeviceVerdict]:
    joint, costs_N = facts.active == 0, jnp.asarray(rule.costs, facts.rings_NR.dtype)
    next_look = jnp.where(facts.entered, rule.groups, state.next_look)
    waits = jnp.asarray([rule.retry_delay(rule.confirmations + doublings) for doublings in range(MAX_DOUBLINGS + 1)])
    wait = waits[jnp.clip(state.confirmations[facts.active] - rule.confirmations, 0, MAX_DOUBLINGS)]
    early, late = facts.tenure < rule.min_steps, ~joint & (facts.tenure >= wait)
    few, unmeasured = facts.observed < next_look, facts.observed < rule.groups
    looks = ~early & ~late & ~few
    most = facts.ring_lengths_N[1:].max()
    alone = joint & (most < rule.groups)
    left_out_N, scores_N = _left_out(rule, facts, costs_N)
    counts_N = jnp.where(joint, jnp.where(scores_N < -rule.z, state.confirmations + 1, 0), state.confirmations)
    confirmed_N = counts_N >= rule.confirmations
    idle = confirmed_N.any()
    least = jnp.where(confirmed_N | ~idle, scores_N, jnp.inf).argmin()
    paid = _finite(facts.rings_NR[facts.active].mean()) / costs_N[facts.active]
    less = jnp.where(paid < state.left_out[facts.active], state.confirmations[0] + 1, 0)
    returns = less >= rule.confirmations
    counts_N = jnp.where(joint, counts_N, jnp.where(returns, 0, counts_N.at[0].set(less)))
    state = state._replace(
        next_look=jnp.where(looks, facts.observed + rule.groups, next_look).astype(state.next_look.dtype),
        left_out=jnp.where(looks & joint, left_out_N, state.left_out),
        confirmations=jnp.where(looks, counts_N, state.confirmations).astype(state.confirmations.dtype),
    )
    of_joint = choose(Reason.PAYS, (idle, Reason.IDLE), (counts_N[least] > 0, Reason.UNCONFIRMED))
    of_smaller = choose(Reason.BEST_GAIN, (returns, Reason.LESS_GAIN), (less > 0, Reason.LESS_UNCONFIRMED))
    judged = jnp.where(alone, reason_code(Reason.UNMEASURED), jnp.where(joint, of_joint, of_smaller))
    cases = (early, Reason.MIN_STEPS), (unmeasured, Reason.UNMEASURED), (late, Reason.STALE)
    reason = jnp.where(looks, judged, choose(Reason.FEW_LOSSES, *cases))
    stale = late & ~unmeasured
    seen, bound = jnp.where(early | stale, facts.tenure, facts.observed), jnp.where(stale, wait, next_look)
    value = jnp.where(looks, jnp.where(joint, jnp.where(alone, most, scores_N[least]), paid), seen)
    compared = jnp.where(joint, jnp.where(alone, rule.groups, -rule.z), state.left_out[facts.active])
    limit = jnp.where(looks, compared, jnp.where(early, rule.min_steps, jnp.where(unmeasured, rule.groups, bound)))
    switch = ~early & (late | (looks & jnp.where(joint, idle, returns)))
    target = jnp.where(switch, jnp.where(joint, least, 0), -1)
    return state, DeviceVerdict(switch, reason, value, limit, False, target)


def _left_out(rule: Payoff, facts: DeviceFacts, costs_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per turn, what it leaves out pays per unit of cost, and how many standard errors that is above enough."""
    saved_N = jnp.asarray(rule.saved, costs_N.dtype)
    paid_NR = facts.rings_NR[0] - facts.rings_NR
    enough_NR = paid_NR - rule.share * saved_N[:, None] * facts.rings_NR[0] / costs_N[0]
    scores_N = standard_scores(enough_NR)
    known_N = (facts.ring_lengths_N >= rule.groups) & (jnp.arange(len(costs_N)) > 0)
    left_out_N = jnp.where(known_N, _finite(paid_NR.mean(1)) / jnp.where(saved_N > 0, saved_N, costs_N[0]), 0)
    return left_out_N, jnp.where(known_N, scores_N, jnp.inf)


def standard_scores(differences_CG: jax.Array) -> jax.Array:
    """`alternator.rules._paired.standard_score` of each row."""
    mean_C, spread_C = differences_CG.mean(1), differences_CG.var(1, ddof=1) / differences_CG.shape[1]
    equal_C = jnp.where(mean_C == 0, 0, jnp.where(mean_C < 0, -jnp.inf, jnp.inf))
    scores_C = jnp.where(spread_C > 0, mean_C / jnp.sqrt(jnp.where(spread_C > 0, spread_C, 1)), equal_C)
    return jnp.where(jnp.isfinite(spread_C), scores_C, jnp.inf)


def _finite(values: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(values), values, 0)


def hash32(seed: int, count: jax.Array) -> jax.Array:
    """`alternator.rules.random_tenure.hash32` for a uint32 count."""
    return _mix(_mix(jnp.uint32(seed) ^ jnp.uint32(0x9E3779B9)) + count)


def _mix(value: jax.Array) -> jax.Array:
    value = (value ^ value >> 16) * jnp.uint32(0x85EBCA6B)
    value = (value ^ value >> 13) * jnp.uint32(0xC2B2AE35)
    return value ^ value >> 16


def choose(otherwise: str, *cases: tuple[jax.Array, str]) -> jax.Array:
    """The code of the first reason whose condition holds, or of the one otherwise."""
    code = jnp.asarray(reason_code(otherwise), jnp.int32)
    for condition, reason in reversed(cases):
        code = jnp.where(condition, reason_code(reason), code)
    return code
