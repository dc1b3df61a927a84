"""PyTorch: train the module that the alternator chose, and leave every other one untouched to the bit."""

from adapters.contract import FreezeError
from adapters.torch.follower import Follower
from adapters.torch.losses import LateScalar
from adapters.torch.naming import parameters_by_module
from adapters.torch.optimizer import AlternatingOptimizer

__all__ = ["AlternatingOptimizer", "Follower", "FreezeError", "LateScalar", "parameters_by_module"]
