"""Flax NNX: an `nnx.Optimizer` of which only the active modules move, and gradients for these alone."""

from adapters.nnx.optimizer import AlternatingOptimizer

__all__ = ["AlternatingOptimizer"]
