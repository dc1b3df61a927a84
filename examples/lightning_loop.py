"""Lightning's loop: an encoder and a head that take turns within Trainer.fit.

Run: python examples/lightning_loop.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adapters.lightning import AlternatingCallback
from alternator import Alternator, Trend


class Regression(LightningModule):
    """Nothing here knows of the alternation: one loss, one optimizer over all."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 1)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss, which the alternator records too."""
        x_BD, y_B1 = batch
        return (self.head(self.encoder(x_BD)) - y_B1).square().mean()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Frozen or not, all modules are in inference mode here, and as they were afterwards."""
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One over all, with a learning rate for each."""
        groups = [{"params": self.encoder.parameters(), "lr": 0.01}, {"params": self.head.parameters(), "lr": 0.02}]
        return torch.optim.AdamW(groups)


def main(num_epochs: int = 10) -> dict[str, float]:
    """Fit a small regression; returns the validation losses before and after, and what the schedule did."""
    torch.set_num_threads(1)  # faster for networks this small
    torch.manual_seed(0)
    model = Regression()
    rule = Trend(max_steps=40)  # a tenth of the run, so that no module starves
    alternator = Alternator(("encoder", "head"), rule)  # names of attributes of the model
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=num_epochs,
        gradient_clip_val=1.0,
        callbacks=[AlternatingCallback(alternator)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    held_out = loader(1)
    (before,) = trainer.validate(model, held_out, verbose=False)
    trainer.fit(model, loader(0), held_out)
    (after,) = trainer.validate(model, held_out, verbose=False)

    stats = alternator.stats()
    shares = {f"{name}_share": module.training_ratio for name, module in stats.modules.items()}
    losses = {"loss_before": before["val_loss"], "loss_after": after["val_loss"]}
    return {**losses, "switches": stats.switch_count, **shares}


def loader(seed: int, num_rows: int = 2560) -> DataLoader:
    """Inputs and noisy targets."""
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(num_rows, 8, generator=generator)
    noise_B1 = 0.1 * torch.randn(num_rows, 1, generator=generator)
    y_B1 = x_BD[:, :4].prod(dim=1, keepdim=True).tanh() + x_BD[:, 4:5] + noise_B1
    return DataLoader(TensorDataset(x_BD, y_B1), batch_size=64)


if __name__ == "__main__":
    result = main()
    print(result)
