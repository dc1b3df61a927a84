"""Proximal policy optimization (Schulman et al. 2017) on the cart and pole of gymnasium.

Actor and critic are networks of their own, each with its optimizer, its learning rate and its epochs over the collected
steps: first the actor's, then the critic's, which may be more.
"""

from typing import NamedTuple

import gymnasium
import torch
from torch import Tensor, nn

NUM_ENVIRONMENTS, HORIZON = 8, 64
ACTOR_EPOCHS, CRITIC_EPOCHS, NUM_BATCHES = 4, 8, 4
DISCOUNT, LAMBDA, CLIP, ENTROPY_WEIGHT = 0.99, 0.95, 0.2, 0.01


class Steps(NamedTuple):
    """What N collected steps have shown."""

    observations_NS: Tensor
    actions_N: Tensor
    log_probs_N: Tensor
    advantages_N: Tensor
    returns_N: Tensor


def train(num_steps: int = 60) -> dict[str, nn.Module]:
    """Train for a number of collections."""
    torch.manual_seed(0)
    actor, critic = mlp(4, 2), mlp(4, 1)
    optimizer_a = torch.optim.Adam(actor.parameters(), lr=1e-3)
    optimizer_c = torch.optim.Adam(critic.parameters(), lr=2e-3)
    environments = gymnasium.make_vec("CartPole-v1", NUM_ENVIRONMENTS, vectorization_mode="sync")
    observations, _ = environments.reset(seed=0)

    for _ in range(num_steps):
        steps, observations = collect(environments, observations, actor, critic)
        for batch in batches(steps, ACTOR_EPOCHS):
            loss = actor_loss(actor, batch)
            optimizer_a.zero_grad()
            loss.backward()
            optimizer_a.step()
        for batch in batches(steps, CRITIC_EPOCHS):
            loss = (critic(batch.observations_NS).squeeze(1) - batch.returns_N).square().mean()
            optimizer_c.zero_grad()
            loss.backward()
            optimizer_c.step()
    return {"actor": actor, "critic": critic}


def actor_loss(actor: nn.Module, batch: Steps) -> Tensor:
    """The clipped objective, and a reward for entropy."""
    policy = torch.distributions.Categorical(logits=actor(batch.observations_NS))
    ratios_N = (policy.log_prob(batch.actions_N) - batch.log_probs_N).exp()
    clipped_N = ratios_N.clamp(1 - CLIP, 1 + CLIP)
    gains_N = torch.minimum(ratios_N * batch.advantages_N, clipped_N * batch.advantages_N)
    return -(gains_N + ENTROPY_WEIGHT * policy.entropy()).mean()


def batches(steps: Steps, num_epochs: int) -> list[Steps]:
    """Each step once per epoch."""
    places = [torch.randperm(len(steps.actions_N)).chunk(NUM_BATCHES) for _ in range(num_epochs)]
    return [Steps(*(column[places_N] for column in steps)) for epoch in places for places_N in epoch]


@torch.no_grad()
def collect(
    environments: gymnasium.vector.VectorEnv, observations: object, actor: nn.Module, critic: nn.Module
) -> tuple[Steps, object]:
    """Play for `HORIZON` steps; advantages are generalized ones. The step that starts an episode anew is no step."""
    rows, is_over = [], torch.zeros(NUM_ENVIRONMENTS)
    for _ in range(HORIZON):
        observations_ES = torch.as_tensor(observations)
        policy = torch.distributions.Categorical(logits=actor(observations_ES))
        actions_E = policy.sample()
        observations, rewards, ended, cut, _ = environments.step(actions_E.numpy())
        values_E, was_over = critic(observations_ES).squeeze(1), is_over
        is_over = torch.as_tensor(ended | cut).float()
        rewards_E = torch.as_tensor(rewards, dtype=torch.float32)
        rows.append((observations_ES, actions_E, policy.log_prob(actions_E), values_E, rewards_E, is_over, was_over))
    observations_TES, actions_TE, log_probs_TE, values_TE, rewards_TE, over_TE, resets_TE = map(
        torch.stack, zip(*rows, strict=True)
    )
    following_TE = torch.cat([values_TE[1:], critic(torch.as_tensor(observations)).T])
    errors_TE = rewards_TE + DISCOUNT * following_TE * (1 - over_TE) - values_TE
    advantages_TE, advantage_E = torch.zeros_like(errors_TE), torch.zeros(NUM_ENVIRONMENTS)
    for step in reversed(range(HORIZON)):
        advantage_E = errors_TE[step] + DISCOUNT * LAMBDA * (1 - over_TE[step]) * advantage_E
        advantages_TE[step] = advantage_E
    columns = (observations_TES, actions_TE, log_probs_TE, advantages_TE, advantages_TE + values_TE)
    kept = resets_TE == 0
    steps = Steps(*(column[kept] for column in columns))
    advantages_N = (steps.advantages_N - steps.advantages_N.mean()) / steps.advantages_N.std()
    return steps._replace(advantages_N=advantages_N), observations


def mlp(in_features: int, out_features: int, width: int = 64) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(in_features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_features)
    )


@torch.no_grad()
def evaluate(actor: nn.Module, num_episodes: int = 10) -> float:
    """The mean length of an episode; 500 is best."""
    environment, total = gymnasium.make("CartPole-v1"), 0
    for episode in range(num_episodes):
        observation, is_over = environment.reset(seed=1000 + episode)[0], False
        while not is_over:
            logits_A = actor(torch.as_tensor(observation))
            observation, _, ended, cut, _ = environment.step(int(logits_A.argmax()))
            is_over = ended or cut
            total += 1
    return total / num_episodes


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("length before", evaluate(train(0)["actor"]))
    print("length after", evaluate(train()["actor"]))
