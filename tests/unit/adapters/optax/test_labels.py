"""labels_of: modules named by path, pattern or as the rest, over every kind of tree that parameters come in."""

from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from adapters.optax import active_value_and_grad, alternating, apply_updates, keep_frozen, labels_of
from alternator import ConfigurationError

PARTS = {"backbone": "*", "head": "head"}


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1, name="head")(nn.BatchNorm(use_running_average=False, name="norm")(inputs))


class Pair(NamedTuple):
    trunk: dict[str, float]
    head: list[float]


class Equinox(eqx.Module):
    trunk: eqx.nn.MLP
    head: eqx.nn.Linear


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.trunk = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)])
        self.head = nnx.Linear(3, 1, rngs=rngs)


KEYS = jax.random.split(jax.random.key(0))
VARIABLES = Net().init(KEYS[0], jnp.ones((2, 3)))
EQUINOX = Equinox(eqx.nn.MLP(2, 3, 4, 1, key=KEYS[0]), eqx.nn.Linear(3, 1, key=KEYS[1]))
TREES = {
    "dict": {"trunk": {"w": 1.0, "b": 2.0}, "head": [3.0, 4.0]},
    "named tuple": Pair({"w": 1.0, "b": 2.0}, [3.0, 4.0]),
    "linen": VARIABLES["params"],
    "linen's collection": {"params": VARIABLES["params"]},
    "FrozenDict": freeze(VARIABLES["params"]),
    "nnx.State": nnx.state(Nnx(), nnx.Param),
    "equinox": eqx.filter(EQUINOX, eqx.is_inexact_array),
}


@pytest.mark.parametrize("name", TREES)
def test_the_rest_and_a_head_in_every_kind_of_tree(name):
    tree = TREES[name]
    labels = labels_of(PARTS)(tree)
    assert jax.tree.structure(labels) == jax.tree.structure(tree)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    expected = ["head" if "head" in path else "backbone" for path in paths]
    assert jax.tree.leaves(labels) == expected
    assert set(expected) == {"head", "backbone"}


def test_indices_several_paths_and_the_reserved_parts():
    params = {"layers": [{"w": 1.0}, {"w": 2.0}], "scale": 3.0, "embed": 4.0, "bias": 5.0}
    labels = labels_of({"first": ["layers.0", "bias"], "second": "layers.1", "always": "scale", "frozen": "embed"})
    assert labels(params) == {
        "layers": [{"w": "first"}, {"w": "second"}],
        "scale": "always",
        "embed": "frozen",
        "bias": "first",
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"head": "head"},
            r"'trunk\.b', 'trunk\.w' is named by none of \('head',\); .*'\*', to one of them, or \{'frozen': '\*'\}",
        ),
        ({"backbone": "*", "head": "haed"}, r"'haed' of 'head' names none; there is 'head'"),
        ({"a": "trunk", "b": "trunk", "c": "*"}, "named by 'a', 'b' alike"),
        ({"backbone": "*", "head": 3}, "must be named by a path or pattern"),
    ],
)
def test_what_is_not_named_or_misspelt_is_an_error(parts, message):
    with pytest.raises(ConfigurationError, match=message):
        labels_of(parts)(TREES["dict"])


def test_they_are_labels_wherever_labels_are_accepted():
    params = {"trunk": {"w": jnp.ones(2)}, "head": jnp.ones(2), "scale": jnp.ones(()), "ids": jnp.arange(2)}
    labels = labels_of({"trunk": "*", "head": "head", "always": "scale", "frozen": "ids"})
    optimizer = alternating(dict.fromkeys(("trunk", "head"), optax.adam(0.1)), labels, always=optax.sgd(0.1))
    gradients = active_value_and_grad(
        lambda p: (p["trunk"]["w"] * p["head"]).sum() * p["scale"], labels, ("trunk", "head")
    )
    _, grads = gradients(params, active="head")
    updates, _ = optimizer.update(grads, optimizer.init(params), params, active="head")
    after = apply_updates(params, updates)
    moved = {name: bool((jax.tree.leaves(after[name])[0] != jax.tree.leaves(params[name])[0]).any()) for name in params}
    assert moved == {"trunk": False, "head": True, "scale": True, "ids": False}


STATISTICS = {"norm": {"mean": 0.0}, "head": {"inner": {"mean": 0.0}}, "both": {"mean": 0.0}}
PARAMS = {"norm": {"scale": 1.0}, "head": {"kernel": 1.0}, "both": {"a": {"w": 1.0}, "b": {"w": 1.0}}}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("active", "moved"), [(0, {"norm", "both"}), (1, {"head", "both"}), (2, {"norm", "head", "both"}), (3, set())]
)
def test_statistics_follow_the_parameters_nearest_to_them(active, moved, traced):
    labels = labels_of({"backbone": "*", "head": ["head", "both.b"], "other": "spare"})
    turns = {"backbone": "backbone", "head": "head", "two": ("backbone", "head"), "other": "other"}
    keep = keep_frozen(labels, ("backbone", "head", "other"), turns=turns)
    before = jax.tree.map(jnp.float32, STATISTICS)
    after = jax.tree.map(lambda mean: mean + 0.5, before)
    params = PARAMS | {"spare": 1.0}
    run = jax.jit(lambda index: keep(params, before, after, active=index)) if traced else None
    kept = run(jnp.int32(active)) if run else keep(params, before, after, active=active)
    assert {name for name in kept if float(jax.tree.leaves(kept[name])[0]) == 0.5} == moved


def test_what_is_kept_is_kept_to_the_bit():
    keep = keep_frozen({"a": "a", "b": "b"}, ("a", "b"))
    before = {"a": np.float32([-0.0, np.nan, 1e-45]), "b": np.float32([0.0])}
    after = {"a": np.float32([0.0, 0.0, 0.0]), "b": np.float32([1.0])}
    kept = jax.jit(lambda index: keep({"a": 1.0, "b": 1.0}, before, after, active=index))(jnp.int32(1))
    assert np.asarray(kept["a"]).tobytes() == before["a"].tobytes()
    assert np.asarray(kept["b"]).tobytes() == after["b"].tobytes()


def test_statistics_of_another_structure_are_refused():
    keep = keep_frozen({"a": "a", "b": "b"}, ("a", "b"))
    with pytest.raises(ConfigurationError, match="statistics must keep their structure"):
        keep({"a": 1.0, "b": 1.0}, {"a": 1.0}, {"b": 1.0}, active="a")
