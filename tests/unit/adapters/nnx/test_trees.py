"""adapters.nnx: optimizers see the model's own tree, so masks select what they select in plain Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from alternator import ConfigurationError

MODULES = ("encoder", "head")
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)


class Tower(nnx.Module):
    def __init__(self, size, rngs):
        self.layers = nnx.List([nnx.Linear(size, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        for layer in self.layers:
            layer.bias[...] += 1.0

    def __call__(self, inputs):
        return self.layers[1](jnp.tanh(self.layers[0](inputs)))


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.encoder, self.head = Tower(3, rngs), Tower(2, rngs)
        self.scale = nnx.Param(jnp.ones(2))

    def __call__(self, inputs):
        return self.head(self.encoder(inputs)) * self.scale


def loss(model, inputs):
    return ((model(inputs) - 1.0) ** 2).mean()


def no_bias(path, _):
    return not any(getattr(entry, "key", None) == "bias" for entry in path)


def by_path(params):
    return jax.tree_util.tree_map_with_path(no_bias, params)


def by_keystr(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "['bias']" not in jax.tree_util.keystr(path), params)


def by_map_state(params):
    return nnx.map_state(lambda path, _: "bias" not in path, params)


def by_shape(params):
    return jax.tree.map(lambda param: param.ndim > 1, params)


def by_layer(params):
    return nnx.map_state(lambda path, _: 0 in path and "kernel" in path, params)


PURE = by_map_state(nnx.state(Model(), nnx.Param))
MASKS = {
    "path": by_path, "keystr": by_keystr, "map_state": by_map_state, "shape": by_shape, "layer": by_layer, "pure": PURE
}  # fmt: skip


def group_of(path, _):
    return "kernels" if "kernel" in path else "rest"


def partitioned(labels):
    return optax.partition({"kernels": optax.adamw(0.1), "rest": optax.set_to_zero()}, labels)


OPTIMIZERS = {
    **{f"decay-{name}": optax.adamw(0.1, weight_decay=0.5, mask=mask) for name, mask in MASKS.items()},
    **{f"masked-{name}": optax.chain(optax.masked(optax.sgd(0.1), mask)) for name, mask in MASKS.items()},
    "freeze": optax.chain(
        optax.adam(0.1), optax.transforms.freeze(lambda p: jax.tree.map(lambda m: not m, by_path(p)))
    ),
    "partition-map_state": partitioned(lambda params: nnx.map_state(group_of, params)),
    "partition-pure": partitioned(nnx.map_state(group_of, PURE)),
    "partition-path": partitioned(
        lambda params: jax.tree_util.tree_map_with_path(lambda p, _: "kernels" if no_bias(p, _) else "rest", params)
    ),
    "lamb": optax.lamb(0.1, weight_decay=0.5, mask=by_path),
    "lars": optax.lars(0.1, weight_decay=0.5, weight_decay_mask=by_map_state, trust_ratio_mask=by_path),
}


def bits(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@nnx.jit(static_argnames="active")
def train(model, optimizer, active):
    _, gradients = optimizer.value_and_grad(loss)(model, INPUTS, active=active)
    optimizer.update(model, gradients, active=active)


def alternating(model, transform, **arguments):
    transforms = dict.fromkeys(MODULES, transform)
    return AlternatingOptimizer(model, transforms, always=("scale", optax.sgd(0.1)), **arguments)


def plain(transform, gradients):
    """The model after three steps of a plain optimizer over all of it."""
    model = Model()
    optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(model, gradients)
    return model


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "static") for name in OPTIMIZERS), *((name, "traced") for name in ("decay-map_state", "partition-path"))],
)
def test_a_module_moves_as_under_a_plain_optimizer(name, way):
    model = Model()
    optimizer = alternating(model, OPTIMIZERS[name])
    gradients = nnx.grad(loss)(model, INPUTS)
    expected = plain(OPTIMIZERS[name], gradients)
    traces = []

    def step(model, optimizer, active):
        traces.append(active)
        optimizer.update(model, gradients, active=active)

    jitted = nnx.jit(step, static_argnames="active") if way == "static" else nnx.jit(step)
    head = bits(nnx.state(model.head))
    for active in (0, 0, 0, 1, 1, 1):
        assert active == 1 or bits(nnx.state(model.head)) == head
        jitted(model, optimizer, active=MODULES[active] if way == "static" else jnp.int32(active))
    for module in MODULES:
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
            nnx.state(getattr(model, module)),
            nnx.state(getattr(expected, module)),
        )
    assert len(traces) == (2 if way == "static" else 1)


@pytest.mark.parametrize("name", ["partition-map_state", "partition-pure", "masked-map_state"])
def test_what_is_mapped_to_zero_stays_to_the_bit(name):
    model = Model()
    transform = OPTIMIZERS[name]
    if name.startswith("masked"):
        transform = optax.chain(optax.adam(0.1), optax.masked(optax.set_to_zero(), lambda p: nnx.map_state(zeroed, p)))
    optimizer = alternating(model, transform, accumulate=2)
    before = bits(nnx.state(model))
    for active in ("encoder", "encoder", "head", "head"):
        train(model, optimizer, active)
    after = bits(nnx.state(model))
    assert {path for path in before if before[path] == after[path]} == {path for path in before if "bias" in path}


def zeroed(path, _):
    return "bias" in path


def test_an_optimizer_sees_the_tree_of_the_model_with_everything_else_masked():
    seen = {}

    def watching(module):
        def record(params):
            is_node = lambda node: isinstance(node, (nnx.Variable, optax.MaskedNode))  # noqa: E731
            seen[module] = {path: type(node) for path, node in nnx.to_flat_state(pure_nodes(params, is_node))}
            return optax.EmptyState()

        return optax.GradientTransformation(
            record, lambda updates, state, params: (updates, (record(params), state)[1])
        )

    def pure_nodes(params, is_node):
        return jax.tree.map(lambda node: node, params, is_leaf=is_node)

    model = Model()
    optimizer = AlternatingOptimizer(model, {m: watching(m) for m in MODULES}, always=("scale", optax.sgd(0.1)))
    paths = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for kind in (nnx.Param, jax.Array):
        for module in MODULES:
            assert set(seen[module]) == paths
            for path, node in seen[module].items():
                assert issubclass(node, kind if path[0] == module else optax.MaskedNode), (module, path)
            optimizer.update(model, nnx.state(model, nnx.Param), active=module)


def test_moments_keep_what_the_parameters_declare():
    model = Model()
    model.encoder.layers[0].kernel.set_metadata(axis="rows")
    optimizer, reference = alternating(model, optax.adam(0.1)), nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    ours, theirs = optimizer.opt_state.inner_states["encoder"][0].mu["encoder"], reference.opt_state[0].mu["encoder"]
    for path, moment in nnx.to_flat_state(theirs):
        mine = dict(nnx.to_flat_state(ours))[path]
        assert type(mine) is type(moment)
        assert mine.get_metadata() == moment.get_metadata()


def test_keys_with_dots_are_not_confused():
    class Dotted(nnx.Module):
        def __init__(self):
            self.a = nnx.Dict({"b.c": nnx.Param(jnp.ones(())), "b": nnx.Dict(c=nnx.Param(jnp.full((), 2.0)))})
            self.d = nnx.Param(jnp.ones(()))

    model = Dotted()
    optimizer = AlternatingOptimizer(model, {"a": optax.sgd(1.0), "d": optax.sgd(1.0)})
    optimizer.update(model, nnx.state(model, nnx.Param), active="a")
    assert [float(x[...]) for x in (model.a["b.c"], model.a["b"]["c"], model.d)] == [0.0, 0.0, 1.0]


def test_a_mask_that_reads_masked_parameters_is_refused():
    mask = optax.adamw(0.1, mask=lambda params: nnx.map_state(lambda _, param: param.ndim > 1, params))
    with pytest.raises(ConfigurationError, match=r"'encoder' reads \.ndim of what other modules train.*jax\.tree\.map"):
        alternating(Model(), mask)


def test_a_model_whose_parameters_changed_is_refused():
    model = Model()
    optimizer = alternating(model, optax.sgd(0.1))
    model.encoder.layers.append(nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    with pytest.raises(ConfigurationError, match=r"'encoder\.layers\.2\.bias', 'encoder\.layers\.2\.kernel'.*build"):
        optimizer.value_and_grad(loss)(model, INPUTS, active="head")
    with pytest.raises(ConfigurationError, match="parameters that it had when the optimizer was built"):
        optimizer.update(model, nnx.state(model, nnx.Param), active="head")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_resumes_from_a_checkpoint(accumulate, tmp_path):
    model = Model()
    pair = model, alternating(model, OPTIMIZERS["partition-path"], accumulate=accumulate)
    resumed = nnx.clone(pair)
    for active in ("encoder", "encoder", "head"):
        train(*pair, active)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(pair))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        nnx.update(resumed, checkpointer.restore(tmp_path / "state", nnx.state(resumed)))
    for each in (pair, resumed):
        for active in ("head", "encoder", "encoder"):
            train(*each, active)
    assert bits(nnx.state(resumed)) == bits(nnx.state(pair))


@pytest.mark.parametrize(("value", "kind"), [(jnp.arange(3), "int32"), (jax.random.key(0), r"key<fry>")])
def test_what_has_no_gradient_is_refused_or_left_out(value, kind):
    class Ids(nnx.Param):
        pass

    model = Model()
    model.encoder.ids = Ids(value)
    transforms = dict.fromkeys(MODULES, optax.adamw(0.1))
    with pytest.raises(ConfigurationError, match=rf"got {kind} 'encoder\.ids'; leave it out with wrt="):
        alternating(model, optax.adamw(0.1))
    wrt = nnx.All(nnx.Param, nnx.Not(Ids))
    optimizer = AlternatingOptimizer(model, transforms, wrt=wrt, always=("scale", optax.sgd(0.1)))
    for active in MODULES:
        train(model, optimizer, active)
    assert (model.encoder.ids[...] == value).all()


def test_a_line_search_evaluates_the_model():
    model = Model()
    optimizer = alternating(model, optax.lbfgs(memory_size=3))

    @nnx.jit(static_argnames="active")
    def step(model, optimizer, active):
        graphdef, _ = nnx.split(model)
        value, gradients = optimizer.value_and_grad(loss)(model, INPUTS, active=active)
        optimizer.update(
            model,
            gradients,
            active=active,
            value=value,
            grad=gradients,
            value_fn=lambda params: loss(nnx.merge(graphdef, params), INPUTS),
        )
        return value

    head = bits(nnx.state(model.head))
    values = [float(step(model, optimizer, "encoder")) for _ in range(3)]
    assert bits(nnx.state(model.head)) == head
    values += [float(step(model, optimizer, "head")) for _ in range(3)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] / 4
