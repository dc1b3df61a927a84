"""`adapters.lightning` as a user writes it, with a module that knows nothing of the alternation."""

from typing import assert_type

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from adapters.lightning import AlternatingCallback
from alternator import Alternator, Cycle


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.head(self.encoder(torch.ones(8, 4))).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def main() -> None:
    callback = AlternatingCallback(Alternator(("encoder", "head"), Cycle(2)))
    Trainer(accelerator="cpu", max_steps=2, callbacks=[callback], barebones=True).fit(Regression(), range(2))
    assert_type(callback.alternator, Alternator)
    assert_type(callback.active, str)


def misuse(callback: AlternatingCallback, alternator: Alternator) -> None:
    AlternatingCallback(("encoder", "head"))  # type: ignore[arg-type]
    AlternatingCallback(alternator, clip_norm="1")  # type: ignore[arg-type]
    AlternatingCallback(alternator, turns={"both": 2})  # type: ignore[dict-item]
    callback.active = "head"  # type: ignore[misc]


if __name__ == "__main__":
    main()
