"""Few target examples: which block of a pretrained network should adapt to them?

After Lee et al., "Surgical fine-tuning improves adaptation to distribution shifts" (2210.11466): a network of four
blocks is trained on plenty of source data, then a hundred examples of shifted data are all there is. The inputs, or the
look of each class, or the labels have changed, and in each case another block ought to be the one that trains. The data
are made in the manner of MNIST-1D (Greydanus, 2011.14439): templates of classes, moved, scaled, and noisy.

Shapes: N examples, L samples of a signal, C classes.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from alternator import Cycle, Gain, Payoff, Plateau, RandomTenure, Trend, Trial

from ._domain import NUM_SEEDS, Arm, Outcome
from ._rules import Order
from ._torch import Problem, Run, Schedule

Shift = Literal["input", "feature", "output"]
NUM_CLASSES = 10
LENGTH = 40
BLOCKS = ("block1", "block2", "block3", "block4")
TURNS = {"all": BLOCKS, **{block: (block,) for block in BLOCKS}}
FIRST_TO_LAST = {"1": BLOCKS[:1], "1-2": BLOCKS[:2], "1-3": BLOCKS[:3], "all": BLOCKS}
LAST_TO_FIRST = {"4": BLOCKS[3:], "3-4": BLOCKS[2:], "2-4": BLOCKS[1:], "all": BLOCKS}
ALONE = {block: (block,) for block in BLOCKS}


class Data(NamedTuple):
    """Examples."""

    inputs_N1L: Tensor
    labels_N: Tensor

    def part(self, first: int, last: int) -> "Data":
        """Some of them."""
        return Data(self.inputs_N1L[first:last], self.labels_N[first:last])


@dataclass(frozen=True, kw_only=True)
class AutoRGN:
    """Joint training in which each block's learning rate is in proportion to its relative gradient norm."""


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """The domain of one kind of shift."""

    shift: Shift
    budget: float = 400.0
    num_target: int = 100
    num_held_out: int = 40
    num_test: int = 1000
    num_source: int = 4000
    source_epochs: int = 8
    learning_rate: float = 3e-3
    """The best of 3e-4, 1e-3, 3e-3 and 1e-2 for joint training, on other seeds."""
    width: int = 32
    look_every: float = 20.0
    metric: str = "accuracy"
    unit: str = "steps"
    higher_is_better: bool = True
    num_seeds: int = field(default=NUM_SEEDS, repr=False)
    has_signal: bool = True

    @property
    def name(self) -> str:
        """Of the domain."""
        return f"few-shot-{self.shift}"

    @property
    def question(self) -> str:
        """What is to be decided."""
        changed = {"input": "the inputs have", "feature": "the look of each class has", "output": "the labels have"}
        return f"Which block should adapt to {self.num_target} examples when {changed[self.shift]} changed?"

    def arms(self) -> Mapping[str, Arm]:
        """All ways to train the four blocks."""
        quarter = int(self.budget) // 4
        stages = Order(tuple((stage, quarter) for stage in range(4)))
        fixed: dict[str, Schedule | AutoRGN] = {
            **{f"{block} alone": Schedule(_only(place), ALONE) for place, block in enumerate(BLOCKS)},
            "unfreezing, last block first": Schedule(stages, LAST_TO_FIRST),
            "unfreezing, first block first": Schedule(stages, FIRST_TO_LAST),
            "one after the other": Schedule(stages, ALONE),
            "one after the other, last first": Schedule(Order(tuple((3 - each, quarter) for each in range(4))), ALONE),
            **{f"in turn, {steps} steps": Schedule(Cycle(steps), ALONE) for steps in (1, 5, 20)},
        }
        ours = {
            "Trial": Schedule(Trial(), TURNS),
            "Payoff": Schedule(Payoff(costs=(1.0,) * len(TURNS)), TURNS),
            "Gain": Schedule(Gain(), ALONE),
            "Trend": Schedule(Trend(), ALONE),
            "Plateau": Schedule(Plateau(), ALONE),
        }
        return {
            "joint": Arm(kind="joint", setting=Schedule(_only(0), TURNS)),
            **{name: Arm(kind="fixed", setting=setting) for name, setting in fixed.items()},
            "random": Arm(kind="random", setting=Schedule(RandomTenure(mean=20, seed=1), ALONE)),
            "Auto-RGN": Arm(kind="published", setting=AutoRGN(), note="Lee et al. (2210.11466), section 4"),
            **{name: Arm(kind="ours", setting=setting) for name, setting in ours.items()},
        }

    def run(self, arm: str, seed: int) -> Outcome:
        """Adapt a copy of the seed's pretrained network."""
        setting = self.arms()[arm].setting
        problem = self.problem(seed)
        schedule = setting
        if isinstance(setting, AutoRGN):
            schedule = Schedule(_only(0), TURNS)
            problem.before_step = _relative_rates(problem, self.learning_rate)
        return Run(problem, schedule, self.budget, self.look_every).train()

    def problem(self, seed: int) -> Problem:
        """The pretrained network and the target's data."""
        torch.manual_seed(seed)
        model = deepcopy(_pretrained(self.num_source, self.source_epochs, self.width, seed))
        target = make_data(self.num_target + self.num_test, seed, self.shift)
        train = target.part(0, self.num_target - self.num_held_out)
        held_out = target.part(self.num_target - self.num_held_out, self.num_target)
        test = target.part(self.num_target, len(target.labels_N))
        blocks = dict(model.named_children())
        optimizers = {
            name: torch.optim.Adam(block.parameters(), lr=self.learning_rate) for name, block in blocks.items()
        }
        return Problem(
            modules=blocks,
            model=model,
            optimizers=optimizers,
            loss=lambda: F.cross_entropy(model(train.inputs_N1L), train.labels_N),
            held_out=lambda: _doubts(model, held_out),
            look=lambda: (_accuracy(model, held_out), _accuracy(model, test)),
            higher_is_better=True,
            measuring_cost=len(held_out.labels_N) / len(train.labels_N) / 3,
        )


def _only(turn: int) -> Order:
    return Order(((turn, 1),))


def _relative_rates(problem: Problem, learning_rate: float) -> Callable[[Run], None]:
    """Before each step: the gradient's norm over the weights', in each block, over the largest of them.

    A loop written for it takes the norms from the gradients of the step itself, so they are not charged.
    """

    def set_rates(run: Run) -> None:
        parameters = {name: list(block.parameters()) for name, block in problem.modules.items()}
        flat = torch.autograd.grad(problem.loss(), [each for of_block in parameters.values() for each in of_block])
        gradients = dict(zip((id(p) for of_block in parameters.values() for p in of_block), flat, strict=True))
        ratios = {
            name: float(
                torch.cat([gradients[id(each)].flatten() for each in of_block]).norm()
                / torch.cat([each.detach().flatten() for each in of_block]).norm()
            )
            for name, of_block in parameters.items()
        }
        for name, ratio in ratios.items():
            problem.optimizers[name].param_groups[0]["lr"] = learning_rate * ratio / max(ratios.values())

    return set_rates


def _doubts(model: nn.Module, data: Data) -> list[float]:
    """One minus the probability of the right class: what the rules may measure.

    On forty examples the accuracy is coarse, and the likelihood is misled by a few that are very wrong.
    """
    probabilities_NC = model(data.inputs_N1L).softmax(-1)
    right_N: list[float] = (1 - probabilities_NC.gather(1, data.labels_N[:, None])[:, 0]).tolist()
    return right_N


def _accuracy(model: nn.Module, data: Data) -> float:
    return float((model(data.inputs_N1L).argmax(-1) == data.labels_N).float().mean())


def build_model(width: int) -> nn.Sequential:
    """Three blocks of convolutions and a head."""
    model = nn.Sequential()
    for place, (channels, stride) in enumerate(((1, 1), (width, 2), (width, 2)), start=1):
        convolution = nn.Conv1d(channels, width, kernel_size=5, stride=stride, padding=2)
        model.add_module(f"block{place}", nn.Sequential(convolution, nn.ReLU()))
    head = nn.Sequential(nn.Flatten(), nn.Linear(width * LENGTH // 4, NUM_CLASSES))
    model.add_module("block4", head)
    return model


@cache
def _pretrained(num_source: int, epochs: int, width: int, seed: int) -> nn.Sequential:
    """The network of a seed, trained on source data."""
    torch.manual_seed(1000 + seed)
    model = build_model(width)
    data = make_data(num_source, seed, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(num_source).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs_N1L[rows]), data.labels_N[rows]).backward()
            optimizer.step()
    return model.requires_grad_(False).requires_grad_()


@cache
def make_data(num: int, seed: int, shift: Shift | None) -> Data:
    """Signals of ten classes.

    Each class has two looks, of which source data show the first and the target under ``feature`` the second. Under
    ``input`` the sensor is another one: the signal's sign is turned, and it is sharpened. Under ``output`` every label
    becomes another one.
    """
    rng = np.random.default_rng([seed, {None: 0, "input": 1, "feature": 2, "output": 3}[shift]])
    labels_N = rng.integers(NUM_CLASSES, size=num)
    look = 1 if shift == "feature" else 0
    signals_NL = np.stack([_signal(_templates()[label, look], rng) for label in labels_N])
    if shift == "input":
        signals_NL = -(2.0 * signals_NL - 0.5 * np.roll(signals_NL, 1, axis=1) - 0.5 * np.roll(signals_NL, -1, axis=1))
    if shift == "output":
        order_C = np.random.default_rng(seed).permutation(NUM_CLASSES)
        labels_N = np.roll(order_C, 1)[np.argsort(order_C)][labels_N]  # along one circle of all classes: none stays
    return Data(torch.from_numpy(signals_NL.astype(np.float32))[:, None], torch.from_numpy(labels_N))


def _signal(template: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A template moved, scaled, sheared, with smooth and white noise."""
    length = int(rng.integers(20, LENGTH - 4))
    start = int(rng.integers(0, LENGTH - length + 1))
    stretched = np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(template)), template)
    signal = np.zeros(LENGTH)
    signal[start : start + length] = stretched * rng.uniform(0.7, 1.3)
    smooth = np.convolve(rng.normal(size=LENGTH + 8), np.ones(9) / 3, mode="valid")
    return signal + 0.25 * smooth + 0.1 * rng.normal(size=LENGTH) + rng.uniform(-0.3, 0.3) * np.linspace(-1, 1, LENGTH)


@cache
def _templates() -> NDArray[np.float64]:
    """Per class and look 12 points: the looks of a class share half of their shape."""
    rng = np.random.default_rng(1)
    shared_C, own_CL = rng.normal(size=(NUM_CLASSES, 1, 12)), rng.normal(size=(NUM_CLASSES, 2, 12))
    rough = shared_C + own_CL
    smooth = (np.roll(rough, 1, axis=-1) + 2 * rough + np.roll(rough, -1, axis=-1)) / 4
    return smooth / smooth.std(axis=-1, keepdims=True)


DOMAINS = (FewShot(shift="input"), FewShot(shift="feature"), FewShot(shift="output"))
