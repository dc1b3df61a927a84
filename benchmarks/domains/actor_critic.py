"""Actor and critic: how often should each train, when steps of the environment come with the updates?

TD3 (Fujimoto et al. 2018) on gymnasium's pendulum, small: an actor, and twin critics with slowly following targets, all
of two hidden layers. A unit of cost is an update of the critics; the environment makes a step per unit, so that all
arms but DUTD are equal in updates and in experience. The metric is the cost of an episode (its reward without the
sign): 150 is a pendulum that stands, 1,200 is what chance gets. Episodes that are held out begin in other states than
those of the test.

Shapes: B the batch, S observations, A actions, P parameters, E episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient

from adapters.optax import active_value_and_grad, alternating, apply_updates
from alternator import Balance, Cycle, Gain, Plateau, RandomTenure, Trend

from ._domain import Arm, Outcome
from ._game import BOTH, Match, Schedule
from ._networks import Network, numpy_layers
from ._published_players import RandomShares

PLAYERS = ("critic", "actor")
TURNS = {"critic": ("critic",), "actor": ("actor",), BOTH: PLAYERS}
COSTS = {"critic": 1.0, "actor": 0.7, BOTH: 1.6}
GRID = ((8, 1), (4, 1), (2, 1), (1, 1), (1, 2), (1, 4))
WATCH = False
MAX_ACTION, DISCOUNT, POLYAK = 2.0, 0.98, 0.02
EXPLORATION, SMOOTHING = 0.1, 0.2
"""Standard deviations of noise on actions, relative to the largest: on those taken, and on those that targets see."""
REWARD_SCALE = 0.1
OBSERVATION_SIZE, BATCH_SIZE, NUM_RANDOM_STEPS, EPISODE_LENGTH = 3, 128, 400, 200
HELD_OUT_SEEDS, TEST_SEEDS = range(10_000, 10_016), range(20_000, 20_040)


class Batch(NamedTuple):
    """Transitions; the pendulum never ends."""

    observations_BS: Any
    actions_BA: Any
    rewards_B: Any
    following_BS: Any


class State(NamedTuple):
    """Of the players."""

    params: dict[str, jax.Array]
    targets: dict[str, jax.Array]
    optimizer: Any
    key: jax.Array


@dataclass(frozen=True, kw_only=True)
class ActorCritic:
    """The domain."""

    budget: float = 4500.0
    width: int = 64
    learning_rate: float = 2e-3
    num_looks: int = 20
    name: str = "actor-critic"
    question: str = "How often should the critics of TD3 train, and how often its actor?"
    metric: str = "cost of an episode"
    unit: str = "updates of the critics"
    higher_is_better: bool = False
    has_signal: bool = True

    def arms(self) -> Mapping[str, Arm]:
        """All ways to train the two."""
        fixed = {f"{critic}:{actor}": Schedule(rule=Cycle((critic, actor))) for critic, actor in GRID}
        ours = {
            "Balance": Schedule(rule=Balance(of=0, above=1, below=0), signal="agreement"),
            "Gain": Schedule(rule=Gain()),
            "Trend": Schedule(rule=Trend()),
            "Plateau": Schedule(rule=Plateau()),
        }
        return {
            "joint": Arm(kind="joint", setting=Schedule(rule=None)),
            **{name: Arm(kind="fixed", setting=setting) for name, setting in fixed.items()},
            "random": Arm(kind="random", setting=Schedule(rule=RandomTenure(5, seed=1))),
            "random 2:1": Arm(kind="random", setting=Schedule(rule=RandomShares(shares=(2, 1), seed=1))),
            **{name: Arm(kind="ours", setting=setting) for name, setting in ours.items()},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        """Train within the budget."""
        schedule: Schedule = self.arms()[arm].setting
        return Match(self.game(schedule, seed), schedule, self.budget, self.num_looks).play()

    def game(self, schedule: Schedule, seed: int) -> "Game":
        """At its beginning."""
        rates = tuple(self.learning_rate * schedule.learning_rates.get(name, 1.0) for name in PLAYERS)
        return Game(_build(self.width, rates, WATCH or schedule.signal == "agreement"), seed, self.budget)


class Compiled(NamedTuple):
    """What all runs of the same sizes share."""

    init: Any
    steps: dict[str, Any]
    actor_sizes: tuple[int, ...]


@cache
def _build(width: int, learning_rates: tuple[float, float], watches: bool) -> Compiled:
    """The networks and the compiled steps of each turn."""
    actor = Network((OBSERVATION_SIZE, width, width, 1), jax.nn.relu)
    critic = Network((OBSERVATION_SIZE + 1, width, width, 1), jax.nn.relu)
    optimizer = alternating(
        {name: optax.adam(rate) for name, rate in zip(PLAYERS, learning_rates, strict=True)},
        dict(zip(PLAYERS, PLAYERS, strict=True)),
        turns=TURNS,
    )

    def act(params: jax.Array, observations_BS: jax.Array) -> jax.Array:
        return MAX_ACTION * jnp.tanh(actor(params, observations_BS))

    def value(params_P: jax.Array, observations_BS: jax.Array, actions_BA: jax.Array) -> jax.Array:
        return critic(params_P, jnp.concatenate([observations_BS, actions_BA], axis=1))[:, 0]

    def target(targets: Any, batch: Batch, key: jax.Array) -> jax.Array:
        noise_BA = SMOOTHING * MAX_ACTION * jax.random.normal(key, batch.actions_BA.shape)
        actions_BA = act(targets["actor"], batch.following_BS) + noise_BA.clip(-1, 1)
        actions_BA = actions_BA.clip(-MAX_ACTION, MAX_ACTION)
        values_2B = jnp.stack([value(each, batch.following_BS, actions_BA) for each in targets["critic"]])
        return batch.rewards_B + DISCOUNT * values_2B.min(axis=0)

    def critic_loss(params: Any, targets: Any, batch: Batch, key: jax.Array) -> Any:
        target_B = stop_gradient(target(targets, batch, key))
        values_2B = jnp.stack([value(each, batch.observations_BS, batch.actions_BA) for each in params["critic"]])
        loss = jnp.square(values_2B - target_B).mean()
        return loss, {"critic": loss, "unexplained": loss / target_B.var()}

    def actor_loss(params: Any, targets: Any, batch: Batch, key: jax.Array) -> Any:
        actions_BA = act(params["actor"], batch.observations_BS)

        loss = -value(stop_gradient(params["critic"][0]), batch.observations_BS, actions_BA).mean()
        return loss, {"actor": loss, **(agreement(params, batch, actions_BA, key) if watches else {})}

    def agreement(params: Any, batch: Batch, actions_BA: jax.Array, key: jax.Array) -> Any:
        others_BA = jax.random.uniform(key, actions_BA.shape, minval=-MAX_ACTION, maxval=MAX_ACTION)
        better_2B = jnp.stack(
            [
                value(each, batch.observations_BS, actions_BA) > value(each, batch.observations_BS, others_BA)
                for each in params["critic"]
            ]
        )
        return {
            "agreement": (better_2B[0] == better_2B[1]).mean(dtype=jnp.float32),
            "better": better_2B.mean(dtype=jnp.float32),
        }

    def both_loss(params: Any, targets: Any, batch: Batch, key: jax.Array) -> Any:
        critic_part, seen = critic_loss(params, targets, batch, key)
        actor_part, also_seen = actor_loss(params, targets, batch, key)
        return critic_part + actor_part, {**seen, **also_seen}

    gradients = active_value_and_grad(
        {"critic": critic_loss, "actor": actor_loss, BOTH: both_loss},
        dict(zip(PLAYERS, PLAYERS, strict=True)),
        PLAYERS,
        turns=TURNS,
        has_aux=True,
    )

    @partial(jax.jit, static_argnames="turn")
    def step(state: State, batch: Batch, turn: str) -> tuple[State, Mapping[str, jax.Array]]:
        key, following = jax.random.split(state.key)
        (_, seen), grads = gradients(state.params, state.targets, batch, key, active=turn)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params, active=turn)
        params, targets = apply_updates(state.params, updates), state.targets
        if turn != "actor":
            targets = jax.tree.map(lambda slow, fast: slow + POLYAK * (fast - slow), targets, params)
        return State(params, targets, optimizer_state, following), seen

    def init(seed: int) -> State:
        key, *keys = jax.random.split(jax.random.key(seed), 4)
        params = {"critic": jnp.stack([critic.init(each) for each in keys[:2]]), "actor": actor.init(keys[2])}
        return State(params, params, optimizer.init(params), key)

    return Compiled(init, {turn: partial(step, turn=turn) for turn in TURNS}, actor.sizes)


class Game:
    """One run's players, environment and experience."""

    players = PLAYERS
    costs = COSTS
    measuring_cost = float("inf")
    """There is no cheap measure of a policy."""

    def __init__(self, compiled: Compiled, seed: int, budget: float) -> None:
        self._compiled, self._seed = compiled, seed
        self._state: State = compiled.init(seed)
        self._random = np.random.default_rng(seed)
        self._environment = gymnasium.make("Pendulum-v1").unwrapped
        self._observation_S, _ = self._environment.reset(seed=seed)
        self._experience = Experience.empty(int(budget) + NUM_RANDOM_STEPS + 10)
        self._due = float(NUM_RANDOM_STEPS)
        self._layers = self._read_actor()

    def step(self, turn: str) -> Mapping[str, float]:
        """Steps of the environment, as many as the update costs, and the update."""
        while self._experience.size < self._due:
            self._explore()
        self._due += COSTS[turn]
        self._state, seen = self._compiled.steps[turn](self._state, self._experience.sample(self._random))
        if turn != "critic":
            self._layers = self._read_actor()
        return {name: float(each) for name, each in seen.items()}

    def look(self) -> tuple[float, float]:
        """The cost of an episode, held out and in the test."""
        costs_E = self._play([*HELD_OUT_SEEDS, *TEST_SEEDS])
        return float(costs_E[: len(HELD_OUT_SEEDS)].mean()), float(costs_E[len(HELD_OUT_SEEDS) :].mean())

    def held_out_losses(self) -> Sequence[float]:
        """The cost of each held-out episode."""
        return self._play(HELD_OUT_SEEDS).tolist()

    def snapshot(self) -> State:
        """The players; what has been experienced stays."""
        return self._state

    def restore(self, snapshot: State) -> None:
        """Go back."""
        self._state = snapshot
        self._layers = self._read_actor()

    def _read_actor(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return numpy_layers(np.asarray(self._state.params["actor"]), self._compiled.actor_sizes)

    def _act(self, observations_BS: np.ndarray) -> np.ndarray:
        hidden = observations_BS
        for weights, biases in self._layers[:-1]:
            hidden = np.maximum(hidden @ weights + biases, 0)
        weights, biases = self._layers[-1]
        return MAX_ACTION * np.tanh(hidden @ weights + biases)

    def _explore(self) -> None:
        """A step of the environment."""
        if self._experience.size < NUM_RANDOM_STEPS:
            action_A = self._random.uniform(-MAX_ACTION, MAX_ACTION, 1)
        else:
            noise = EXPLORATION * MAX_ACTION * self._random.standard_normal(1)
            action_A = np.clip(self._act(self._observation_S) + noise, -MAX_ACTION, MAX_ACTION)
        following_S, reward, *_ = self._environment.step(action_A.astype(np.float32))
        self._experience.add(self._observation_S, action_A, REWARD_SCALE * reward, following_S)
        over = self._experience.size % EPISODE_LENGTH == 0
        self._observation_S = self._environment.reset()[0] if over else following_S

    def _play(self, seeds: Sequence[int]) -> np.ndarray:
        """What an episode from each of these beginnings costs."""
        environments = [gymnasium.make("Pendulum-v1").unwrapped for _ in seeds]
        observations_ES = np.stack([each.reset(seed=seed)[0] for each, seed in zip(environments, seeds, strict=True)])
        costs_E = np.zeros(len(seeds))
        for _ in range(EPISODE_LENGTH):
            actions_EA = self._act(observations_ES)
            steps = [each.step(action_A) for each, action_A in zip(environments, actions_EA, strict=True)]
            observations_ES = np.stack([each[0] for each in steps])
            costs_E -= [each[1] for each in steps]
        return costs_E


class Experience:
    """All transitions so far."""

    def __init__(self, columns: Batch) -> None:
        self._columns = columns
        self.size = 0

    @classmethod
    def empty(cls, capacity: int) -> "Experience":
        """For that many at most."""
        shapes = ((OBSERVATION_SIZE,), (1,), (), (OBSERVATION_SIZE,))
        return cls(Batch(*(np.zeros((capacity, *shape), np.float32) for shape in shapes)))

    def add(self, *transition: Any) -> None:
        """One more."""
        for column, value in zip(self._columns, transition, strict=True):
            column[self.size] = value
        self.size += 1

    def sample(self, random: np.random.Generator) -> Batch:
        """A batch."""
        places_B = random.integers(self.size, size=BATCH_SIZE)
        return Batch(*(column[places_B] for column in self._columns))


DOMAINS = (ActorCritic(),)
