"""`adapters.torch` as a user writes it, in a training loop of their own."""

from typing import Any, assert_type

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, ReduceLROnPlateau

from adapters.torch import AlternatingOptimizer, Follower, LateScalar
from alternator import Alternator, Cycle, Decision


def main() -> None:
    modules = {"encoder": nn.Linear(4, 3), "head": nn.Linear(3, 1)}
    optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in modules.items()}
    alternating = AlternatingOptimizer(
        Alternator(("encoder", "head", "both")),
        modules,
        optimizers,
        turns={"encoder": "encoder", "head": "head", "both": ("encoder", "head")},
        clip_norm=1.0,
    )
    loss: Tensor = modules["head"](modules["encoder"](torch.ones(2, 4))).square().mean()
    assert_type(alternating.step(loss, {alternating.active: loss.detach()}), Decision)
    assert_type(alternating.skip(float("nan")), Decision)
    assert_type(alternating.force("head"), Decision)
    assert_type(alternating.active, str)
    assert_type(alternating.active_modules, tuple[str, ...])
    assert_type(alternating.grad_norm, Tensor | None)
    assert_type(alternating.alternator, Alternator)
    alternating.eval()
    alternating.train()
    alternating.flush()
    state = alternating.state_dict(include_optimizers=True)
    assert_type(state, dict[str, Any])
    alternating.load_state_dict(state)
    alternating.release()
    assert_type(LateScalar(loss.detach()).read(), float)
    accumulate(modules, optimizers, 2)
    AlternatingOptimizer(Alternator(modules), modules, optimizers, frozen_mode={"head": "batch"}).release()
    AlternatingOptimizer(Alternator(modules), modules, optimizers, frozen_mode="inference").release()
    AlternatingOptimizer(Alternator(modules), modules, optimizers, frozen_state={"head": "offload"}).release()
    AlternatingOptimizer(Alternator(modules), modules, optimizers, frozen_state="drop").release()
    by_epochs(modules, optimizers)
    train_step(alternating := AlternatingOptimizer(Alternator(modules), modules, optimizers, accumulate=1), modules)
    alternating.release()
    follow(modules)


def by_epochs(modules: dict[str, nn.Linear], optimizers: dict[str, torch.optim.AdamW]) -> None:
    """A scheduler of either kind, several, and one that needs a value."""
    encoder, head = optimizers["encoder"], optimizers["head"]
    alternating = AlternatingOptimizer(
        Alternator(modules),
        modules,
        optimizers,
        schedulers={
            "encoder": [(CosineAnnealingLR(encoder, T_max=3), "epoch"), ExponentialLR(encoder, 0.99)],
            "head": (ReduceLROnPlateau(head), "epoch"),
        },
    )
    alternating.end_epoch()
    alternating.end_epoch(0.5)
    alternating.end_epoch({"head": torch.tensor(0.5)})
    alternating.release()


def accumulate(modules: dict[str, nn.Linear], optimizers: dict[str, torch.optim.AdamW], num_micro_steps: int) -> None:
    """None is part of the type where there may be micro-steps, and only there."""
    alternating = AlternatingOptimizer(Alternator(modules), modules, optimizers, accumulate=num_micro_steps)
    decision = alternating.step(modules["head"](modules["encoder"](torch.ones(2, 4))).square().mean())
    assert_type(decision, Decision | None)
    assert decision is None
    alternating.skip()
    alternating.release()


def name_parts(model: nn.Sequential, optimizer: torch.optim.Optimizer, log_alpha: Tensor) -> None:
    """A part is a module, a parameter, a leaf tensor, a name, or several of these."""
    alternator = Alternator(("backbone", "head"))
    AlternatingOptimizer(alternator, {"backbone": model, "head": model[1]}, optimizer)
    AlternatingOptimizer(alternator, {"backbone": "*", "head": ("1", "*.norm")}, optimizer, model=model)
    AlternatingOptimizer(alternator, {"backbone": [model[0], log_alpha, "1.bias"], "head": "1"}, optimizer, model=model)
    AlternatingOptimizer(alternator, {"backbone": model.parameters(), "head": log_alpha}, optimizer)
    AlternatingOptimizer(alternator, {"backbone": "0", "head": "1"}, optimizer, model=model, always=["2", log_alpha])
    AlternatingOptimizer(alternator, {"backbone": "0", "head": "1"}, optimizer, model=model, always=("2", optimizer))
    AlternatingOptimizer(alternator, {"backbone": "*", "head": [1]}, optimizer, model=model)  # type: ignore[list-item]


def train_step(alternating: AlternatingOptimizer, modules: dict[str, nn.Linear]) -> str:
    """Without a parameter the class stands for one that does not accumulate."""
    return alternating.step(modules["head"](modules["encoder"](torch.ones(2, 4))).square().mean()).active


def follow(modules: dict[str, nn.Linear]) -> None:
    """In a loop that owns the optimizer."""
    optimizer = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()])
    follower = Follower(Alternator(modules, rule=Cycle(2)), modules, optimizer, delay=0)
    loss: Tensor = modules["head"](modules["encoder"](torch.ones(2, 4))).square().mean()
    torch.autograd.backward(loss)
    follower.before_update()
    optimizer.step()
    optimizer.zero_grad()
    assert_type(follower.after_step(loss), Decision | None)
    assert_type(follower.after_step({"encoder": 0.5}, ended=True, updated=False), Decision | None)
    assert_type(follower.active, str)
    follower.load_state_dict(follower.state_dict())
    assert_type(follower.force("head"), Decision)
    follower.flush()
    follower.close()


def misuse(alternating: AlternatingOptimizer, alternator: Alternator) -> None:
    AlternatingOptimizer(alternator, {}, {}, frozen_mode="train")  # type: ignore[call-overload]
    AlternatingOptimizer(alternator, {}, {}, frozen_state="free")  # type: ignore[call-overload]
    alternating.step(0.5)  # type: ignore[arg-type]
    alternating.step(losses={"head": "0.5"})  # type: ignore[dict-item]
    alternating.end_epoch("0.5")  # type: ignore[arg-type]
    alternating.force(1)  # type: ignore[arg-type]
    alternating.active = "head"  # type: ignore[misc]
    AlternatingOptimizer(alternator, {"encoder": 3}, {})  # type: ignore[dict-item]
    accumulating = AlternatingOptimizer(alternator, {}, {}, accumulate=2)
    str(accumulating.step().active)  # type: ignore[union-attr]
    train_step(accumulating, {})  # type: ignore[arg-type]
    Follower(alternator, {"encoder": 3}, {})  # type: ignore[dict-item]


if __name__ == "__main__":
    main()
