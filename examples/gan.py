"""A GAN on one-dimensional data: the frozen network needs no detach(), and is not even in the graph where it can be.

Run: python examples/gan.py
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle

TRUE_MEAN, TRUE_STD = 4.0, 0.5


def main(num_steps: int = 1000) -> dict[str, float]:
    """Learn a normal distribution; returns mean and spread of what is generated, before and after."""
    torch.set_num_threads(1)  # networks this small are faster so
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    critic = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
    modules = {"generator": generator, "critic": critic}
    optimizers = {
        name: torch.optim.Adam(module.parameters(), lr=5e-3, betas=(0.5, 0.9)) for name, module in modules.items()
    }
    # Two critic steps for each of the generator. A loss against another player is no progress, so no rule that watches
    # losses fits here.
    alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle((1, 2))), modules, optimizers)

    before = sample(generator, 2000)
    for _ in range(num_steps):
        if alternating.active == "critic":
            loss = critic_loss(critic, real(128), sample(generator, 128))
        else:
            loss = softplus(-critic(sample(generator, 128))).mean()
        alternating.step(loss)

    after = sample(generator, 2000)
    return {
        "mean_before": before.mean().item(),
        "mean_after": after.mean().item(),
        "std_after": after.std().item(),
        "critic_share": alternating.alternator.stats().modules["critic"].training_ratio,
    }


def critic_loss(critic: nn.Module, real_B1: Tensor, fake_B1: Tensor) -> Tensor:
    """The logistic loss with the gradient penalty on real data (R1, Mescheder et al. 2018)."""
    real_B1.requires_grad_(True)
    scores_B1 = critic(real_B1)
    (slopes_B1,) = torch.autograd.grad(scores_B1.sum(), real_B1, create_graph=True)
    return (softplus(-scores_B1) + softplus(critic(fake_B1)) + 0.5 * slopes_B1.square()).mean()


def real(size: int) -> Tensor:
    """Samples of the true distribution."""
    return TRUE_MEAN + TRUE_STD * torch.randn(size, 1)


def sample(generator: nn.Module, size: int) -> Tensor:
    """Generated samples."""
    return generator(torch.randn(size, 4))


if __name__ == "__main__":
    result = main()
    print(result)
