"""Players: how often should the critic of a GAN train, while a generator learns from it?

Three games: WGAN-GP (Gulrajani et al. 2017) on 8 × 8 digits and on a ring of normal distributions, and the
non-saturating loss (Goodfellow et al. 2014) on the digits. The metric is the Fréchet distance between generated and
real examples in a fixed space of features (`_examples`). Costs are processor time in steps of the critic of WGAN-GP.

A rule is offered the critic's accuracy: of pairs of a real and a generated example, the share in which the real one has
the higher score. It comes from scores that training computes anyway: where the generator trains, the critic is frozen,
and so are its scores of the last real batch.

Shapes: B the batch, I pixels or coordinates, Z noise, F features, N examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient
from jax.nn import softplus

from adapters.optax import active_value_and_grad, alternating, apply_updates
from alternator import Balance, Cycle, Gain, Plateau, RandomTenure, Trend, Trial

from ._domain import NUM_SEEDS, Arm, Outcome
from ._examples import Examples, digits, energy_distance, frechet_distance, ring
from ._game import BOTH, LOSSES, Match, Schedule
from ._networks import Network
from ._published_players import LossChangeRate, RandomShares, UntilLow

PLAYERS = ("critic", "generator")
TURNS = {"critic": ("critic",), "generator": ("generator",), BOTH: PLAYERS}
COSTS = {"critic": 1.0, "generator": 0.6, BOTH: 1.4}
BATCH_SIZE, NOISE_SIZE, PENALTY = 64, 16, 1.0
NUM_SAMPLES = 2000
GROUPS = 16
"""Of held-out digits, for trials."""


class State(NamedTuple):
    """Of a game; all that training changes."""

    params: dict[str, jax.Array]
    optimizer: Any
    real_scores_B: jax.Array
    """Of the last real batch, by the critic of then."""
    key: jax.Array


@dataclass(frozen=True, kw_only=True)
class AdversarialNetworks:
    """The domain of one game."""

    examples: Literal["digits", "ring"] = "digits"
    objective: Literal["wasserstein", "logistic"] = "wasserstein"
    budget: float = 5000.0
    width: int = 64
    learning_rate: float = 1e-3
    num_looks: int = 20
    question: str = "How often should a GAN's critic train?"
    metric: str = "Fréchet distance"
    unit: str = "steps of the critic"
    higher_is_better: bool = False
    num_seeds: int = field(default=NUM_SEEDS, repr=False)
    has_signal: bool = True

    @property
    def name(self) -> str:
        """Of the domain."""
        changed = {"digits": "", "ring": "-ring"}[self.examples] + {"wasserstein": "", "logistic": "-logistic"}[
            self.objective
        ]
        return f"players{changed}"

    def arms(self) -> Mapping[str, Arm]:
        """All ways to train the two."""
        fixed = {f"{critic}:{generator}": Schedule(rule=Cycle((critic, generator))) for critic, generator in GRID}
        change = LossChangeRate(first=0, second=1)
        slower = {"generator": 0.25}
        limits = {"wasserstein": (-0.5, -1.0), "logistic": (0.65, 1.0)}[self.objective]
        published = {
            "TTUR": (Schedule(rule=None, learning_rates=slower), "Heusel et al. (1706.08500), both train, 4:1 rates"),
            "TTUR in turn": (Schedule(rule=Cycle(1), learning_rates=slower), "the same with turns of one step"),
            "loss change rate": (Schedule(rule=change, signal=LOSSES), "Ouyang, Chen & Agam (2008.12463), λ = 1"),
            **{
                f"switcher at {limit:g}": (
                    Schedule(rule=UntilLow(module=0, limit=limit)),
                    "fastai's AdaptiveGANSwitcher: the critic trains until its loss is below that",
                )
                for limit in limits
            },
        }
        ours = {
            "Balance": Schedule(rule=Balance(of=0, above=1, below=0), signal="accuracy"),
            "Balance, lower": Schedule(rule=Balance(low=0.7, high=0.8, of=0, above=1, below=0), signal="accuracy"),
            "Trial": Schedule(rule=Trial(candidates=CANDIDATES, costs=(COSTS["critic"], COSTS["generator"]))),
            "Gain": Schedule(rule=Gain()),
            "Trend": Schedule(rule=Trend()),
            "Plateau": Schedule(rule=Plateau()),
        }
        return {
            "joint": Arm(kind="joint", setting=Schedule(rule=None)),
            **{name: Arm(kind="fixed", setting=setting) for name, setting in fixed.items()},
            "random": Arm(kind="random", setting=Schedule(rule=RandomTenure(5, seed=1))),
            "random 5:1": Arm(kind="random", setting=Schedule(rule=RandomShares(shares=(5, 1), seed=1))),
            **{name: Arm(kind="published", setting=each, note=note) for name, (each, note) in published.items()},
            **{name: Arm(kind="ours", setting=setting) for name, setting in ours.items()},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        """Train within the budget."""
        schedule: Schedule = self.arms()[arm].setting
        return Match(self.game(schedule, seed), schedule, self.budget, self.num_looks).play()

    def game(self, schedule: Schedule, seed: int) -> "Game":
        """At its beginning."""
        rates = tuple(self.learning_rate * schedule.learning_rates.get(name, 1.0) for name in PLAYERS)
        return Game(_build(self.examples, self.objective, self.width, rates), seed)


GRID = ((8, 1), (5, 1), (3, 1), (2, 1), (1, 1), (1, 2), (1, 5))
CANDIDATES = ((0, 1), (0, 0, 1), (0, 0, 0, 0, 0, 1), (0, 1, 1))
"""Of trials: one, two and five steps of the critic to one of the generator, and the reverse of two to one."""


class Compiled(NamedTuple):
    """What all runs of the same sizes share."""

    data: Examples
    init: Any
    steps: dict[str, Any]
    sample: Any


@cache
def _build(examples: str, objective: str, width: int, learning_rates: tuple[float, float]) -> Compiled:
    """The networks and the compiled steps of each turn."""
    data = EXAMPLES[examples]()
    train_NI = jnp.asarray(data.train_NI)
    critic = Network((train_NI.shape[1], width, width, 1))
    generator = Network((NOISE_SIZE, width, width, train_NI.shape[1]))
    is_wasserstein = objective == "wasserstein"
    optimizer = alternating(
        {name: optax.adam(rate, b1=0.5, b2=0.9) for name, rate in zip(PLAYERS, learning_rates, strict=True)},
        dict(zip(PLAYERS, PLAYERS, strict=True)),
        turns=TURNS,
    )

    def score(params: jax.Array, digits_BI: jax.Array) -> jax.Array:
        return critic(params, digits_BI)[:, 0]

    def draw(params: jax.Array, noise_BZ: jax.Array) -> jax.Array:
        drawn_BI = generator(params, noise_BZ)
        return jnp.tanh(drawn_BI) if data.is_bounded else drawn_BI

    def critic_loss(params: Any, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        chosen, noise, mixing = jax.random.split(key, 3)
        real_BI = train_NI[jax.random.randint(chosen, (BATCH_SIZE,), 0, len(train_NI))]
        fake_BI = stop_gradient(draw(params["generator"], jax.random.normal(noise, (BATCH_SIZE, NOISE_SIZE))))
        real_B, fake_B = score(params["critic"], real_BI), score(params["critic"], fake_BI)
        if not is_wasserstein:
            return softplus(-real_B).mean() + softplus(fake_B).mean(), (real_B, fake_B)
        mix_B1 = jax.random.uniform(mixing, (BATCH_SIZE, 1))
        slopes_BI = jax.grad(lambda mixed_BI: score(params["critic"], mixed_BI).sum())(
            mix_B1 * real_BI + (1 - mix_B1) * fake_BI
        )
        norms_B = jnp.sqrt(jnp.square(slopes_BI).sum(axis=1) + 1e-12)
        loss = fake_B.mean() - real_B.mean() + PENALTY * jnp.square(norms_B - 1).mean()
        return loss, (real_B, fake_B)

    def generator_loss(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        fake_BI = draw(params["generator"], jax.random.normal(key, (BATCH_SIZE, NOISE_SIZE)))
        fake_B = score(stop_gradient(params["critic"]), fake_BI)
        return (-fake_B if is_wasserstein else softplus(-fake_B)).mean(), fake_B

    def critic_turn(params: Any, key: jax.Array, real_B: jax.Array) -> Any:
        loss, scores = critic_loss(params, key)
        return loss, scores

    def generator_turn(params: Any, key: jax.Array, real_B: jax.Array) -> Any:
        loss, fake_B = generator_loss(params, key)
        return loss, (real_B, fake_B)

    def both_turn(params: Any, key: jax.Array, real_B: jax.Array) -> Any:
        loss, scores = critic_loss(params, key)
        return loss + generator_loss(params, jax.random.fold_in(key, 1))[0], scores

    losses = {"critic": critic_turn, "generator": generator_turn, BOTH: both_turn}
    gradients = active_value_and_grad(
        losses, dict(zip(PLAYERS, PLAYERS, strict=True)), PLAYERS, turns=TURNS, has_aux=True
    )

    @partial(jax.jit, static_argnames="turn")
    def step(state: State, turn: str) -> tuple[State, jax.Array]:
        key, following = jax.random.split(state.key)
        (_, (real_B, fake_B)), grads = gradients(state.params, key, state.real_scores_B, active=turn)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params, active=turn)
        accuracy = (real_B[:, None] > fake_B).mean(dtype=jnp.float32)
        if is_wasserstein:
            seen = jnp.stack([fake_B.mean() - real_B.mean(), -fake_B.mean(), accuracy])
        else:
            of_critic = softplus(-real_B).mean() + softplus(fake_B).mean()
            seen = jnp.stack([of_critic, softplus(-fake_B).mean(), accuracy])
        return State(apply_updates(state.params, updates), optimizer_state, real_B, following), seen

    def init(seed: int) -> State:
        key, *keys = jax.random.split(jax.random.key(seed), 3)
        params = {"critic": critic.init(keys[0]), "generator": generator.init(keys[1])}
        return State(params, optimizer.init(params), jnp.zeros(BATCH_SIZE), key)

    noise_NZ = jax.random.normal(jax.random.key(1), (NUM_SAMPLES, NOISE_SIZE))
    sample = jax.jit(lambda state: draw(state.params["generator"], noise_NZ))
    return Compiled(data, init, {turn: partial(step, turn=turn) for turn in TURNS}, sample)


class Game:
    """One game."""

    players = PLAYERS
    costs = COSTS
    measuring_cost = NUM_SAMPLES / BATCH_SIZE / 6
    """Drawing the samples, which is a sixth of the work of a generator's step for each."""

    def __init__(self, compiled: Compiled, seed: int) -> None:
        self._compiled = compiled
        self._state: State = compiled.init(seed)

    def step(self, turn: str) -> Mapping[str, float]:
        """One step; the critic's loss is without the gradient penalty."""
        self._state, seen = self._compiled.steps[turn](self._state)
        return dict(zip((*PLAYERS, "accuracy"), np.asarray(seen).tolist(), strict=True))

    def look(self) -> tuple[float, float]:
        """Fréchet distances to held-out and to test examples."""
        drawn_NF, data = self._draw(), self._compiled.data
        return frechet_distance(drawn_NF, data.held_out_NF), frechet_distance(drawn_NF, data.test_NF)

    def held_out_losses(self) -> Sequence[float]:
        """Energy distances between groups of generated and of held-out examples, whose noise all candidates share."""
        parts = (np.array_split(each, GROUPS) for each in (self._draw(), self._compiled.data.held_out_NF))
        return [energy_distance(drawn, real) for drawn, real in zip(*parts, strict=True)]

    def _draw(self) -> np.ndarray:
        """Features of generated examples; their noise is always the same."""
        return self._compiled.data.features(np.asarray(self._compiled.sample(self._state)))

    def snapshot(self) -> State:
        """Nothing that is held in a state ever changes."""
        return self._state

    def restore(self, snapshot: State) -> None:
        """Go back."""
        self._state = snapshot


EXAMPLES = {"digits": digits, "ring": ring}
DOMAINS = (
    AdversarialNetworks(),
    AdversarialNetworks(examples="ring"),
    AdversarialNetworks(objective="logistic"),
)
