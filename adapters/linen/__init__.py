"""Flax linen: a `TrainState` that moves the active modules only."""
