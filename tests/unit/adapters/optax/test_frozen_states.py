"""The states of frozen modules in JAX: on the host and back to the bit, or dropped; what the device holds meanwhile."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

from adapters.optax import Away, FrozenStates, active_value_and_grad, apply_updates
from alternator import ConfigurationError

WIDTH = 8


def names_of(num_blocks):
    return tuple(f"b{number}" for number in range(num_blocks))


class Run:
    """Blocks in a row that take turns of three steps."""

    def __init__(self, frozen_state, num_blocks=3, transform=None, width=WIDTH, **options):
        self.width = width
        self.names = names_of(num_blocks)
        keys = jax.random.split(jax.random.key(0), num_blocks)
        self.params = {
            name: {"kernel": jax.random.normal(key, (width, width)) / 3}
            for name, key in zip(self.names, keys, strict=True)
        }
        labels = {name: name for name in self.names}
        transforms = {name: transform or optax.adamw(0.05) for name in self.names}
        self.states = FrozenStates(transforms, labels, frozen_state=frozen_state, **options)
        gradients = active_value_and_grad(self.loss, labels, self.names, turns=options.get("turns"))
        self.traces = []

        @partial(jax.jit, static_argnames="active", donate_argnums=(0, 1))
        def train_step(params, state, x_BD, active):
            self.traces.append(active)
            _, grads = gradients(params, x_BD, active=active)
            updates, state = self.states.optimizer.update(grads, state, params, active=active)
            return apply_updates(params, updates), state

        self.train_step = train_step
        self.turn_names = tuple(options.get("turns") or self.names)
        self.state = self.states.init(self.params, self.turn_names[0])

    def loss(self, params, x_BD):
        for block in params.values():
            x_BD = jnp.tanh(x_BD @ block["kernel"])
        return jnp.mean((x_BD - 1) ** 2)

    def active(self, step):
        return self.turn_names[step // 3 % len(self.turn_names)]

    def train(self, start, stop, look=lambda run: None):
        for step in range(start, stop):
            if step and self.active(step) != self.active(step - 1):
                self.state = self.states.enter(self.state, self.params, self.active(step))
            x_BD = jax.random.normal(jax.random.key(step), (4, self.width))
            self.params, self.state = self.train_step(self.params, self.state, x_BD, self.active(step))
            look(self)
        return self

    def bytes_on_device(self):
        """Of all matrices but the parameters: moments. There are no others of this width."""
        shape = (self.width, self.width)
        matrices = [each for each in jax.live_arrays() if each.shape == shape]
        there = sum(each.nbytes for each in matrices if each.sharding.memory_kind == "device")
        return there - sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))


def bits(tree):
    return [jax.device_get(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("transform", [optax.adamw(0.05), optax.sgd(0.1, momentum=0.9), optax.adagrad(0.1)])
def test_on_the_host_and_back_to_the_bit(transform):
    kept, moved = (Run(each, transform=transform) for each in ("keep", "offload"))
    for step in range(0, 21, 3):
        for run in (kept, moved):
            run.train(step, step + 3)
        assert bits(moved.params) == bits(kept.params)
        for name, own in moved.states.whole(moved.state).inner_states.items():
            assert isinstance(own, Away) or bits(own) == bits(kept.state.inner_states[name])
        frozen = [name for name in moved.names if name != moved.active(step)]
        assert all(isinstance(moved.state.inner_states[name], Away) for name in frozen)
    assert moved.traces == list(moved.names)  # one compilation per turn, as without


def test_dropped_it_starts_again_as_with_a_new_optimizer():
    run, by_hand = Run("drop"), Run("keep")
    for step in range(0, 18, 3):
        by_hand.state = by_hand.states.optimizer.init(by_hand.params)
        for each in (run, by_hand):
            each.train(step, step + 3)
        assert bits(run.params) == bits(by_hand.params)
    assert run.traces == list(run.names)


SCHEDULES = {
    "schedule": lambda: optax.adam(optax.exponential_decay(0.1, 1, 0.9)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=optax.exponential_decay(0.1, 1, 0.9)),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_continue_where_the_rest_is_dropped(kind):
    run, kept = (Run(each, transform=SCHEDULES[kind](), donate=False).train(0, 11) for each in ("drop", "keep"))
    counts = []
    for each in (run, kept):
        saved = jax.tree.map(jnp.copy, each.states.whole(each.state))
        each.state = each.states.split(saved, each.params, each.active(10))
        own = each.train(11, 12).state.inner_states["b0"]
        schedules = [node for node in jax.tree.leaves(own, is_leaf=is_schedule) if is_schedule(node)]
        counts.append([int(node.count) for node in schedules])
    assert counts == [[6], [6]]
    moments = optax.tree.get_all_with_path(run.state.inner_states["b0"], "count")
    assert {int(count) for _, count in moments} == {3, 6}  # that of Adam's bias correction is new


def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState) or hasattr(node, "hyperparams")


@pytest.mark.parametrize("num_blocks", [4, 10])
@pytest.mark.parametrize("frozen_state", ["offload", "drop"])
def test_the_device_holds_the_state_of_one_block_at_most(frozen_state, num_blocks):
    """Also where a new one is made: nothing else of the kind is there then."""
    adam = optax.adam(0.05)
    held, width = [], 2 * num_blocks + (frozen_state == "drop") + 20

    def init(params):
        held.append(run.bytes_on_device() if run else 0)
        return adam.init(params)

    run = None
    run = Run(frozen_state, num_blocks, optax.GradientTransformation(init, adam.update), width)
    run.train(0, 3 * num_blocks + 4, look=lambda run: held.append(run.bytes_on_device()))
    whole = num_blocks * 2 * width * width * 4
    assert 0 < max(held) <= (1 / num_blocks + 0.1) * whole


def test_each_by_its_name_in_turns_of_several_and_what_always_trains():
    run = Run({"b0": "drop", "b1": "offload"}, turns={"low": ("b0", "b1"), "high": ("b1", "b2"), "top": "b2"})
    run.train(0, 9)
    count = lambda name: int(optax.tree.get(run.states.whole(run.state).inner_states[name], "count"))  # noqa: E731
    assert isinstance(run.states.whole(run.state).inner_states["b0"], Away)
    assert (count("b1"), count("b2")) == (6, 6)
    run.train(9, 12)
    assert (count("b0"), count("b1"), count("b2")) == (3, 9, 6)


@pytest.mark.parametrize("frozen_state", ["offload", "drop"])
def test_saved_and_loaded_and_back_to_a_snapshot(frozen_state):
    whole = Run(frozen_state, donate=False).train(0, 17)
    run = Run(frozen_state, donate=False).train(0, 8)
    saved = jax.tree.map(jnp.copy, (run.params, run.states.whole(run.state)))
    for _ in range(2):
        run.train(8, 15)
        params, states = jax.tree.map(jnp.copy, saved)
        run.params, run.state = params, run.states.split(states, params, run.active(7))
    other = Run(frozen_state)
    params, states = jax.tree.map(jnp.copy, saved)
    other.params, other.state = params, other.states.split(states, params, other.active(7))
    for each in (run, other):
        each.train(8, 17)
        assert bits(each.params) == bits(whole.params)


def test_a_state_that_is_the_parameters_themselves_is_not_deleted():
    run = Run("drop", transform=optax.GradientTransformation(lambda params: params, lambda g, s, p=None: (g, s)))
    run.state = run.states.enter(run.state, run.params, "b1")
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.params))


def test_what_is_refused():
    run = Run("drop")
    with pytest.raises(ConfigurationError, match=r"the state of 'b1', .* must be here, but it has left"):
        run.states.optimizer.update(run.params, run.state, run.params, active="b1")
    with pytest.raises(ConfigurationError, match="make active static"):
        jax.jit(lambda active: run.states.optimizer.update(run.params, run.state, run.params, active=active))(0)
    with pytest.raises(ConfigurationError, match="active must be static"):
        jax.jit(lambda active: run.states.enter(run.state, run.params, active))(0)
    with pytest.raises(ConfigurationError, match="frozen_state must be one of"):
        Run("host")
