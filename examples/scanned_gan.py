"""A GAN in JAX whose whole training is one `lax.scan`: the schedule lives on the device with the players.

Run: python examples/scanned_gan.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from adapters.jax import DeviceAlternator, DeviceDecision, DeviceState
from adapters.optax import active_value_and_grad, alternating, apply_updates
from alternator import Cycle

Params = dict[str, dict[str, jax.Array]]
Carry = tuple[Params, optax.OptState, DeviceState]
PLAYERS = ("generator", "critic")
LABELS = {name: name for name in PLAYERS}
TRUE_MEAN, TRUE_STD = 4.0, 0.5


def apply(layers: dict[str, jax.Array], inputs_BD: jax.Array) -> jax.Array:
    """A network with one hidden layer."""
    return jax.nn.relu(inputs_BD @ layers["in"] + layers["bias"]) @ layers["out"] + layers["shift"]


def init(key: jax.Array) -> Params:
    """Both players."""
    keys = jax.random.split(key, 4)
    normal = jax.random.normal
    sizes = {"generator": 4, "critic": 1}
    return {
        name: {
            "in": normal(keys[2 * index], (size, 16)) / jnp.sqrt(size),
            "bias": 0.5 * normal(jax.random.fold_in(key, index), (16,)),
            "out": normal(keys[2 * index + 1], (16, 1)) / 4,
            "shift": jnp.zeros(1),
        }
        for index, (name, size) in enumerate(sizes.items())
    }


def sample(generator: dict[str, jax.Array], key: jax.Array, size: int) -> jax.Array:
    """Generated samples."""
    return apply(generator, jax.random.normal(key, (size, 4)))


def generator_loss(params: Params, key: jax.Array) -> jax.Array:
    """The critic is to take fakes for real."""
    return jax.nn.softplus(-apply(params["critic"], sample(params["generator"], key, 128))).mean()


def critic_loss(params: Params, key: jax.Array) -> jax.Array:
    """The logistic loss with the gradient penalty on real data (R1, Mescheder et al. 2018)."""
    real_key, fake_key = jax.random.split(key)
    real_B1 = TRUE_MEAN + TRUE_STD * jax.random.normal(real_key, (128, 1))
    score = partial(apply, params["critic"])
    slopes_B1 = jax.grad(lambda inputs_B1: score(inputs_B1).sum())(real_B1)
    fake_B1 = score(sample(params["generator"], fake_key, 128))
    return (jax.nn.softplus(-score(real_B1)) + jax.nn.softplus(fake_B1) + 0.5 * slopes_B1**2).mean()


LOSSES = {"generator": generator_loss, "critic": critic_loss}


def optimizers() -> dict[str, optax.GradientTransformation]:
    """One per player."""
    return {name: optax.adam(5e-3, b1=0.5, b2=0.9) for name in PLAYERS}


def train(num_steps: int = 1000) -> tuple[Params, DeviceDecision]:
    """The trained players, and who trained when."""
    # Two critic steps for each of the generator. A loss against another player is no progress, so no rule that watches
    # losses fits here.
    machine = DeviceAlternator(PLAYERS, Cycle((1, 2)))
    gradients = active_value_and_grad(LOSSES, LABELS, PLAYERS)
    optimizer = alternating(optimizers(), LABELS, alternator=machine)

    def step(carry: Carry, key: jax.Array) -> tuple[Carry, DeviceDecision]:
        params, opt_state, schedule = carry
        value, grads = gradients(params, key, active=schedule.active)
        updates, opt_state = optimizer.update(grads, opt_state, params, active=schedule.active)
        schedule, decision = machine.step(schedule, value)
        return (apply_updates(params, updates), opt_state, schedule), decision

    params = init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), num_steps)
    (params, *_), log = jax.jit(partial(jax.lax.scan, step))((params, optimizer.init(params), machine.init()), keys)
    return params, log


def main(num_steps: int = 1000) -> dict[str, float]:
    """Learn a normal distribution; returns mean and spread of what is generated, before and after."""
    params, log = train(num_steps)
    key = jax.random.key(2)
    before = sample(init(jax.random.key(0))["generator"], key, 2000)
    after = sample(params["generator"], key, 2000)
    return {
        "mean_before": float(before.mean()),
        "mean_after": float(after.mean()),
        "std_after": float(after.std()),
        "critic_share": float((log.previous == PLAYERS.index("critic")).mean()),
    }


if __name__ == "__main__":
    result = main()
    print(result)
