"""Soft actor-critic (Haarnoja et al. 2018, with a learned temperature) on the pendulum of gymnasium.

Twin critics with slowly following targets, an actor that bounds its actions by tanh, and the logarithm of the
temperature as a tensor of its own.
"""

import copy
from typing import NamedTuple

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle

SIZE, ACTION_SIZE, ACTION_SCALE = 3, 1, 2.0
BATCH_SIZE, START_STEPS, BUFFER_SIZE = 256, 200, 20_000
DISCOUNT, POLYAK = 0.99, 0.01


class Batch(NamedTuple):
    """Transitions; the pendulum never ends, so there is no flag."""

    observations_BS: Tensor
    actions_BA: Tensor
    rewards_B: Tensor
    following_BS: Tensor


class Actor(nn.Module):
    """A normal distribution, squashed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(SIZE, 2 * ACTION_SIZE)

    def forward(self, observations_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of shape (B, A) and their log probabilities of shape (B)."""
        mean_BA, log_std_BA = self.layers(observations_BS).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean_BA, log_std_BA.clamp(-5, 2).exp())
        raw_BA = normal.rsample()
        log_slopes_BA = 2 * (0.6931 - raw_BA - softplus(-2 * raw_BA))  # of tanh
        return ACTION_SCALE * raw_BA.tanh(), (normal.log_prob(raw_BA) - log_slopes_BA).sum(dim=-1)


class Critics(nn.Module):
    """Two estimates of the value of an action."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(SIZE + ACTION_SIZE, 1), mlp(SIZE + ACTION_SIZE, 1)

    def forward(self, observations_BS: Tensor, actions_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Values of shape (B) each."""
        inputs = torch.cat([observations_BS, actions_BA], dim=1)
        return self.first(inputs).squeeze(1), self.second(inputs).squeeze(1)


class Replay:
    """The newest transitions."""

    def __init__(self) -> None:
        self.columns = Batch(*(torch.zeros(BUFFER_SIZE, *shape) for shape in ((SIZE,), (ACTION_SIZE,), (), (SIZE,))))
        self.size = 0

    def add(self, *transition: object) -> None:
        """One transition."""
        for column, value in zip(self.columns, transition, strict=True):
            column[self.size % BUFFER_SIZE] = torch.as_tensor(value, dtype=torch.float32)
        self.size += 1

    def sample(self) -> Batch:
        """A batch."""
        places_B = torch.randint(min(self.size, BUFFER_SIZE), (BATCH_SIZE,))
        return Batch(*(column[places_B] for column in self.columns))


def train(num_steps: int = 2500) -> dict[str, nn.Module | Tensor]:
    """Train for a number of updates, one per step of the environment after the first steps, which are random."""
    torch.manual_seed(0)
    actor, critics = Actor(), Critics()
    targets = copy.deepcopy(critics).requires_grad_(False)
    log_alpha = torch.zeros((), requires_grad=True)
    optimizer_a = torch.optim.Adam(actor.parameters(), lr=1e-3)
    optimizer_c = torch.optim.Adam(critics.parameters(), lr=1e-3)
    optimizer_t = torch.optim.Adam([log_alpha], lr=1e-3)
    modules = {"critics": critics, "actor": actor, "temperature": log_alpha}
    optimizers = {"critics": optimizer_c, "actor": optimizer_a, "temperature": optimizer_t}
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(1)), modules, optimizers)
    environment, replay = gymnasium.make("Pendulum-v1"), Replay()
    observation, _ = environment.reset(seed=0)

    for step in range(START_STEPS + num_steps):
        with torch.no_grad():
            action_A = 4 * torch.rand(1) - 2 if step < START_STEPS else actor(torch.as_tensor(observation))[0]
        following, reward, _, is_over, _ = environment.step(action_A.numpy())
        replay.add(observation, action_A, reward, following)
        observation = environment.reset()[0] if is_over else following
        if step < START_STEPS:
            continue

        batch, alpha = replay.sample(), log_alpha.exp().detach()
        loss = critic_loss(actor, critics, targets, alpha, batch)
        alternating.step(loss)

        actions_BA, log_probs_B = actor(batch.observations_BS)
        loss = (alpha * log_probs_B - torch.minimum(*critics(batch.observations_BS, actions_BA))).mean()
        alternating.step(loss)

        loss = -log_alpha.exp() * (log_probs_B.detach() - ACTION_SIZE).mean()
        alternating.step(loss)

        for target, parameter in zip(targets.parameters(), critics.parameters(), strict=True):
            target.data.lerp_(parameter.data, POLYAK)
    return {"critics": critics, "actor": actor, "temperature": log_alpha}


def critic_loss(actor: nn.Module, critics: nn.Module, targets: nn.Module, alpha: Tensor, batch: Batch) -> Tensor:
    """The squared error of both critics against the soft value of what follows."""
    with torch.no_grad():
        actions_BA, log_probs_B = actor(batch.following_BS)
        following_B = torch.minimum(*targets(batch.following_BS, actions_BA)) - alpha * log_probs_B
        values_B = batch.rewards_B + DISCOUNT * following_B
    return sum(mse_loss(each, values_B) for each in critics(batch.observations_BS, batch.actions_BA))


def mlp(in_features: int, out_features: int, width: int = 256) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out_features)
    )


@torch.no_grad()
def evaluate(actor: nn.Module, num_episodes: int = 10) -> float:
    """The mean return of an episode; 0 is best, and -1200 is what chance gets."""
    environment, total = gymnasium.make("Pendulum-v1"), 0.0
    for episode in range(num_episodes):
        observation, is_over = environment.reset(seed=1000 + episode)[0], False
        while not is_over:
            action_A = actor(torch.as_tensor(observation))[0]
            observation, reward, _, is_over, _ = environment.step(action_A.numpy())
            total += float(reward)
    return total / num_episodes


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("return before", evaluate(train(0)["actor"]))
    print("return after", evaluate(train()["actor"]))
