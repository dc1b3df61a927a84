"""adapters.nnx: the freeze contract on Flax models, in place under nnx.jit and as pure functions under jax.jit."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from adapters.optax import apply_updates
from alternator import Alternator, ConfigurationError, Payoff, UnknownModuleError

MODULES = ("encoder", "head")
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.norm(self.linear(inputs)))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.encoder = Encoder(rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, inputs):
        return self.head(self.encoder(inputs)) * self.scale


def loss(model, inputs):
    return ((model(inputs) - 1.0) ** 2).mean()


def make(**arguments):
    """A new pair, but the same static parts for the same arguments, so that jitted steps are reused."""
    return nnx.clone(prototype(**arguments))


@cache
def prototype(**arguments):
    model = Model(nnx.Rngs(0))
    transforms = {name: optax.adamw(0.1, weight_decay=0.1) for name in MODULES}
    return model, AlternatingOptimizer(model, transforms, always=("scale", optax.sgd(0.1)), **arguments)


def train(model, optimizer, inputs, active):
    value, gradients = optimizer.value_and_grad(loss)(model, inputs, active=active)
    optimizer.update(model, gradients, active=active)
    return value


STATIC = nnx.jit(train, static_argnames="active")
TRACED = nnx.jit(train)
STEPS = {
    "static": lambda model, optimizer, active: STATIC(model, optimizer, INPUTS, MODULES[active]),
    "traced": lambda model, optimizer, active: TRACED(model, optimizer, INPUTS, jnp.int32(active)),
}


def bits(tree):
    leaves = jax.tree.leaves(tree)
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
        for x in leaves
    ]


def snapshot(model, optimizer):
    """Per module everything that it holds: parameters, statistics, random streams, optimizer state."""
    state = nnx.state(model)
    inner = optimizer.opt_state.inner_states
    return {name: bits((state[name], inner[name])) for name in MODULES}


@pytest.mark.parametrize("way", STEPS)
@pytest.mark.parametrize("active", [0, 1])
def test_only_the_active_module_changes(way, active):
    model, optimizer = make()
    before, scale = snapshot(model, optimizer), bits(model.scale)
    for _ in range(3):
        STEPS[way](model, optimizer, active)
    after = snapshot(model, optimizer)
    trained, frozen = MODULES[active], MODULES[1 - active]
    assert after[frozen] == before[frozen]
    assert after[trained] != before[trained]
    assert bits(model.scale) != scale
    assert int(optax.tree.get(optimizer.opt_state.inner_states[trained], "count")[...]) == 3
    assert int(optimizer.step[...]) == 3


def test_statistics_and_dropout_move_only_while_their_module_trains():
    model, optimizer = make()
    mean, count = model.encoder.norm.mean[...], model.encoder.dropout.rngs.count[...]
    STEPS["static"](model, optimizer, 1)
    assert bits(model.encoder.norm.mean[...]) == bits(mean)
    assert int(model.encoder.dropout.rngs.count[...]) == int(count)
    STEPS["static"](model, optimizer, 0)
    assert bits(model.encoder.norm.mean[...]) != bits(mean)
    assert int(model.encoder.dropout.rngs.count[...]) == int(count) + 1


def test_a_frozen_module_runs_in_inference_mode_and_keeps_its_own():
    model, optimizer = make()
    seen = []

    def watching(model, inputs):
        seen.append((model.encoder.dropout.deterministic, model.encoder.norm.use_running_average))
        return loss(model, inputs)

    optimizer.value_and_grad(watching)(model, INPUTS, active="head")
    optimizer.value_and_grad(watching)(model, INPUTS, active="encoder")
    assert seen == [(True, True), (False, False)]
    assert not model.encoder.dropout.deterministic
    model.encoder.dropout.deterministic = True  # the user's choice for an active module stays
    optimizer.value_and_grad(watching)(model, INPUTS, active="encoder")
    assert seen[-1] == (True, False)


def test_statistics_that_change_in_inference_mode_are_put_back():
    class Counting(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))
            self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

        def __call__(self, inputs):
            self.calls[...] += 1
            return inputs * self.w

    class Pair(nnx.Module):
        def __init__(self):
            self.a, self.b, self.total = Counting(), Counting(), nnx.BatchStat(jnp.zeros((), jnp.int32))

    def total(model):
        model.total[...] += 1
        return model.b(model.a(jnp.ones(2))).sum()

    model = Pair()
    optimizer = AlternatingOptimizer(model, {"a": optax.sgd(0.1), "b": optax.sgd(0.1)})
    for active in ("a", "a", "b"):
        optimizer.value_and_grad(total)(model, active=active)
    assert [int(count[...]) for count in (model.a.calls, model.b.calls, model.total)] == [2, 1, 3]


def test_each_turn_compiles_once_and_a_traced_active_once_in_all():
    for jit, expected in ((partial(nnx.jit, static_argnames="active"), 2), (nnx.jit, 1)):
        traces = []

        def step(model, optimizer, inputs, active, traces=traces):
            traces.append(active)
            return train(model, optimizer, inputs, active)

        jitted = jit(step)
        model, optimizer = make()
        for active in (0, 0, 1, 1, 0, 1):
            jitted(model, optimizer, INPUTS, MODULES[active] if expected == 2 else jnp.int32(active))
        assert len(traces) == expected


def test_static_traced_and_hand_written_steps_agree():
    reference, _ = make()
    for way in STEPS:
        other, own = make()
        STEPS[way](other, own, 1)
        reference.encoder.eval()
        grads = nnx.grad(loss)(reference, INPUTS)
        transform = optax.adamw(0.1, weight_decay=0.1)
        kernel = reference.head.kernel[...]
        updates, _ = transform.update(grads["head"]["kernel"][...], transform.init(kernel), kernel)
        np.testing.assert_allclose(other.head.kernel[...], kernel + updates, rtol=1e-5)
        np.testing.assert_allclose(other.scale[...], 1.0 - 0.1 * grads["scale"][...], rtol=1e-5)


def test_pure_functions_of_the_split_state():
    """The same step under jax.jit on split states gives the same as nnx.jit in place."""
    model, optimizer = make()
    graphdef, state = nnx.split((model, optimizer))

    @partial(jax.jit, static_argnames="active", donate_argnums=0)
    def step(state, inputs, active):
        model, optimizer = nnx.merge(graphdef, state)
        value = train(model, optimizer, inputs, active)
        return nnx.state((model, optimizer)), value

    state = jax.tree.map(jnp.copy, state)
    for active in ("encoder", "head", "encoder"):
        state, value = step(state, INPUTS, active)
        expected = STATIC(model, optimizer, INPUTS, active)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert bits(state) == bits(nnx.state((model, optimizer)))


def test_an_epoch_under_scan():
    model, optimizer = make()
    graphdef, state = nnx.split((model, optimizer))

    @jax.jit
    def epoch(state, schedule):
        def step(state, active):
            model, optimizer = nnx.merge(graphdef, state)
            value = train(model, optimizer, INPUTS, active)
            return nnx.state((model, optimizer)), value

        return jax.lax.scan(step, state, schedule)

    before = snapshot(model, optimizer)
    state, values = epoch(state, jnp.array([1, 1, 1], jnp.int32))
    nnx.update((model, optimizer), state)
    after = snapshot(model, optimizer)
    assert after["encoder"] == before["encoder"]
    assert after["head"] != before["head"]
    assert values[-1] < values[0]


def test_gradients_of_the_active_module_only_from_flax_itself():
    model, optimizer = make()
    before = snapshot(model, optimizer)
    wanted = nnx.DiffState(0, nnx.All(nnx.Param, nnx.Any(nnx.PathContains("head"), nnx.PathContains("scale"))))
    gradients = nnx.grad(loss, argnums=wanted)(model, INPUTS)
    optimizer.update(model, gradients, active="head")
    after = snapshot(model, optimizer)
    assert after["head"] != before["head"]
    with pytest.raises(ConfigurationError, match=r"all that is active, but 'encoder\.linear\.bias'"):
        optimizer.update(model, gradients, active="encoder")
    with pytest.raises(ConfigurationError, match="gradients must hold all that is active"):
        jax.jit(lambda active: optimizer.update(nnx.clone(model), gradients, active=active))(jnp.int32(1))


def test_auxiliary_data_and_a_loss_per_turn():
    model, optimizer = make()
    losses = {
        "encoder": lambda model, inputs: (loss(model, inputs), "encoder's"),
        "head": lambda model, inputs: (-loss(model, inputs), "head's"),
    }
    gradients = optimizer.value_and_grad(losses, has_aux=True)
    (value, aux), grads = gradients(model, INPUTS, active="head")
    assert (aux, float(value) < 0) == ("head's", True)
    (_, plain) = optimizer.value_and_grad(loss)(model, INPUTS, active="head")
    np.testing.assert_allclose(grads["head"]["kernel"][...], -plain["head"]["kernel"][...])


def test_turns():
    model, optimizer = prototype.__wrapped__(turns={"head": "head", "both": MODULES})
    before = snapshot(model, optimizer)
    STATIC(model, optimizer, INPUTS, "both")
    middle = snapshot(model, optimizer)
    assert all(middle[name] != before[name] for name in MODULES)
    TRACED(model, optimizer, INPUTS, jnp.int32(0))
    assert snapshot(model, optimizer)["encoder"] == middle["encoder"]
    with pytest.raises(UnknownModuleError, match=r"unknown module 'encoder'; expected one of \('head', 'both'\)"):
        optimizer.update(model, nnx.state(model, nnx.Param), active="encoder")


def test_accumulation_latches_the_active_module():
    model, optimizer = make(accumulate=2)

    @nnx.jit
    def step(model, optimizer, active):
        current = optimizer.in_force(active)
        _, gradients = optimizer.value_and_grad(loss)(model, INPUTS, active=current)
        optimizer.update(model, gradients, active=active)
        return current

    before = snapshot(model, optimizer)["encoder"]
    assert [int(step(model, optimizer, jnp.int32(active))) for active in (1, 0, 0)] == [1, 1, 0]
    micro_step, active, _ = optimizer.opt_state.accumulation
    assert (int(micro_step[...]), int(active[...])) == (1, 0)
    changed = [old != new for old, new in zip(before, snapshot(model, optimizer)["encoder"], strict=True)]
    assert sum(changed) == 3  # the third step moved a random stream and two statistics, no parameter and no moment


def test_subnormal_weights_stay():
    model, optimizer = make()
    odd = jnp.full((3, 4), 1e-40, jnp.float32).at[0, 0].set(-0.0)
    model.encoder.linear.kernel[...] = odd
    TRACED(model, optimizer, INPUTS, jnp.int32(1))
    assert bits(model.encoder.linear.kernel[...]) == bits(odd)


def test_it_works_where_a_plain_nnx_optimizer_does():
    model, optimizer = make()
    assert isinstance(optimizer, nnx.Optimizer)
    gradients = nnx.state(model, nnx.Param)
    updates, _ = optimizer.tx.update(gradients, optimizer.tx.init(gradients), gradients, active="head")
    new = apply_updates(gradients, updates)
    assert bits(new["encoder"]) == bits(gradients["encoder"])
    assert bits(new["head"]) != bits(gradients["head"])


class Shared(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(5, 3, rngs=rngs)
        self.towers = nnx.Dict(user=nnx.Linear(3, 2, rngs=rngs), item=nnx.List([nnx.Linear(3, 2, rngs=rngs)]))
        self.towers.user.table = self.table
        self.towers.item[0].table = self.table


def test_dotted_names_and_a_shared_table_that_always_trains():
    transforms = {"towers.user": optax.sgd(1.0), "towers.item.0": optax.sgd(1.0)}
    model = Shared()
    optimizer = AlternatingOptimizer(model, transforms, always=("table", optax.sgd(1.0)))
    before = [bits(part) for part in (model.towers.user.kernel, model.towers.item[0].kernel, model.table.embedding)]
    optimizer.update(model, nnx.state(model, nnx.Param), active="towers.user")
    after = [bits(part) for part in (model.towers.user.kernel, model.towers.item[0].kernel, model.table.embedding)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, False]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("towers.user", "towers.item"), r"belong to one module, but 'table.embedding' of 'towers.user' is"),
        (("table", "towers.user"), "belong to one module"),
        (("towers", "towers.user"), "belong to one module"),
        (("towers.user", "towers.left"), r"Shared has no 'towers.left'; .* modules="),
        (("towers.user", "towers.item.7"), "Shared has no 'towers.item.7'"),
    ],
)
def test_wrong_modules(modules, message):
    with pytest.raises(ConfigurationError, match=message):
        AlternatingOptimizer(Shared(), {name: optax.sgd(1.0) for name in modules})


def test_a_parameter_without_a_module():
    with pytest.raises(ConfigurationError, match=r"but none of .* has 'scale'; name"):
        AlternatingOptimizer(Model(nnx.Rngs(0)), {name: optax.sgd(1.0) for name in MODULES})


def test_a_module_without_parameters():
    with pytest.raises(ConfigurationError, match=r"no parameter is labelled 'encoder\.dropout'"):
        AlternatingOptimizer(
            Model(nnx.Rngs(0)),
            {"encoder.dropout": optax.sgd(1.0), "head": optax.sgd(1.0)},
            always=(("encoder.linear", "encoder.norm", "scale"), optax.sgd(1.0)),
        )


def test_what_wrt_leaves_out_is_never_trained():
    class Static(nnx.Param):
        pass

    model = Model(nnx.Rngs(0))
    model.scale = Static(jnp.ones(()))
    wrt = nnx.All(nnx.Param, nnx.Not(Static))
    optimizer = AlternatingOptimizer(model, {name: optax.adamw(0.1) for name in MODULES}, wrt=wrt)
    for active in MODULES:
        train(model, optimizer, INPUTS, active)
    assert float(model.scale[...]) == 1.0


def test_payoff_over_turns_of_which_the_first_does_not_train_all():
    with pytest.raises(ConfigurationError, match="Payoff must have a first turn that trains all modules"):
        make(alternator=Alternator(MODULES, Payoff(costs=(3, 2))))
