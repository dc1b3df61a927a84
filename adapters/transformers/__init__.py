"""Transformers: `AlternatingCallback` keeps the freeze contract within ``Trainer.train``."""

from adapters.needed import require

require("torch,transformers", "torch", "transformers", "accelerate")

from adapters.contract import FreezeError  # noqa: E402  only now, with words for what is missing
from adapters.transformers.callback import AlternatingCallback  # noqa: E402

__all__ = ["AlternatingCallback", "FreezeError"]
