"""Flax NNX: an `nnx.Optimizer` that moves the active modules only, and gradients for these alone."""

from adapters.nnx.optimizer import AlternatingOptimizer

__all__ = ["AlternatingOptimizer"]
