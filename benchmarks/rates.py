"""What this machine, or an accelerator, does in a second: products, copies and exponentials, by either backend.

Each figure is the best of some rounds: a rate is what the machine can do, and what disturbs it only makes it slower. A
CPU's is by the time of the processor, an accelerator's by the clock.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from work import Rates

SIZES = {"cpu": (1024, 2**26, 2**15), "accelerator": (8192, 2**29, 2**24), "quick": (64, 2**12, 2**8)}
"""The side of a square product, the numbers of a copy, and those of exponentials, by kind of device."""


def best_seconds(
    call: Callable[[], object], wait: Callable[[Any], object], rounds: int, calls: int, *, is_cpu: bool
) -> float:
    """The least seconds of a call over some rounds, each of some calls and one wait for the device."""
    clock = time.process_time if is_cpu else time.perf_counter
    wait(call())
    found = []
    for _ in range(rounds):
        start = clock()
        for _ in range(calls):
            last = call()
        wait(last)
        found.append((clock() - start) / calls)
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

    best = partial(best_seconds, wait=wait, rounds=rounds, is_cpu=device == "cpu")
    with torch.no_grad():
        product = best(lambda: factors[0] @ factors[1], calls=4)
        copy = best(lambda: target.copy_(source), calls=2)
        power = best(lambda: torch.exp(small, out=result), calls=200)
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
    is_cpu = jax.default_backend() == "cpu"
    best = partial(best_seconds, wait=jax.block_until_ready, rounds=rounds, is_cpu=is_cpu)
    product = best(lambda: multiply(factors[0], factors[1]), calls=4)
    copy = best(lambda: negate(source), calls=2)
    power = best(lambda: exponential(small), calls=200)
    return Rates(flops=2 * side**3 / product, bytes=8 * copied / copy, exponentials=exponentials / power)
