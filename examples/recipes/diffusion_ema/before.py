"""Denoising diffusion (Ho et al. 2020) on a spiral in the plane, sampled with an average of the weights.

The denoiser has a trunk and an embedding of time; the average is exponential, as all trainers of diffusion keep one.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

NUM_TIMES, BATCH_SIZE, WIDTH, DECAY = 50, 256, 64, 0.99
BETAS_T = torch.linspace(1e-3, 0.2, NUM_TIMES)
SIGNALS_T = (1 - BETAS_T).cumprod(0)


class Denoiser(nn.Module):
    """Predicts the noise of noisy points."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Embedding(NUM_TIMES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.first = nn.Linear(2, WIDTH)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.SiLU())
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, noisy_B2: Tensor, times_B: Tensor) -> Tensor:
        """Noise of shape (B, 2)."""
        return self.last(self.layers(self.first(noisy_B2) + self.time(times_B)))


def train(num_steps: int = 1500) -> dict[str, nn.Module]:
    """Train for a number of updates."""
    torch.manual_seed(0)
    model = Denoiser()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    for _ in range(num_steps):
        times_B, noise_B2 = torch.randint(NUM_TIMES, (BATCH_SIZE,)), torch.randn(BATCH_SIZE, 2)
        signals_B1 = SIGNALS_T[times_B][:, None]
        noisy_B2 = signals_B1.sqrt() * sample_spiral(BATCH_SIZE) + (1 - signals_B1).sqrt() * noise_B2
        loss = nn.functional.mse_loss(model(noisy_B2, times_B), noise_B2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    return {"model": model, "average": average}


def sample_spiral(size: int) -> Tensor:
    """Points of shape (size, 2)."""
    angles_B = 3 * math.pi * torch.rand(size).sqrt()
    spiral_B2 = angles_B[:, None] * torch.stack([angles_B.cos(), angles_B.sin()], dim=1) / 5
    return spiral_B2 + 0.03 * torch.randn(size, 2)


@torch.no_grad()
def generate(average: nn.Module, size: int) -> Tensor:
    """Points of shape (size, 2)."""
    average.eval()
    points_B2 = torch.randn(size, 2)
    for time in reversed(range(NUM_TIMES)):
        noise_B2 = average(points_B2, torch.full((size,), time))
        points_B2 = points_B2 - BETAS_T[time] / (1 - SIGNALS_T[time]).sqrt() * noise_B2
        points_B2 = points_B2 / (1 - BETAS_T[time]).sqrt()
        if time > 0:
            points_B2 = points_B2 + BETAS_T[time].sqrt() * torch.randn(size, 2)
    return points_B2


def evaluate(average: nn.Module, size: int = 2000) -> float:
    """The energy distance between generated points and true ones; 0 is best."""
    fake_B2, true_B2 = generate(average, size), sample_spiral(size)
    between = torch.cdist(fake_B2, true_B2).mean()
    return (2 * between - torch.cdist(fake_B2, fake_B2).mean() - torch.cdist(true_B2, true_B2).mean()).item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("distance before", evaluate(train(0)["average"]))
    print("distance after", evaluate(train()["average"]))
