"""The adapters, one framework a file: torch, optax, nnx, jax. This package imports none of them."""
