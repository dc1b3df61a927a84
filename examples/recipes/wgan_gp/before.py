"""WGAN-GP (Gulrajani et al. 2017, algorithm 1) on a ring of eight normal distributions.

Five critic steps with the gradient penalty to one of the generator.
"""

import math

import torch
from torch import Tensor, nn

NUM_MODES, RADIUS, STD = 8, 2.0, 0.1
BATCH_SIZE, NOISE_DIM = 128, 8
N_CRITIC, PENALTY = 5, 1.0


def train(num_steps: int = 1500) -> dict[str, nn.Module]:
    """Train for a number of critic steps."""
    torch.manual_seed(0)
    generator, critic = mlp(NOISE_DIM, 2), mlp(2, 1)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    optimizer_c = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))

    for step in range(num_steps):
        fake_B2 = generator(torch.randn(BATCH_SIZE, NOISE_DIM)).detach()
        loss = critic_loss(critic, sample_ring(BATCH_SIZE), fake_B2)
        optimizer_c.zero_grad()
        loss.backward()
        optimizer_c.step()

        if step % N_CRITIC == N_CRITIC - 1:
            loss = -critic(generator(torch.randn(BATCH_SIZE, NOISE_DIM))).mean()
            optimizer_g.zero_grad()
            loss.backward()
            optimizer_g.step()
    return {"generator": generator, "critic": critic}


def critic_loss(critic: nn.Module, real_B2: Tensor, fake_B2: Tensor) -> Tensor:
    """The Wasserstein estimate, and the penalty on slopes other than 1 between real and fake samples."""
    mix_B1 = torch.rand(len(real_B2), 1)
    between_B2 = (mix_B1 * real_B2 + (1 - mix_B1) * fake_B2).requires_grad_()
    (slopes_B2,) = torch.autograd.grad(critic(between_B2).sum(), between_B2, create_graph=True)
    penalty = (slopes_B2.norm(dim=1) - 1).square().mean()
    return critic(fake_B2).mean() - critic(real_B2).mean() + PENALTY * penalty


def mlp(in_features: int, out_features: int, width: int = 128) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out_features)
    )


def sample_ring(size: int) -> Tensor:
    """Samples of the true distribution, of shape (size, 2)."""
    angles_N = 2 * math.pi * torch.randint(NUM_MODES, (size,)) / NUM_MODES
    return RADIUS * torch.stack([angles_N.cos(), angles_N.sin()], dim=1) + STD * torch.randn(size, 2)


@torch.no_grad()
def evaluate(generator: nn.Module, size: int = 4000) -> float:
    """The energy distance of generated and true samples: 0 if they are alike."""
    fake_N2, real_N2 = generator(torch.randn(size, NOISE_DIM)), sample_ring(size)
    across, within = torch.cdist(fake_N2, real_N2), torch.cdist(fake_N2, fake_N2) + torch.cdist(real_N2, real_N2)
    return (2 * across - within).mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("energy distance before", evaluate(train(0)["generator"]))
    print("energy distance after", evaluate(train()["generator"]))
