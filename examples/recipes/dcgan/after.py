"""DCGAN (Radford et al. 2016) on the digits of scikit-learn, 8 × 8: BatchNorm in both networks, turns of one step each.

Each network learns from the batch's statistics: the discriminator's BatchNorm sees a batch of real and one of generated
digits, and normalises the latter by their own while the generator learns from its score.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import softplus

from adapters.contract import FrozenMode
from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle

BATCH_SIZE, NOISE_DIM, WIDTH = 64, 16, 32


def train(num_steps: int = 1000, seed: int = 0, frozen_mode: FrozenMode = "batch") -> dict[str, nn.Module]:
    """Train each network for a number of steps."""
    torch.manual_seed(seed)
    generator, discriminator = make_generator(), make_discriminator()
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    modules = {"discriminator": discriminator, "generator": generator}
    optimizers = {"discriminator": optimizer_d, "generator": optimizer_g}
    alternator = Alternator(modules, rule=Cycle(1))
    alternating = AlternatingOptimizer(alternator, modules, optimizers, frozen_mode=frozen_mode)
    digits = load()

    for _ in range(num_steps):
        real = digits[torch.randint(len(digits), (BATCH_SIZE,))]
        fake = generator(torch.randn(BATCH_SIZE, NOISE_DIM, 1, 1)).detach()
        loss_d = softplus(-discriminator(real)).mean() + softplus(discriminator(fake)).mean()
        alternating.step(loss_d)

        fake = generator(torch.randn(BATCH_SIZE, NOISE_DIM, 1, 1))
        loss_g = softplus(-discriminator(fake)).mean()
        alternating.step(loss_g)
    return {"discriminator": discriminator, "generator": generator}


def make_generator() -> nn.Sequential:
    """Noise of shape (B, 16, 1, 1) to digits of shape (B, 1, 8, 8), from -1 to 1."""
    return nn.Sequential(
        *(nn.ConvTranspose2d(NOISE_DIM, 2 * WIDTH, 2, bias=False), nn.BatchNorm2d(2 * WIDTH), nn.ReLU()),
        *(nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()),
        *(nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1), nn.Tanh()),
    )


def make_discriminator() -> nn.Sequential:
    """Digits to scores (logits that they are real), of shape (B, 1)."""
    return nn.Sequential(
        *(nn.Conv2d(1, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * WIDTH), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(2 * WIDTH, 1, 2), nn.Flatten()),
    )


def load() -> Tensor:
    """The digits, of shape (1797, 1, 8, 8), from -1 to 1."""
    return torch.tensor(load_digits().data, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1


@torch.no_grad()
def frechet_distance(generator: nn.Module, size: int = 4000, seed: int = 0) -> float:
    """Between normal distributions fitted to the pixels of real and of generated digits; batches are those of training.

    BatchNorm normalises as the mode of the generator says, and in training mode moves its statistics.
    """
    noise = torch.randn(size, NOISE_DIM, 1, 1, generator=torch.Generator().manual_seed(seed))
    fake = torch.cat([generator(each) for each in noise.split(BATCH_SIZE) if len(each) == BATCH_SIZE])
    real_ND, fake_ND = load().double().flatten(1), fake.double().flatten(1)
    mean_real, mean_fake, cov_real, cov_fake = real_ND.mean(0), fake_ND.mean(0), real_ND.T.cov(), fake_ND.T.cov()
    cross = torch.linalg.eigvals(cov_real @ cov_fake).real.clamp(min=0).sqrt().sum()
    return float((mean_real - mean_fake).square().sum() + cov_real.trace() + cov_fake.trace() - 2 * cross)


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    print("before", frechet_distance(train(0, seed)["generator"]))
    print("after", frechet_distance(train(seed=seed)["generator"]))
