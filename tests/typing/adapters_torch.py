"""`adapters.torch` as a user writes it, in a training loop of their own."""

from typing import Any, assert_type

import torch
from torch import Tensor, nn

from adapters.torch import AlternatingOptimizer, LateScalar
from alternator import Alternator, Decision


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
    assert_type(alternating.step(loss, {alternating.active: loss.detach()}), Decision | None)
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


def misuse(alternating: AlternatingOptimizer, alternator: Alternator) -> None:
    alternating.step(0.5)  # type: ignore[arg-type]
    alternating.step(losses={"head": "0.5"})  # type: ignore[dict-item]
    alternating.force(1)  # type: ignore[arg-type]
    alternating.active = "head"  # type: ignore[misc]
    AlternatingOptimizer(alternator, {"encoder": 3}, {})  # type: ignore[dict-item]


if __name__ == "__main__":
    main()
