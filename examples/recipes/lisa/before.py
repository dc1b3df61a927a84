"""Full fine-tuning of a network of blocks.

A sequence is of the class of which it has more tokens.
"""

import torch
from torch import Tensor, nn

VOCAB_SIZE, LENGTH, BATCH_SIZE, NUM_CLASSES, WIDTH, NUM_BLOCKS = 64, 15, 32, 2, 64, 4


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Of shape (B, WIDTH), as the result."""
        change_BD: Tensor = self.down(torch.relu(self.up(self.norm(x_BD))))
        return x_BD + change_BD


class Network(nn.Module):
    """Embeddings, blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(NUM_BLOCKS)))
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits of shape (B, NUM_CLASSES)."""
        logits: Tensor = self.head(self.blocks(self.embed(tokens_BL).mean(dim=1)))
        return logits


def train(num_steps: int = 400) -> dict[str, nn.Module]:
    """Train for a number of updates."""
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for _ in range(num_steps):
        tokens_BL, classes_B = sample(BATCH_SIZE)
        loss = nn.functional.cross_entropy(model(tokens_BL), classes_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model}


def sample(size: int) -> tuple[Tensor, Tensor]:
    """Sequences of shape (size, L), and their classes of shape (size)."""
    tokens_BL = torch.randint(VOCAB_SIZE, (size, LENGTH))
    counts_B = (tokens_BL % NUM_CLASSES).sum(dim=1)
    return tokens_BL, (counts_B > LENGTH // 2).long()


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    """The share of sequences whose class is predicted."""
    model.eval()
    tokens_BL, classes_B = sample(1000)
    return (model(tokens_BL).argmax(dim=-1) == classes_B).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("accuracy before", evaluate(train(0)["model"]))
    print("accuracy after", evaluate(train()["model"]))
