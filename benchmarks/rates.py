"""What this machine, or an accelerator, does in a second: products, copies and exponentials, by either backend.

Each figure is the best of some rounds: a rate is what the machine can do, and what disturbs it only makes it slower.
"""

import time
from collections.abc import Callable
from typing import Any

from work import Rates

SIZES = {"cpu": (1024, 2**26, 2**15), "accelerator": (8192, 2**29, 2**24), "quick": (64, 2**12, 2**8)}
"""The side of a square product, the numbers of a copy, and those of exponentials, by kind of device."""


def best_seconds(call: Callable[[], object], wait: Callable[[Any], object], rounds: int, calls: int) -> float:
    """The least seconds of a call over some rounds, each of some calls and one wait for the device."""
    wait(call())
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        found.append((time.perf_counter() - start) / calls)
    return min(found)


def torch_rates(device: str, kind: str, *, rounds: int = 7, dtype: str = "float32") -> Rates:
    """PyTorch's, with products of a type."""
    import torch

    side, copied, exponentials = SIZES[kind]
    factors = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
    source, target = torch.randn(2, copied, device=device)
    small = torch.randn(exponentials, device=device)
    result = torch.empty_like(small)

    def wait(_: object) -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.no_grad():
        product = best_seconds(lambda: factors[0] @ factors[1], wait, rounds, 4)
        copy = best_seconds(lambda: target.copy_(source), wait, rounds, 2)
        power = best_seconds(lambda: torch.exp(small, out=result), wait, rounds, 200)
    return Rates(flops=2 * side**3 / product, bytes=8 * copied / copy, exponentials=exponentials / power)


def jax_rates(kind: str, *, rounds: int = 7, dtype: str = "float32") -> Rates:
    """JAX's, on its default device."""
    import jax
    import jax.numpy as jnp

    side, copied, exponentials = SIZES[kind]
    factors = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
    source = jax.random.normal(jax.random.key(1), (copied,))
    small = jax.random.normal(jax.random.key(2), (exponentials,))
    multiply, negate, exponential = jax.jit(jnp.matmul), jax.jit(jnp.negative), jax.jit(jnp.exp)
    wait = jax.block_until_ready
    product = best_seconds(lambda: multiply(factors[0], factors[1]), wait, rounds, 4)
    copy = best_seconds(lambda: negate(source), wait, rounds, 2)
    power = best_seconds(lambda: exponential(small), wait, rounds, 200)
    return Rates(flops=2 * side**3 / product, bytes=8 * copied / copy, exponentials=exponentials / power)
