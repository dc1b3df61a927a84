"""How precisely compiled functions compute: the same on every device."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit`, with matrix products in full float32 on every device, as in PyTorch: TF32 would make them differ."""

    @wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return jax.jit(traced, **options)
