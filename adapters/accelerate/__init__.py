"""Accelerate: the freeze contract in a loop whose model, optimizer and loader `Accelerator.prepare` returned."""

from adapters.needed import require

require("torch,accelerate", "torch", "accelerate")

from adapters.accelerate.follower import Follower  # noqa: E402  only now, with words for what is missing
from adapters.contract import FreezeError  # noqa: E402

__all__ = ["Follower", "FreezeError"]
