"""adapters.nnx: modules by path, pattern or as the rest, with the statistics and modes that follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from alternator import ConfigurationError

INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.LoRA(3, 2, 3, base_module=nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.norm(self.linear(inputs)))


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Linear(3, 1, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return self.head(inputs) * self.scale


def loss(model, inputs):
    return ((model(inputs) - 1.0) ** 2).mean()


@nnx.jit(static_argnames="active")
def train(model, optimizer, inputs, active):
    value, gradients = optimizer.value_and_grad(loss)(model, inputs, active=active)
    optimizer.update(model, gradients, active=active)
    return value


def build(modules, model=None, **arguments):
    model = Model() if model is None else model
    transforms = {name: optax.adamw(0.1) for name in modules}
    return model, AlternatingOptimizer(model, transforms, modules=modules, frozen_mode="inference", **arguments)


def moved(before, after):
    paths = [(".".join(str(getattr(k, "key", "")) for k in path[:-1]), leaf) for path, leaf in leaves(before)]
    return {path for (path, old), (_, new) in zip(paths, leaves(after), strict=True) if (old != new).any()}


def leaves(state):
    return jax.tree_util.tree_flatten_with_path(state)[0]


def state_of(model):
    return jax.tree.map(jnp.copy, nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


LORA = {f"blocks.{index}.linear.lora_{letter}" for index in (0, 1) for letter in "ab"}
STATISTICS = {f"blocks.{index}.norm.{name}" for index in (0, 1) for name in ("mean", "var")}


def test_lora_against_the_rest():
    model, optimizer = build({"adapter": ["*.lora_a", "*.lora_b"], "backbone": "*"})
    before = state_of(model)
    for _ in range(2):
        train(model, optimizer, INPUTS, "adapter")
    assert moved(before, state_of(model)) == LORA
    before = state_of(model)
    train(model, optimizer, INPUTS, "backbone")
    changed = moved(before, state_of(model))
    assert changed.isdisjoint(LORA)
    assert STATISTICS | {"head.kernel", "head.bias", "scale", "blocks.0.norm.scale"} <= changed


def test_modes_follow_the_parameters():
    model, optimizer = build({"adapter": ["*.lora_a", "*.lora_b"], "backbone": "*"})
    seen = []

    def watching(model, inputs):
        seen.append([(block.norm.use_running_average, block.dropout.deterministic) for block in model.blocks])
        return loss(model, inputs)

    for active in ("adapter", "backbone"):
        optimizer.value_and_grad(watching)(model, INPUTS, active=active)
    assert seen == [[(True, True)] * 2, [(False, False)] * 2]


def test_a_block_and_its_head_against_the_rest_and_always():
    modules = {"last": ["blocks.1", "head"], "first": "*"}
    model, optimizer = build(modules, always=("scale", optax.sgd(0.1)))
    before = state_of(model)
    train(model, optimizer, INPUTS, "last")
    changed = moved(before, state_of(model))
    assert {"scale", "head.kernel", "blocks.1.norm.mean"} <= changed
    assert not any(path.startswith("blocks.0") for path in changed)


class Tied(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Linear(3, 3, rngs=rngs)
        self.head = nnx.Linear(3, 3, rngs=rngs)
        self.head.kernel = self.embed.kernel

    def __call__(self, inputs):
        return self.head(self.embed(inputs))


def test_a_tied_variable_belongs_where_it_is_named_itself():
    with pytest.raises(ConfigurationError, match=r"'embed\.kernel', 'head\.kernel' are tied.*name it itself"):
        build({"body": "*", "head": "head"}, Tied())
    model, optimizer = build({"body": "*", "head": ["head", "head.kernel"]}, Tied())
    before = state_of(model)
    train(model, optimizer, INPUTS, "head")
    assert moved(before, state_of(model)) == {"embed.kernel", "head.bias"}
    model, optimizer = build({"body": "*", "head": "head"}, Tied(), always=("embed.kernel", optax.sgd(0.1)))
    before = state_of(model)
    train(model, optimizer, INPUTS, "head")
    assert moved(before, state_of(model)) == {"embed.kernel", "head.bias"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"head": "head", "blocks": "blocks"}, r"'scale' is named by none of \('head', 'blocks'\); .*the rest, '\*'"),
        ({"head": "haed", "rest": "*"}, r"'haed' of 'head' names none; there is 'head'"),
        ({"a": "blocks.0", "b": "blocks.0.*", "rest": "*"}, "every part must have a parameter"),
    ],
)
def test_what_is_not_named_or_misspelt_is_an_error(modules, message):
    with pytest.raises(ConfigurationError, match=message):
        build(modules)


def test_modules_must_be_those_of_the_transforms():
    with pytest.raises(ConfigurationError, match=r"modules must have the names of the transforms \('a', 'b'\)"):
        AlternatingOptimizer(Model(), dict.fromkeys("ab", optax.sgd(0.1)), modules={"a": "*"})
