"""The adapters: `adapters.torch`, `adapters.optax`, `adapters.nnx`, `adapters.jax`. This package imports none of them."""
