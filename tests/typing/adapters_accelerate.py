"""`adapters.accelerate` as a user writes it, in a loop of their own."""

from typing import assert_type

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adapters.accelerate import Follower
from alternator import Alternator, Cycle, Decision


def main() -> None:
    accelerator = Accelerator(cpu=True)
    towers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    model, optimizer = accelerator.prepare(towers, torch.optim.AdamW(towers.parameters()))
    modules = {"encoder": towers[0], "head": towers[1]}
    follower = Follower(accelerator, Alternator(modules, rule=Cycle(1)), modules, optimizer, model=model, delay=0)
    with accelerator.accumulate(model):
        loss: Tensor = model(torch.ones(2, 4)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        assert_type(follower.after_step(loss), Decision | None)
    assert_type(follower.active, str)
    assert_type(follower.alternator, Alternator)
    follower.close()


def misuse(accelerator: Accelerator, alternator: Alternator, follower: Follower) -> None:
    Follower(alternator, {}, {})  # type: ignore[call-arg, arg-type]
    Follower(accelerator, alternator, {"encoder": 3}, {})  # type: ignore[dict-item]
    follower.after_step("0.5")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
