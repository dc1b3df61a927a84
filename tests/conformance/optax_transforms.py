"""Optimizers of optax, in turns under `adapters.optax` and `adapters.nnx`, against each alone on its own module.

Calls are not compiled, so that bits can be compared; but where `active` is traced, which makes no sense without: there
what is frozen is compared bit by bit, and what trains to rounding.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax import contrib

from adapters.nnx import AlternatingOptimizer
from adapters.optax import alternating, apply_updates
from tests.conformance.kept import CLOSE, KEPT, Cell, Row, Table

PyTree = Any
Make = Callable[[], Any]
NAMES = ("a", "b")
SCHEDULE = [0, 0, 1, 1, 0]
"""Which module trains in each step."""
STATIC, TRACED, NNX = "`active` static", "traced", "`adapters.nnx`"


def initial() -> PyTree:
    rng = np.random.default_rng(0)
    return {name: {key: array(rng, shape) for key, shape in (("w", (3, 2)), ("b", (2,)))} for name in NAMES}


def array(rng: np.random.Generator, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def batch(step: int) -> jax.Array:
    return array(np.random.default_rng(step), (4, 3))


@jax.jit
def loss(params: PyTree, inputs_BD: jax.Array) -> jax.Array:
    """That of one module; it depends on nothing else."""
    return jnp.mean((inputs_BD @ params["w"] + params["b"] - 1) ** 2)


gradients_of = jax.jit(jax.grad(loss))


def bits(tree: PyTree) -> list[bytes]:
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


@cache
def by_hand(make: Make, name: str, needs_value: bool) -> PyTree:
    """The module alone, trained in its steps."""
    transform, params = make(), initial()[name]
    state = transform.init(params)
    for step in (step for step, active in enumerate(SCHEDULE) if NAMES[active] == name):
        more: dict[str, Any] = {}
        gradients = gradients_of(params, batch(step))
        if needs_value:
            value_fn = partial(loss, inputs_BD=batch(step))
            more = {"value": value_fn(params), "grad": gradients, "value_fn": value_fn}
        updates, state = transform.update(gradients, state, params, **more)
        params = optax.apply_updates(params, updates)
    return params


def in_turns(make: Make, needs_value: bool, *, traced: bool) -> None:
    """Each step leaves the frozen module and its state as they are; what trains equals each module trained alone."""
    optimizer = alternating({name: make() for name in NAMES}, {name: name for name in NAMES})

    def update(gradients: PyTree, state: Any, params: PyTree, inputs_BD: jax.Array, active: Any) -> Any:
        more: dict[str, Any] = {}
        if needs_value:
            value_fn = partial(loss_of_active, active, inputs_BD)
            more = {"value": value_fn(params), "grad": gradients, "value_fn": value_fn}
        return optimizer.update(gradients, state, params, active=active, **more)

    step_fn = jax.jit(update) if traced else update
    params = initial()
    state = optimizer.init(params)
    for step, active in enumerate(SCHEDULE):
        other = NAMES[1 - active]
        gradients = {name: gradients_of(params[name], batch(step)) for name in NAMES}
        before = bits((params[other], state.inner_states[other]))
        updates, state = step_fn(gradients, state, params, batch(step), jnp.int32(active) if traced else active)
        params = apply_updates(params, updates)
        assert bits((params[other], state.inner_states[other])) == before, f"step {step}"
    agree(params, make, needs_value, exactly=not traced)


def loss_of_active(active: Any, inputs_BD: jax.Array, params: PyTree) -> jax.Array:
    losses = [loss(params[name], inputs_BD) for name in NAMES]
    return losses[active] if isinstance(active, int) else jnp.where(active == 0, *losses)


def agree(params: PyTree, make: Make, needs_value: bool, *, exactly: bool) -> None:
    for name in NAMES:
        alone = by_hand(make, name, needs_value)
        if exactly:
            assert bits(params[name]) == bits(alone), name
        else:
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), params[name], alone)
        for old, new in zip(bits(initial()[name]), bits(params[name]), strict=True):
            assert old != new, name


class Tower(nnx.Module):
    """One of the two modules."""

    def __init__(self, params: PyTree) -> None:
        self.w, self.b = nnx.Param(params["w"]), nnx.Param(params["b"])


class Model(nnx.Module):
    """Both."""

    def __init__(self) -> None:
        params = initial()
        self.a, self.b = Tower(params["a"]), Tower(params["b"])


def in_flax(make: Make, needs_value: bool) -> None:
    """As `in_turns`, with the model's own tree."""
    model = Model()
    optimizer = AlternatingOptimizer(model, {name: make() for name in NAMES})
    for step, active in enumerate(SCHEDULE):
        other = NAMES[1 - active]
        gradients = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(gradients, {name: gradients_of(pure(model)[name], batch(step)) for name in NAMES})
        more: dict[str, Any] = {}
        if needs_value:
            value_fn = lambda p, active=active, step=step: loss_of_active(active, batch(step), nnx.to_pure_dict(p))  # noqa: E731
            more = {"value": value_fn(nnx.state(model, nnx.Param)), "grad": gradients, "value_fn": value_fn}
        before = bits((pure(model)[other], state_of(optimizer, other)))
        optimizer.update(model, gradients, active=active, **more)
        assert bits((pure(model)[other], state_of(optimizer, other))) == before, f"step {step}"
    agree(pure(model), make, needs_value, exactly=True)


def pure(model: nnx.Module) -> PyTree:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def state_of(optimizer: AlternatingOptimizer, name: str) -> PyTree:
    """The leaves of one module's part; there are none if the optimizer keeps nothing."""
    states: Any = nnx.to_pure_dict(nnx.state(optimizer.opt_state))
    return states.get("inner_states", {}).get(name, {})


def row(make: Make, needs_value: bool = False) -> Row:
    cells = {
        STATIC: Cell(KEPT, partial(in_turns, make, needs_value, traced=False)),
        TRACED: Cell(CLOSE, partial(in_turns, make, needs_value, traced=True)),
        NNX: Cell(KEPT, partial(in_flax, make, needs_value)),
    }
    return Row(cells, "takes `value`, `grad` and `value_fn`" if needs_value else "")


def chained(transform: Any) -> Any:
    """With a learning rate."""
    return optax.chain(transform, optax.scale(-0.1))


TABLE = Table(
    "`optax`",
    (STATIC, TRACED, NNX),
    {
        "`adabelief`": row(lambda: optax.adabelief(0.01)),
        "`adadelta`": row(lambda: optax.adadelta(0.5)),
        "`adafactor`": row(lambda: optax.adafactor(0.01, min_dim_size_to_factor=2)),
        "`adagrad`": row(lambda: optax.adagrad(0.1)),
        "`adam`": row(lambda: optax.adam(0.01)),
        "`adamw`, a schedule": row(lambda: optax.adamw(optax.linear_schedule(0.1, 0.01, 4), weight_decay=0.1)),
        "`adamax`": row(lambda: optax.adamax(0.01)),
        "`adan`": row(lambda: optax.adan(0.01)),
        "`amsgrad`": row(lambda: optax.amsgrad(0.01)),
        "`fromage`": row(lambda: optax.fromage(0.01)),
        "`lamb`": row(lambda: optax.lamb(0.01)),
        "`lars`": row(lambda: optax.lars(0.1)),
        "`lbfgs`": row(lambda: optax.lbfgs(0.1, memory_size=2, linesearch=None)),
        "`lion`": row(lambda: optax.lion(0.01)),
        "`nadam`": row(lambda: optax.nadam(0.01)),
        "`noisy_sgd`": row(lambda: optax.noisy_sgd(0.1, key=0)),
        "`novograd`": row(lambda: optax.novograd(0.01)),
        "`optimistic_gradient_descent`": row(lambda: optax.optimistic_gradient_descent(0.1)),
        "`polyak_sgd`": row(lambda: optax.polyak_sgd(), needs_value=True),
        "`radam`": row(lambda: optax.radam(0.01)),
        "`rmsprop`": row(lambda: optax.rmsprop(0.01, momentum=0.9)),
        "`rprop`": row(lambda: optax.rprop(0.01)),
        "`sgd`, Nesterov's momentum": row(lambda: optax.sgd(0.1, momentum=0.9, nesterov=True)),
        "`sign_sgd`": row(lambda: optax.sign_sgd(0.01)),
        "`sm3`": row(lambda: optax.sm3(0.1)),
        "`yogi`": row(lambda: optax.yogi(0.01)),
        "`contrib.muon`": row(lambda: contrib.muon(0.01)),
        "`contrib.prodigy`": row(lambda: contrib.prodigy(1.0)),
        "`contrib.schedule_free_adamw`": row(lambda: contrib.schedule_free_adamw(0.01, weight_decay=0.1)),
        "`contrib.ademamix`": row(lambda: contrib.ademamix(0.01)),
        "`contrib.dadapt_adamw`": row(lambda: contrib.dadapt_adamw(1.0)),
        "`adaptive_grad_clip`": row(lambda: chained(optax.adaptive_grad_clip(0.1))),
        "`clip_by_global_norm`": row(lambda: chained(optax.clip_by_global_norm(0.5))),
        "`ema`": row(lambda: chained(optax.ema(0.9))),
        "`apply_if_finite`": row(lambda: optax.apply_if_finite(optax.adam(0.01), 2)),
        "`inject_hyperparams`": row(lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01)),
        "`masked` weight decay": row(
            lambda: chained(optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)))
        ),
        "`MultiSteps`": row(lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation()),
        "`reduce_on_plateau`": row(
            lambda: optax.chain(optax.adam(0.01), contrib.reduce_on_plateau(patience=1)), needs_value=True
        ),
        "`scale_by_backtracking_linesearch`": row(
            lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)), needs_value=True
        ),
    },
)
