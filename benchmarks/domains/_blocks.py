"""The arms of a domain in which memory holds the optimizer state of one block: orders, published criteria, rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alternator import Gain, Plateau, Trend, Trial

from ._domain import Arm
from ._rules import Order, RandomOrder
from ._torch import Problem, Run, Schedule

TENURE = 20
"""Steps of a block in the two orders that `Trial` chooses between."""


@dataclass(frozen=True)
class BlockLLM:
    """BlockLLM's criterion (2406.17296), with one block at a time.

    When the loss is no lower than the mean of the last ``patience`` losses, the block with the largest gradient norm
    over the frequency of its visits takes over.
    """

    patience: int = 20


@dataclass(frozen=True)
class EveryBlock:
    """All blocks at once: what the cap forbids."""


def block_arms(blocks: Sequence[str], budget: float) -> Mapping[str, Arm]:
    """Fixed orders with several lengths, LISA, BAdam, BlockLLM and rules."""
    count = len(blocks)
    turns = {block: (block,) for block in blocks}

    def order(places: Sequence[int], steps: int) -> Schedule:
        return Schedule(Order(tuple((place, steps) for place in places), again_from=0), turns)

    ascending = range(count)
    lengths = sorted({max(1, int(budget) // (count * rounds)) for rounds in (1, 2, 4, 8)})
    fixed = {
        **{f"descending, {steps} steps": order(ascending[::-1], steps) for steps in lengths},
        **{f"ascending, {steps} steps": order(ascending, steps) for steps in lengths},
        "last block alone": Schedule(Order(((count - 1, 1),)), turns),
        "first block alone": Schedule(Order(((0, 1),)), turns),
    }
    once = max(lengths)
    published: dict[str, tuple[Schedule | BlockLLM, str]] = {
        "LISA": (Schedule(RandomOrder(lengths[1], seed=1), turns), "random blocks (2403.17919), one at a time"),
        "BAdam": (order(ascending, max(1, once // 2) + 1), "blocks in ascending order (2404.02827), about two rounds"),
        "BlockLLM": (BlockLLM(), "gradient norm over frequency of visits (2406.17296), one block at a time"),
    }
    sequences = tuple(tuple(place for place in order for _ in range(TENURE)) for order in (ascending, ascending[::-1]))
    ours = {
        "Trial": Schedule(Trial(candidates=sequences), turns),
        "Trial of single blocks": Schedule(Trial(), turns),
        "Gain": Schedule(Gain(), turns),
        "Trend": Schedule(Trend(), turns),
        "Plateau": Schedule(Plateau(), turns),
    }
    return {
        "joint": Arm(kind="joint", setting=EveryBlock(), in_grid=False, note="full Adam, beyond the cap"),
        **{name: Arm(kind="fixed", setting=setting) for name, setting in fixed.items()},
        "random": Arm(kind="random", setting=Schedule(RandomOrder(lengths[0], seed=2), turns)),
        **{name: Arm(kind="published", setting=setting, note=note) for name, (setting, note) in published.items()},
        **{name: Arm(kind="ours", setting=setting) for name, setting in ours.items()},
    }


def run_blocks(problem: Problem, setting: object, budget: float, look_every: float) -> Run:
    """A run of one of `block_arms`. Where one block trains at a time, the optimizer states of others are dropped."""
    turns = {block: (block,) for block in problem.modules}
    if isinstance(setting, EveryBlock):
        together = Schedule(Order(((0, 1),)), {"all": tuple(problem.modules), **turns})
        return Run(problem, together, budget, look_every)
    problem.drops_states = True
    if isinstance(setting, BlockLLM):
        problem.before_step = _block_llm(problem, setting.patience)
        setting = Schedule(Order(((0, 1),)), turns)
    assert isinstance(setting, Schedule)
    return Run(problem, setting, budget, look_every)


def _block_llm(problem: Problem, patience: int) -> Callable[[Run], None]:
    visits = dict.fromkeys(problem.modules, 0)
    losses: list[float] = []

    def choose(run: Run) -> None:
        if run.last_loss is not None:
            losses.append(float(run.last_loss))
        recent = losses[-patience - 1 : -1]
        if not losses or (len(recent) == patience and losses[-1] >= sum(recent) / patience):
            norms = gradient_norms(problem)
            run.charge(1.0)  # a backward pass through all blocks, one block's gradients at a time
            total = sum(visits.values()) or 1
            run.alternating.force(max(norms, key=lambda name: norms[name] / max(visits[name] / total, 1 / total)))
            losses.clear()
            losses.append(float("inf"))
        visits[run.alternator.active] += 1

    return choose


def gradient_norms(problem: Problem) -> dict[str, float]:
    """Of each block, whoever is frozen."""
    parameters = {name: list(block.parameters()) for name, block in problem.modules.items()}
    frozen = [each for of_block in parameters.values() for each in of_block if not each.requires_grad]
    for each in frozen:
        each.requires_grad_()
    flat = iter(torch.autograd.grad(problem.loss(), [each for of_block in parameters.values() for each in of_block]))
    norms = {
        name: float(torch.cat([next(flat).flatten() for _ in of_block]).norm()) for name, of_block in parameters.items()
    }
    for each in frozen:
        each.requires_grad_(False)
    return norms


def adam_of_each(blocks: Mapping[str, nn.Module], learning_rate: float) -> dict[str, torch.optim.Optimizer]:
    """An optimizer per block."""
    return {name: torch.optim.Adam(block.parameters(), lr=learning_rate) for name, block in blocks.items()}
