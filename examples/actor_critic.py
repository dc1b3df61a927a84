"""Actor and critic on a shared body: they take turns, the body trains in every step.

A corridor of seven cells, the reward at the right end, a cost for each step. Two steps of the
critic, then one of the actor.

Run: python examples/actor_critic.py
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle

NUM_CELLS = 7
EPISODE_STEPS = 12
DISCOUNT = 0.95


class Episodes(NamedTuple):
    """A batch of B episodes of T steps."""

    log_probabilities_TB: Tensor
    entropies_TB: Tensor
    values_TB: Tensor
    rewards_TB: Tensor
    alive_TB: Tensor


def main(num_steps: int = 100) -> dict[str, float]:
    """Learn to walk to the right; returns the mean return before and after, and how the steps were shared."""
    torch.set_num_threads(1)  # networks this small are faster so
    torch.manual_seed(0)
    body = nn.Sequential(nn.Embedding(NUM_CELLS, 16), nn.Tanh())
    modules = {"critic": nn.Linear(16, 1), "actor": nn.Linear(16, 2)}
    optimizers = {name: torch.optim.Adam(module.parameters(), lr=0.05) for name, module in modules.items()}
    # The loss of either moves with the other's policy or values: no progress, so no rule that watches losses can say
    # who should train.
    alternating = AlternatingOptimizer(
        Alternator(modules, rule=Cycle((2, 1))),
        modules,
        optimizers,
        always=(body, torch.optim.Adam(body.parameters(), lr=0.01)),
        clip_norm=1.0,
    )

    before = mean_return(body, modules)
    for _ in range(num_steps):
        losses = losses_of(play(body, modules, 64))
        alternating.step(losses[alternating.active], losses)

    stats = alternating.alternator.stats()
    return {
        "return_before": before,
        "return_after": mean_return(body, modules),
        "switches": stats.switch_count,
        "actor_share": stats.modules["actor"].training_ratio,
    }


def play(body: nn.Module, heads: dict[str, nn.Linear], num_episodes: int) -> Episodes:
    """Walk from the middle of the corridor until its right end or for `EPISODE_STEPS`."""
    cells_B = torch.full((num_episodes,), NUM_CELLS // 2)
    alive_B = torch.ones(num_episodes)
    records = []
    for _ in range(EPISODE_STEPS):
        features_BD = body(cells_B)
        log_policy_BA = heads["actor"](features_BD).log_softmax(dim=1)
        actions_B = log_policy_BA.detach().exp().multinomial(1).squeeze(1)
        values_B = heads["critic"](features_BD).squeeze(1)
        log_probabilities_B = log_policy_BA.gather(1, actions_B[:, None]).squeeze(1)
        entropies_B = -(log_policy_BA.exp() * log_policy_BA).sum(dim=1)
        cells_B = (cells_B + 2 * actions_B - 1).clamp(0, NUM_CELLS - 1)
        arrived_B = (cells_B == NUM_CELLS - 1).float()
        rewards_B = alive_B * (arrived_B - 0.05)
        records.append((log_probabilities_B, entropies_B, values_B, rewards_B, alive_B))
        alive_B = alive_B * (1 - arrived_B)
    return Episodes(*(torch.stack(column) for column in zip(*records, strict=True)))


def losses_of(episodes: Episodes) -> dict[str, Tensor]:
    """Squared error of the values, and the policy gradient with the values as baseline."""
    returns_TB = torch.zeros_like(episodes.rewards_TB)
    following_B = torch.zeros_like(episodes.rewards_TB[0])
    for step in reversed(range(EPISODE_STEPS)):
        following_B = episodes.rewards_TB[step] + DISCOUNT * following_B
        returns_TB[step] = following_B
    alive_TB, size = episodes.alive_TB, episodes.alive_TB.sum()
    advantages_TB = returns_TB - episodes.values_TB
    gain = advantages_TB.detach() * episodes.log_probabilities_TB + 0.01 * episodes.entropies_TB
    return {
        "critic": (advantages_TB.square() * alive_TB).sum() / size,
        "actor": -(gain * alive_TB).sum() / size,
    }


def mean_return(body: nn.Module, heads: dict[str, nn.Linear]) -> float:
    """Mean undiscounted return."""
    with torch.no_grad():
        return play(body, heads, 256).rewards_TB.sum(dim=0).mean().item()


if __name__ == "__main__":
    result = main()
    print(result)
