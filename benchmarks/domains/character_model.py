"""A small language model of characters under the same cap: trained on Python code, fine-tuned on its documentation.

The model, a transformer, is trained on the source of the standard library; then it is fine-tuned on the prose of
Python's help topics, with memory for the optimizer state of one block. Both are those of the Python that runs this.

Shapes: B windows, T characters, D width.
"""

import sysconfig
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._blocks import adam_of_each, block_arms, run_blocks
from ._domain import NUM_SEEDS, Arm, Outcome
from ._torch import Problem

FIRST, LAST = 32, 126
NUM_CHARACTERS = LAST - FIRST + 3
"""The printable ones, the new line, and one for all others."""


class Layer(nn.Module):
    """Causal attention and a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """One layer."""
        num_windows, length, width = x_BTD.shape
        parts = self.qkv(self.norms[0](x_BTD)).view(num_windows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x_BTD = x_BTD + self.out(seen.transpose(1, 2).reshape(num_windows, length, width))
        return x_BTD + self.feed_forward(self.norms[1](x_BTD))


class Embedding(nn.Module):
    """Of characters and their positions."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(NUM_CHARACTERS, width), nn.Embedding(length, width)

    def forward(self, x_BT: Tensor) -> Tensor:
        """Their sum."""
        embedded: Tensor = self.characters(x_BT) + self.positions.weight[: x_BT.shape[1]]
        return embedded


@dataclass(frozen=True, kw_only=True)
class CharacterModel:
    """The domain."""

    budget: float = 400.0
    num_layers: int = 4
    width: int = 48
    length: int = 48
    batch: int = 12
    num_train: int = 60_000
    """Characters."""
    num_held_out: int = 48
    """Windows."""
    num_test: int = 128
    source_steps: int = 1200
    learning_rate: float = 2e-3
    look_every: float = 40.0
    name: str = "character-model"
    question: str = "In which order should the blocks of a language model train, with memory for one's optimizer state?"
    metric: str = "loss"
    unit: str = "steps"
    higher_is_better: bool = False
    num_seeds: int = field(default=NUM_SEEDS, repr=False)
    has_signal: bool = True

    @property
    def blocks(self) -> tuple[str, ...]:
        """Their names, from the input to the output."""
        return ("embedding", *(f"layer{place}" for place in range(1, self.num_layers + 1)), "head")

    def arms(self) -> Mapping[str, Arm]:
        """All ways to train the blocks."""
        return block_arms(self.blocks, self.budget)

    def run(self, arm: str, seed: int) -> Outcome:
        """Fine-tune a copy of the pretrained model, which is the same for all seeds."""
        setting = self.arms()[arm].setting
        return run_blocks(self.problem(seed), setting, self.budget, self.look_every).train()

    def problem(self, seed: int) -> Problem:
        """The pretrained model and the seed's windows of the documentation."""
        model = deepcopy(_pretrained(self))
        text = _documentation()
        third = len(text) // 3
        start = int(torch.randint(third - self.num_train, (1,), generator=torch.Generator().manual_seed(seed)))
        train = text[start : start + self.num_train]
        held_out = _windows(text[third : 2 * third], self.num_held_out, self.length, seed)
        test = _windows(text[2 * third :], self.num_test, self.length, 0)
        generator = torch.Generator().manual_seed(seed)
        blocks = dict(model.named_children())

        def losses(windows: Tensor) -> Tensor:
            return _losses(model, windows).mean(1)

        return Problem(
            modules=blocks,
            model=model,
            optimizers=adam_of_each(blocks, self.learning_rate),
            loss=lambda: losses(_draw(train, self.batch, self.length, generator)).mean(),
            held_out=lambda: losses(held_out).tolist(),
            look=lambda: (float(losses(held_out).mean()), float(losses(test).mean())),
            higher_is_better=False,
            measuring_cost=self.num_held_out / self.batch / 3,
        )


def _losses(model: nn.Module, windows: Tensor) -> Tensor:
    logits_BTC = model(windows[:, :-1])
    return F.cross_entropy(logits_BTC.transpose(1, 2), windows[:, 1:], reduction="none")


def _windows(text: Tensor, num: int, length: int, seed: int) -> Tensor:
    return _draw(text, num, length, torch.Generator().manual_seed(seed))


def _draw(text: Tensor, num: int, length: int, generator: torch.Generator) -> Tensor:
    starts_B = torch.randint(len(text) - length - 1, (num,), generator=generator)
    return text[starts_B[:, None] + torch.arange(length + 1)]


@cache
def _pretrained(domain: CharacterModel) -> nn.Sequential:
    torch.manual_seed(1000)
    model = nn.Sequential()
    model.add_module("embedding", Embedding(domain.length, domain.width))
    for name in domain.blocks[1:-1]:
        model.add_module(name, Layer(domain.width, heads=4))
    model.add_module("head", nn.Sequential(nn.LayerNorm(domain.width), nn.Linear(domain.width, NUM_CHARACTERS)))
    text, generator = _code(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(domain.source_steps):
        optimizer.zero_grad()
        _losses(model, _draw(text, domain.batch, domain.length, generator)).mean().backward()
        optimizer.step()
    return model


@cache
def _code() -> Tensor:
    """The source of the standard library's modules."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _characters("".join(file.read_text(errors="replace") for file in sorted(folder.glob("*.py"))))


@cache
def _documentation() -> Tensor:
    """The help topics, in an order of their own, so that any third of them is like another."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    order = torch.randperm(len(topics), generator=torch.Generator().manual_seed(0)).tolist()
    names = sorted(topics)
    return _characters("\n".join(topics[names[place]] for place in order))


def _characters(text: str) -> Tensor:
    """Their numbers."""
    codes = torch.frombuffer(bytearray(text.encode("ascii", errors="replace")), dtype=torch.uint8).long()
    numbers = torch.where((codes >= FIRST) & (codes <= LAST), codes - FIRST, NUM_CHARACTERS - 1)
    return torch.where(codes == ord("\n"), NUM_CHARACTERS - 2, numbers)


DOMAINS = (CharacterModel(),)
