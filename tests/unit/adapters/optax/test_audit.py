"""Audit: passes what keeps the contract, and finds every naive way to freeze; without copies of what it watches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapters.contract import FreezeError
from adapters.optax import active_value_and_grad, alternating, apply_updates, labels_of
from adapters.optax.audit import Audit
from alternator import ConfigurationError, UnknownModuleError

MODULES = ("encoder", "head")
LABELS = labels_of({"encoder": "*", "head": "head", "frozen": "ids"})


def make():
    return {"trunk": {"w": jnp.arange(1.0, 4.0)}, "head": jnp.array([1e-40, -0.0, 2.0]), "ids": jnp.arange(3)}


def loss(params):
    return ((params["trunk"]["w"] * params["head"]).sum() - 1.0) ** 2


def by_label(values):
    return {"trunk": {"w": values["encoder"]}, "head": values["head"], "ids": values.get("frozen", False)}


def numbers(tree):
    return {name: part for name, part in tree.items() if name != "ids"}


class Alternating:
    """The adapter."""

    def __init__(self):
        self.tx = alternating({name: optax.adamw(0.1) for name in MODULES}, LABELS)

    init = property(lambda self: self.tx.init)

    def step(self, params, state, active):
        _, grads = active_value_and_grad(loss, LABELS, MODULES)(params, active=active)
        updates, state = self.tx.update(grads, state, params, active=active)
        return apply_updates(params, updates), state


class ByHand:
    """Correct, written by hand: a dict of states, only the active one's is updated."""

    tx = optax.adamw(0.1)

    def init(self, params):
        return {"encoder": self.tx.init(params["trunk"]), "head": self.tx.init(params["head"])}

    def step(self, params, state, active):
        key = {"encoder": "trunk", "head": "head"}[active]
        gradient = jax.grad(lambda part: loss({**params, key: part}))(params[key])
        updates, moved = self.tx.update(gradient, state[active], params[key])
        return {**params, key: optax.apply_updates(params[key], updates)}, {**state, active: moved}


class PlainAdd(Alternating):
    """Adds zero updates, which turns subnormal numbers into zeros."""

    def step(self, params, state, active):
        _, grads = active_value_and_grad(loss, LABELS, MODULES)(params, active=active)
        updates, state = self.tx.update(grads, state, params, active=active)
        added = jax.jit(optax.apply_updates)(numbers(params), numbers(updates))
        return {**added, "ids": params["ids"]}, state


class Chain:
    """Zero updates after AdamW: moments move."""

    def __init__(self):
        self.tx = optax.adamw(0.1)

    def init(self, params):
        return self.tx.init(numbers(params))

    def step(self, params, state, active):
        mask = numbers(by_label({name: name != active for name in MODULES}))
        zero = optax.masked(optax.set_to_zero(), mask)
        own = numbers(params)
        updates, state = self.tx.update(jax.grad(loss)(own), state, own)
        updates, _ = zero.update(updates, zero.init(own))
        return {**apply_updates(own, updates), "ids": params["ids"]}, state


class MultiTransform:
    """Zero gradients for multi_transform: counts advance, moments and weights decay."""

    def __init__(self):
        self.tx = optax.multi_transform(
            {name: optax.adamw(0.1) for name in MODULES}, numbers(by_label({n: n for n in MODULES}))
        )

    def init(self, params):
        return self.tx.init(numbers(params))

    def step(self, params, state, active):
        own = numbers(params)
        grads = jax.grad(loss)(own)
        kept = numbers(by_label({name: name == active for name in MODULES}))
        grads = jax.tree.map(lambda keep, grad: grad if keep else jnp.zeros_like(grad), kept, grads)
        updates, state = self.tx.update(grads, state, own)
        return {**optax.apply_updates(own, updates), "ids": params["ids"]}, state


class Unlabelled(Alternating):
    """Moves what is labelled frozen."""

    def step(self, params, state, active):
        params, state = super().step(params, state, active)
        return {**params, "ids": params["ids"] + 1}, state


def run(loop, num_steps=3, active="head"):
    params = make()
    state = loop.init(params)
    audit = Audit(LABELS, MODULES)
    for _ in range(num_steps):
        audit.frozen(params, state, active=active)
        params, state = loop.step(params, state, active)
        audit.check(params, state)
    return audit


@pytest.mark.parametrize("loop", [Alternating, ByHand])
@pytest.mark.parametrize("active", MODULES)
def test_loops_that_keep_the_contract_pass(loop, active):
    audit = run(loop(), active=active)
    assert audit.num_checks == 3
    assert audit.num_bytes > 3 * 2 * 12


@pytest.mark.parametrize(
    ("loop", "active", "found"),
    [
        (PlainAdd, "encoder", r"'params\.head' of 'head'"),
        (Chain, "head", r"'opt_state\.0\.mu\.trunk\.w', 'opt_state\.0\.nu\.trunk\.w' of 'encoder'"),
        (MultiTransform, "head", r"'params\.trunk\.w', 'opt_state\.inner_states\.encoder\.inner_state\.0\.count'"),
        (Unlabelled, "head", r"'params\.ids' of 'frozen'"),
    ],
)
def test_naive_loops_are_found(loop, active, found):
    with pytest.raises(FreezeError, match=rf"a frozen module must keep every bit, but {found}.* in step 1; leave its"):
        run(loop(), active=active)


def test_many_steps_with_donated_buffers_are_watched_at_once():
    loop = Alternating()
    step = jax.jit(partial(loop.step, active="head"), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.array, make())
    state = loop.init(params)
    audit = Audit(LABELS, MODULES)
    audit.frozen(params, state, active=1)
    for _ in range(5):
        params, state = step(params, state)
    audit.check(params, state)
    assert audit.num_checks == 1


def test_turns_and_statistics():
    audit = Audit(LABELS, MODULES, turns={"both": MODULES, "head": "head"})
    stats = {"trunk": {"mean": jnp.zeros(2)}, "head": {"mean": jnp.zeros(2)}}
    moved = jax.tree.map(lambda mean: mean + 1, stats)
    audit.frozen(make(), active="both", batch_stats=stats)
    audit.check(make(), batch_stats=moved)
    audit.frozen(make(), active="head", batch_stats=stats)
    audit.check(make(), batch_stats={**stats, "head": moved["head"]})
    audit.frozen(make(), active="head", batch_stats=stats)
    with pytest.raises(FreezeError, match=r"'batch_stats\.trunk\.mean' of 'encoder' changed in step 3"):
        audit.check(make(), batch_stats=moved)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.astype(jnp.bfloat16),
        lambda w: w[None],
        lambda w: -w,
        lambda w: w.view(jnp.int32).astype(jnp.int32).view(jnp.float32) * np.float32(1 + 1e-7),
    ],
    ids=["type", "shape", "sign of zero", "one bit"],
)
def test_every_kind_of_change_is_found(change):
    params = make()
    params["trunk"]["w"] = jnp.array([0.0, 1.0])
    audit = Audit(LABELS, MODULES)
    audit.frozen(params, active="head")
    with pytest.raises(FreezeError, match=r"'params\.trunk\.w'"):
        audit.check({**params, "trunk": {"w": change(params["trunk"]["w"])}})


def test_state_that_appears_or_is_gone_is_found():
    audit = Audit(LABELS, MODULES)
    audit.frozen(make(), {"encoder": jnp.zeros(2)}, active="head")
    with pytest.raises(FreezeError, match=r"'opt_state\.encoder' of 'encoder'"):
        audit.check(make(), {})


def test_misuse_has_words():
    audit = Audit(LABELS, MODULES)
    with pytest.raises(ConfigurationError, match=r"check must follow frozen\(\.\.\., active="):
        audit.check(make())
    with pytest.raises(UnknownModuleError):
        audit.frozen(make(), active="haed")
    with pytest.raises(ConfigurationError, match="call it outside of jit"):
        jax.jit(lambda index: audit.frozen(make(), active=index))(jnp.int32(0))
