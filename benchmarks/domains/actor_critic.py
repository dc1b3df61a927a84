"""Actor and critic: how often should each train, when steps of the environment come with the updates?

TD3 (Fujimoto et al. 2018) on gymnasium's pendulum, small: an actor, and twin critics with slowly following targets, all
of two hidden layers. The environment makes a step per unit of updates, an update of the critics being one; DUTD alone
changes that. A tenth of the transitions is held out from training. The metric is the cost of an episode (its reward
without the sign): 150 is a pendulum that stands, 1,200 is what chance gets. Episodes that are held out begin in other
states than those of the test.

A rule is offered the *overfitting* of the critics: the mean of their squared errors on held-out transitions over that
on those which they train on, over the last measurements. `Trial` is measured by held-out episodes, which it pays for.

Shapes: B the batch, S observations, A actions, P parameters, E episodes.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient

from adapters.optax import active_value_and_grad, alternating, apply_updates
from alternator import Balance, Cycle, Gain, Plateau, RandomTenure, Trend, Trial

from ._domain import NUM_SEEDS, Arm, Outcome
from ._game import BOTH, Match, Schedule
from ._networks import Network, numpy_layers
from ._published_players import RandomShares

PLAYERS = ("critic", "actor")
TURNS = {"critic": ("critic",), "actor": ("actor",), BOTH: PLAYERS}
COSTS = {"critic": 1.0, "actor": 0.7, BOTH: 1.6}
GRID = ((8, 1), (4, 1), (2, 1), (1, 1), (1, 2), (1, 4))
CANDIDATES = ((0, 1), (0, 0, 1), (0, 0, 0, 0, 1), (0, 1, 1))
WATCH = False
MAX_ACTION, DISCOUNT, POLYAK = 2.0, 0.98, 0.02
EXPLORATION, SMOOTHING = 0.1, 0.2
"""Standard deviations of noise on actions, relative to the largest: on those taken, and on those that targets see."""
REWARD_SCALE = 0.1
OBSERVATION_SIZE, BATCH_SIZE, NUM_RANDOM_STEPS, EPISODE_LENGTH = 3, 128, 400, 200
ENVIRONMENT_COST, ERROR_COST = 0.1, 0.8
"""Of a step of the environment, and of measuring the critics' errors on two batches."""
MEASURE_EVERY = 10
"""Updates."""
DUTD_FACTOR, MAX_RATIO = 1.3, 4.0
HELD_OUT_SEEDS, TEST_SEEDS = range(10_000, 10_016), range(20_000, 20_024)


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
    num_looks: int = 15
    name: str = "actor-critic"
    question: str = "How often should the critics of TD3 train, and how often its actor?"
    metric: str = "cost of an episode"
    unit: str = "updates of the critics"
    higher_is_better: bool = False
    num_seeds: int = field(default=NUM_SEEDS, repr=False)
    has_signal: bool = False
    """None of five signals that training gives tells good ratios from bad ones, and held-out episodes cost too much."""

    def arms(self) -> Mapping[str, Arm]:
        """All ways to train the two."""
        fixed = {f"{critic}:{actor}": Schedule(rule=Cycle((critic, actor))) for critic, actor in GRID}
        published = Schedule(rule=None, signal="dutd")
        costs = (COSTS["critic"], COSTS["actor"])
        ours = {
            "Balance": Schedule(rule=Balance(low=0.5, high=1.5, of=0, above=1, below=0), signal="overfitting"),
            "Trial": Schedule(rule=Trial(candidates=CANDIDATES, costs=costs)),
            "Gain": Schedule(rule=Gain()),
            "Trend": Schedule(rule=Trend()),
            "Plateau": Schedule(rule=Plateau()),
        }
        return {
            "joint": Arm(kind="joint", setting=Schedule(rule=None)),
            **{name: Arm(kind="fixed", setting=setting) for name, setting in fixed.items()},
            "random": Arm(kind="random", setting=Schedule(rule=RandomTenure(5, seed=1))),
            "random 2:1": Arm(kind="random", setting=Schedule(rule=RandomShares(shares=(2, 1), seed=1))),
            "DUTD": Arm(kind="published", setting=published, note="Dorka et al. (2303.10144), on the critics' errors"),
            **{name: Arm(kind="ours", setting=setting) for name, setting in ours.items()},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        """Train within the budget."""
        schedule: Schedule = self.arms()[arm].setting
        return Match(self.game(schedule, seed), schedule, self.budget, self.num_looks).play()

    def game(self, schedule: Schedule, seed: int) -> "Game":
        """At its beginning."""
        rates = tuple(self.learning_rate * schedule.learning_rates.get(name, 1.0) for name in PLAYERS)
        return Game(
            _build(self.width, rates),
            seed,
            self.budget,
            watches=schedule.signal == "overfitting",
            adapts=schedule.signal == "dutd",
        )


class Compiled(NamedTuple):
    """What all runs of the same sizes share."""

    init: Any
    steps: dict[str, Any]
    critic_loss: Any
    actor_sizes: tuple[int, ...]


@cache
def _build(width: int, learning_rates: tuple[float, float]) -> Compiled:
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
        return loss, {"critic": loss}

    def actor_loss(params: Any, targets: Any, batch: Batch, key: jax.Array) -> Any:
        actions_BA = act(params["actor"], batch.observations_BS)

        loss = -value(stop_gradient(params["critic"][0]), batch.observations_BS, actions_BA).mean()
        return loss, {"actor": loss}

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

    @jax.jit
    def error(state: State, batch: Batch) -> jax.Array:
        return critic_loss(state.params, state.targets, batch, state.key)[0]

    return Compiled(init, {turn: partial(step, turn=turn) for turn in TURNS}, error, actor.sizes)


class Game:
    """One run's players, environment and experience.

    Args:
        compiled: The players.
        seed: Of the run.
        budget: What may be spent, for the capacity of the experience.
        watches: Whether the critics' overfitting is measured.
        adapts: Whether DUTD chooses the number of updates per step of the environment.
    """

    players = PLAYERS
    measuring_cost = len(HELD_OUT_SEEDS) * EPISODE_LENGTH * ENVIRONMENT_COST

    def __init__(
        self, compiled: Compiled, seed: int, budget: float, *, watches: bool = False, adapts: bool = False
    ) -> None:
        self._compiled, self._watches, self._adapts = compiled, watches, adapts
        self._state: State = compiled.init(seed)
        self._random = np.random.default_rng(seed)
        self._environment = gymnasium.make("Pendulum-v1").unwrapped
        self._observation_S, _ = self._environment.reset(seed=seed)
        self._experience, self._held_out = (Experience(capacity=int(budget * MAX_RATIO) + 1000) for _ in range(2))
        self._num_explored, self._due = 0, float(NUM_RANDOM_STEPS)
        self._num_updates = 0
        self._ratio, self._error = 1.0, float("inf")
        self._errors = {which: deque[float](maxlen=10) for which in ("training", "held out")}
        self._layers = self._read_actor()

    @property
    def costs(self) -> Mapping[str, float]:
        """Of updates, of the steps of the environment that come with them, and of what is measured."""
        measured = ERROR_COST / MEASURE_EVERY if self._watches or self._adapts else 0.0
        return {turn: cost * (1 + ENVIRONMENT_COST / self._ratio) + measured for turn, cost in COSTS.items()}

    def step(self, turn: str) -> Mapping[str, float]:
        """Steps of the environment, as many as come with the update, and the update."""
        while self._num_explored < self._due:
            self._explore()
        self._due += COSTS[turn] / self._ratio
        self._state, seen = self._compiled.steps[turn](self._state, self._experience.sample(self._random))
        self._num_updates += 1
        if turn != "critic":
            self._layers = self._read_actor()
        measures = (self._watches or self._adapts) and self._num_updates % MEASURE_EVERY == 0
        return {**{name: float(each) for name, each in seen.items()}, **(self._measure() if measures else {})}

    def _measure(self) -> Mapping[str, float]:
        """The critics' overfitting."""
        for name, experience in (("training", self._experience), ("held out", self._held_out)):
            batch = experience.sample(self._random)
            self._errors[name].append(float(self._compiled.critic_loss(self._state, batch)))
        training, held_out = (sum(errors) / len(errors) for errors in self._errors.values())
        if self._adapts and self._num_updates % (10 * MEASURE_EVERY) == 0:
            factor = DUTD_FACTOR if held_out < self._error else 1 / DUTD_FACTOR
            self._ratio, self._error = min(max(self._ratio * factor, 1 / MAX_RATIO), MAX_RATIO), held_out
        return {"overfitting": held_out / training}

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
        """A step of the environment; every tenth is held out."""
        if self._num_explored < NUM_RANDOM_STEPS:
            action_A = self._random.uniform(-MAX_ACTION, MAX_ACTION, 1)
        else:
            noise = EXPLORATION * MAX_ACTION * self._random.standard_normal(1)
            action_A = np.clip(self._act(self._observation_S) + noise, -MAX_ACTION, MAX_ACTION)
        following_S, reward, *_ = self._environment.step(action_A.astype(np.float32))
        self._num_explored += 1
        experience = self._experience if self._num_explored % 10 else self._held_out
        experience.add(self._observation_S, action_A, REWARD_SCALE * float(reward), following_S)
        is_over = self._num_explored % EPISODE_LENGTH == 0
        self._observation_S = self._environment.reset()[0] if is_over else following_S

    def _play(self, seeds: Sequence[int]) -> np.ndarray:
        """What an episode from each of these beginnings costs."""
        environments = [gymnasium.make("Pendulum-v1").unwrapped for _ in seeds]
        observations_ES = np.stack([each.reset(seed=seed)[0] for each, seed in zip(environments, seeds, strict=True)])
        costs_E = np.zeros(len(seeds))
        for _ in range(EPISODE_LENGTH):
            actions_EA = self._act(observations_ES)
            steps = [each.step(action_A) for each, action_A in zip(environments, actions_EA, strict=True)]
            observations_ES = np.stack([each[0] for each in steps])
            costs_E -= [float(each[1]) for each in steps]
        return costs_E


class Experience:
    """Transitions.

    Args:
        capacity: The maximum number of them.
    """

    def __init__(self, capacity: int) -> None:
        shapes = ((OBSERVATION_SIZE,), (1,), (), (OBSERVATION_SIZE,))
        self._columns = Batch(*(np.zeros((capacity, *shape), np.float32) for shape in shapes))
        self.size = 0

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
