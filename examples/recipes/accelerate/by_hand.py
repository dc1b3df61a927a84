"""A plain training loop under Accelerate, with accumulated gradients.

An encoder and a head learn a smooth function of eight numbers.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def train(num_steps: int = 400) -> dict[str, nn.Module]:
    """Train for a number of batches."""
    torch.manual_seed(0)
    encoder, head = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), nn.Linear(32, 1)
    model = nn.Sequential(encoder, head)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches(num_steps, seed=0))

    step = 0
    for x_BD, y_B1 in loader:
        is_heads = step % 4 == 3
        encoder.requires_grad_(not is_heads)
        head.requires_grad_(is_heads)
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x_BD), y_B1)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += accelerator.sync_gradients
    return {"encoder": encoder, "head": head}


def batches(num_batches: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Inputs and targets, in batches of 64."""
    x_ND = torch.randn(64 * num_batches, 8, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x_ND, x_ND[:, :4].sum(1, keepdim=True).sin()), batch_size=64)


@torch.no_grad()
def evaluate(trained: dict[str, nn.Module]) -> float:
    """The mean squared error on held-out data."""
    ((x_BD, y_B1),) = batches(1, seed=1)
    return nn.functional.mse_loss(trained["head"](trained["encoder"](x_BD)), y_B1).item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("error before", evaluate(train(1)))
    print("error after", evaluate(train()))
