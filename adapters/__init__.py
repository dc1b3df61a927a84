"""Adapters: `adapters.torch`, `adapters.optax`, `adapters.nnx`, `adapters.jax`. This package imports nothing by itself."""
