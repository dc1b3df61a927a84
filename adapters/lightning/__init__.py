"""Lightning: `AlternatingCallback` keeps the freeze contract within ``Trainer.fit``."""

from adapters.contract import FreezeError
from adapters.lightning.callback import AlternatingCallback

__all__ = ["AlternatingCallback", "FreezeError"]
