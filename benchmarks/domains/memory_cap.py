"""Memory for one block's optimizer state: in which order should the blocks of a network be fine-tuned?

A residual network of ten blocks is trained on source data; then inputs and labels change, and it is fine-tuned with
Adam, whose state memory holds for one block at a time: what stops training loses its own.

Shapes: N examples, L samples of a signal.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._blocks import adam_of_each, block_arms, run_blocks
from ._domain import NUM_SEEDS, Arm, Outcome
from ._torch import Problem
from .few_shot import LENGTH, NUM_CLASSES, Data, make_data


class Residual(nn.Module):
    """A block of the trunk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Add what the block has to say."""
        return x_ND + self.layers(x_ND)


@dataclass(frozen=True, kw_only=True)
class MemoryCap:
    """The domain."""

    budget: float = 600.0
    num_blocks: int = 10
    width: int = 64
    num_train: int = 8000
    num_held_out: int = 256
    num_test: int = 1000
    num_source: int = 4000
    source_epochs: int = 20
    batch: int = 64
    learning_rate: float = 3e-3
    look_every: float = 40.0
    name: str = "memory-cap"
    question: str = "In which order should ten blocks train, with memory for the optimizer state of one?"
    metric: str = "loss"
    unit: str = "steps"
    higher_is_better: bool = False
    num_seeds: int = field(default=NUM_SEEDS, repr=False)
    has_signal: bool = True

    @property
    def blocks(self) -> tuple[str, ...]:
        """Their names, from the input to the labels."""
        return ("stem", *(f"block{place}" for place in range(1, self.num_blocks - 1)), "head")

    def arms(self) -> Mapping[str, Arm]:
        """All ways to train the blocks."""
        return block_arms(self.blocks, self.budget)

    def run(self, arm: str, seed: int) -> Outcome:
        """Fine-tune a copy of the seed's pretrained network."""
        setting = self.arms()[arm].setting
        return run_blocks(self.problem(seed), setting, self.budget, self.look_every).train()

    def problem(self, seed: int) -> Problem:
        """The pretrained network and the target's data."""
        model = deepcopy(_pretrained(self, seed))
        data = _changed(self.num_train + self.num_held_out + self.num_test, seed)
        train = data.part(0, self.num_train)
        held_out = data.part(self.num_train, self.num_train + self.num_held_out)
        test = data.part(self.num_train + self.num_held_out, len(data.labels_N))
        blocks = dict(model.named_children())
        generator = torch.Generator().manual_seed(seed)

        def loss() -> Tensor:
            rows = torch.randint(self.num_train, (self.batch,), generator=generator)
            return F.cross_entropy(model(train.inputs_N1L[rows]), train.labels_N[rows])

        def losses(part: Data) -> Tensor:
            return F.cross_entropy(model(part.inputs_N1L), part.labels_N, reduction="none")

        return Problem(
            modules=blocks,
            model=model,
            optimizers=adam_of_each(blocks, self.learning_rate),
            loss=loss,
            held_out=lambda: losses(held_out).tolist(),
            look=lambda: (float(losses(held_out).mean()), float(losses(test).mean())),
            higher_is_better=False,
            measuring_cost=self.num_held_out / self.batch / 3,
        )


def _changed(num: int, seed: int) -> Data:
    """Target data: another sensor, and other labels."""
    signals = make_data(num, seed, "input")
    order_C = torch.randperm(NUM_CLASSES, generator=torch.Generator().manual_seed(seed))
    return Data(signals.inputs_N1L, order_C.roll(1)[order_C.argsort()][signals.labels_N])


@cache
def _pretrained(domain: MemoryCap, seed: int) -> nn.Sequential:
    torch.manual_seed(1000 + seed)
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Flatten(), nn.Linear(LENGTH, domain.width)))
    for name in domain.blocks[1:-1]:
        model.add_module(name, Residual(domain.width))
    model.add_module("head", nn.Sequential(nn.LayerNorm(domain.width), nn.Linear(domain.width, NUM_CLASSES)))
    data = make_data(domain.num_source, seed, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(domain.source_epochs):
        for rows in torch.randperm(domain.num_source).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs_N1L[rows]), data.labels_N[rows]).backward()
            optimizer.step()
    return model


DOMAINS = (MemoryCap(),)
