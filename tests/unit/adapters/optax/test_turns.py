"""Labels, turns, the always group, accumulation, and the errors of adapters.optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from adapters.jax import DeviceAlternator
from adapters.optax import ALWAYS, FROZEN, active_value_and_grad, alternating, apply_updates, in_force
from alternator import Alternator, ConfigurationError, Cycle, Payoff, UnknownModuleError

PARAMS = {"a": {"w": np.zeros(2, np.float32)}, "b": {"w": np.zeros(2, np.float32)}, "mix": np.zeros(2, np.float32)}
LABELS = {"a": "a", "b": "b", "mix": ALWAYS}
TRANSFORMS = {"a": optax.sgd(1.0), "b": optax.sgd(1.0)}
TURNS = {"a": "a", "b": ("b",), "both": ("a", "b")}
ONES = jax.tree.map(np.ones_like, PARAMS)


def moved(optimizer, active, *, jit=False):
    """The names of what one step with gradients of one moves."""
    update = jax.jit(optimizer.update) if jit else optimizer.update
    updates, _ = update(ONES, optimizer.init(PARAMS), PARAMS, active=active)
    new = apply_updates(PARAMS, updates)
    return {name for name in PARAMS if any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(new[name]))}


def test_turns_and_always():
    optimizer = alternating(TRANSFORMS, LABELS, turns=TURNS, always=optax.sgd(1.0))
    for index, (name, expected) in enumerate({"a": {"a"}, "b": {"b"}, "both": {"a", "b"}}.items()):
        assert moved(optimizer, name) == moved(optimizer, index) == {*expected, "mix"}
        assert moved(optimizer, jnp.int32(index), jit=True) == {*expected, "mix"}


def test_labels_may_be_a_function_and_a_prefix():
    by_path = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: str(path[0].key), params)  # noqa: E731
    labels = alternating(TRANSFORMS | {"mix": optax.sgd(1.0)}, by_path)
    assert moved(labels, "mix") == {"mix"}


@pytest.mark.parametrize("active", [3, -1, "c", 1.0, True, None, np.bool_(True)])
def test_an_unknown_static_active_names_the_choices(active):
    optimizer = alternating(TRANSFORMS, LABELS, turns=TURNS, always=optax.sgd(1.0))
    with pytest.raises(UnknownModuleError, match=r"unknown module .*; expected one of \('a', 'b', 'both'\)"):
        optimizer.update(ONES, optimizer.init(PARAMS), PARAMS, active=active)


@pytest.mark.parametrize("active", [np.int64(1), jnp.int32(1), np.array(1)])
def test_a_concrete_integer_is_static(active):
    assert moved(alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0)), active) == {"b", "mix"}


@pytest.mark.parametrize("active", [-1, 3, 1000])
def test_a_traced_active_out_of_range_trains_nothing(active):
    optimizer = alternating(TRANSFORMS, LABELS, turns=TURNS, always=optax.sgd(1.0))
    assert moved(optimizer, jnp.int32(active), jit=True) == set()
    with pytest.raises(UnknownModuleError, match=f"unknown module {active}"):
        moved(optimizer, active)


def test_a_traced_active_out_of_range_is_an_error_under_checkify():
    optimizer = alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0))
    state = optimizer.init(PARAMS)
    checked = checkify.checkify(jax.jit(lambda active: optimizer.update(ONES, state, PARAMS, active=active)))
    error, _ = checked(jnp.int32(2))
    with pytest.raises(checkify.JaxRuntimeError, match=r"active must be an index of \('a', 'b'\), got 2"):
        error.throw()
    checked(jnp.int32(1))[0].throw()


@pytest.mark.parametrize("active", [jnp.float32(1), jnp.zeros(1, jnp.int32), jnp.array(True)])
def test_a_traced_active_that_is_no_integer_scalar(active):
    with pytest.raises(ConfigurationError, match="a traced active must be an integer scalar, got"):
        moved(alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0)), active, jit=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": "a", "b": "b"}, r"name the module of every parameter, got none for \"params\['mix'\]\""),
        ({"a": "a", "b": {"w": None}, "mix": ALWAYS}, r"got none for \"params\['b'\]\['w'\]\""),
        ({"a": "a", "b": "b", "mix": ALWAYS, "more": "a"}, "in a prefix of the parameters' tree"),
        ({"a": "a", "b": "c", "mix": ALWAYS}, r"one of \('a', 'b', 'always', 'frozen'\), got 'c' for params\['b'\]"),
        ({"a": "a", "b": "a", "mix": ALWAYS}, "no parameter is labelled 'b'"),
        ({"a": "a", "b": "b", "mix": "a"}, "no parameter is labelled 'always'"),
        ({"a": "a", "b": "b", "mix": 3}, "got 3 for"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(ConfigurationError, match=message):
        alternating(TRANSFORMS, labels, always=optax.sgd(1.0)).init(PARAMS)


def test_a_label_without_an_optimizer_for_the_always_group():
    with pytest.raises(ConfigurationError, match="got 'always'"):
        alternating(TRANSFORMS, LABELS).init(PARAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"turns": {"a": "a", "both": ("a", "x")}}, "unknown module 'x'"),
        ({"turns": {"a": "a", "b": ()}}, "a turn must name one or more different modules"),
        ({"turns": {"a": "a"}}, "every module must train in some turn"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, got 0"),
        ({"accumulate": True}, "accumulate must be an integer of at least 1, got True"),
        ({"transforms": {}}, "there must be a module to train"),
        ({"transforms": {"a": optax.sgd(1.0), "frozen": optax.sgd(1.0)}}, "'frozen' is reserved"),
        ({"transforms": {"a": optax.sgd(1.0), "always": optax.sgd(1.0)}}, "'always' is reserved"),
    ],
)
def test_wrong_turns(arguments, message):
    with pytest.raises((ConfigurationError, UnknownModuleError), match=message):
        alternating(**{"transforms": TRANSFORMS, "labels": LABELS} | arguments)


def test_gradients_of_another_structure():
    optimizer = alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0))
    with pytest.raises(ConfigurationError, match="gradients must have the structure of the parameters"):
        optimizer.update({"a": ONES["a"]}, optimizer.init(PARAMS), PARAMS, active="a")


def test_what_the_user_froze_stays_frozen_in_every_turn():
    optimizer = alternating(TRANSFORMS, {**LABELS, "mix": FROZEN}, turns=TURNS)
    assert moved(optimizer, "both") == {"a", "b"}
    gradients = active_value_and_grad(
        lambda p: sum(leaf.sum() for leaf in jax.tree.leaves(p)), {**LABELS, "mix": FROZEN}, ("a", "b"), turns=TURNS
    )
    _, grads = gradients(PARAMS, active="both")
    assert [float(leaf.sum()) for leaf in jax.tree.leaves(grads)] == [2.0, 2.0, 0.0]


def accumulating(schedule, every=2):
    """The parameters (first weights of a, b, mix) after each micro-step with gradient 1, 2, 3, ..."""
    optimizer = alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0), accumulate=every)
    step = jax.jit(optimizer.update)
    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    for micro, active in enumerate(schedule, start=1):
        seen_active = int(in_force(state, jnp.int32(active)))
        gradients = jax.tree.map(lambda leaf, m=micro: np.full_like(leaf, m), PARAMS)
        updates, state = step(gradients, state, params, active=jnp.int32(active))
        params = apply_updates(params, updates)
        seen.append((seen_active, *(float(leaf.ravel()[0]) for leaf in jax.tree.leaves(params))))
    return seen, state


def test_accumulation_updates_with_the_mean():
    seen, _ = accumulating([0, 0, 1, 1])
    assert seen == [(0, 0, 0, 0), (0, -1.5, 0, -1.5), (1, -1.5, 0, -1.5), (1, -1.5, -3.5, -5.0)]


def test_a_change_of_active_waits_for_the_boundary():
    seen, state = accumulating([0, 1, 1, 0, 0])
    assert [active for active, *_ in seen] == [0, 0, 1, 1, 0]
    assert seen[:4] == accumulating([0, 0, 1, 1])[0]
    micro_step, active, gradients = state.accumulation
    assert (int(micro_step), int(active)) == (1, 0)
    assert [leaf.ravel()[0] for leaf in jax.tree.leaves(gradients)] == [5.0, 0.0, 5.0]


@pytest.mark.parametrize("active", ["a", 0], ids=["name", "index"])
def test_accumulation_with_a_static_active(active):
    optimizer = alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0), accumulate=2)
    params, state = PARAMS, optimizer.init(PARAMS)
    for micro, chosen in enumerate((active, "b")):  # the change to b waits
        gradients = jax.tree.map(lambda leaf, m=micro: np.full_like(leaf, m + 1), PARAMS)
        updates, state = optimizer.update(gradients, state, params, active=chosen)
        params = apply_updates(params, updates)
    assert [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(params)] == [-1.5, 0, -1.5]


def test_frozen_state_stays_through_an_accumulation():
    transforms = {name: optax.adamw(0.1) for name in ("a", "b")}
    optimizer = alternating(transforms, {"a": "a", "b": "b", "mix": FROZEN}, accumulate=3)
    state = optimizer.init(PARAMS)
    step = jax.jit(optimizer.update)
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.inner_states["b"])]
    for _ in range(4):
        updates, state = step(ONES, state, PARAMS, active=jnp.int32(0))
        assert bool((updates["b"]["w"] == 0).all())
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.inner_states["b"])] == before
    assert int(optax.tree.get(state.inner_states["a"], "count")) == 1


def test_without_accumulation_what_is_given_is_in_force():
    optimizer = alternating(TRANSFORMS, LABELS, always=optax.sgd(1.0))
    assert in_force(optimizer.init(PARAMS), 1) == 1


@pytest.mark.parametrize("kind", [Alternator, DeviceAlternator])
def test_the_turns_are_checked_against_what_chooses_among_them(kind):
    joint = {"both": ("a", "b"), "a": "a", "b": "b"}

    def build(turns, names, rule):
        return alternating(TRANSFORMS, LABELS, turns=turns, always=optax.sgd(1.0), alternator=kind(names, rule))

    assert moved(build(joint, tuple(joint), Payoff(costs=(3, 2, 2))), 0) == {"a", "b", "mix"}
    with pytest.raises(ConfigurationError, match="Payoff must have a first turn that trains all modules"):
        build(TURNS, tuple(TURNS), Payoff(costs=(3, 2, 2)))
    with pytest.raises(ConfigurationError, match="Payoff must have a first turn that trains all modules"):
        build(None, ("a", "b"), Payoff(costs=(3, 2)))
    message = r"the alternator's names \('b', 'a'\) in their order, as active may be an index, got \('a', 'b'\)"
    with pytest.raises(ConfigurationError, match=message):
        build(None, ("b", "a"), Cycle(1))


def test_an_alternator_knows_which_modules_its_names_train():
    alternator = Alternator(TURNS, Cycle(400))
    alternating(TRANSFORMS, LABELS, turns=TURNS, always=optax.sgd(1.0), alternator=alternator)
    with pytest.warns(UserWarning, match="steps of Cycle should be at most a tenth"):
        alternator.expect(num_steps=1000)
    alternator.force("both")
    for _ in range(200):
        alternator.advance()  # trains all
    alternator.force("a")
    for _ in range(101):
        alternator.advance()
    with pytest.warns(UserWarning, match="'b' has not trained for 101 of 1,000 planned steps"):
        alternator.advance()
