"""A training loop of your own: an encoder and a head that take turns.

Run: python examples/plain_loop.py
"""

import torch
from torch import nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator


def main(num_steps: int = 400) -> dict[str, float]:
    """Fit a small regression; returns the losses before and after, and what the schedule did."""
    torch.set_num_threads(1)  # networks this small are faster so
    torch.manual_seed(0)
    modules = {
        "encoder": nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1)),
        "head": nn.Linear(32, 1),
    }
    model = nn.Sequential(modules["encoder"], modules["head"])
    optimizers = {name: torch.optim.AdamW(module.parameters(), lr=0.01) for name, module in modules.items()}
    alternating = AlternatingOptimizer(Alternator(modules), modules, optimizers, model=model, clip_norm=1.0)

    held_out = batch(10_000)
    before = evaluate(model, alternating, held_out)
    for step in range(num_steps):
        x_BD, y_B1 = batch(step)
        loss = (model(x_BD) - y_B1).square().mean()
        decision = alternating.step(loss)
        if decision.switched:
            print(decision.explain())
    alternating.flush()

    after = evaluate(model, alternating, held_out)
    stats = alternating.alternator.stats()
    shares = {f"{name}_share": module.training_ratio for name, module in stats.modules.items()}
    return {"loss_before": before, "loss_after": after, "switches": stats.switch_count, **shares}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and noisy targets, the same for the same step."""
    generator = torch.Generator().manual_seed(step)
    x_BD = torch.randn(64, 8, generator=generator)
    noise_B1 = 0.1 * torch.randn(64, 1, generator=generator)
    return x_BD, x_BD[:, :4].prod(dim=1, keepdim=True).tanh() + x_BD[:, 4:5] + noise_B1


def evaluate(model: nn.Module, alternating: AlternatingOptimizer, held_out: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The loss on held-out data, then back to training: `alternating.train()` leaves frozen modules frozen."""
    alternating.eval()
    with torch.no_grad():
        loss = (model(held_out[0]) - held_out[1]).square().mean().item()
    alternating.train()
    return loss


if __name__ == "__main__":
    result = main()
    print(result)
