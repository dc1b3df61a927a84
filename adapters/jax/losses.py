"""What a loss may be: a real scalar, checked by shape and type, so that no check waits for the device."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from alternator import LossError
from alternator.checks import cut

Losses = ArrayLike | Mapping[str, ArrayLike]
"""The active module's loss, or losses by module."""


def check_scalar(whose: str, value: object) -> None:
    """Refuse a loss that is not a real scalar, without reading it.

    Raises:
        LossError: Naming the module, what was given and the remedy.

    Example:
        >>> check_scalar("'encoder'", np.zeros(1))
        Traceback (most recent call last):
        alternator.errors.LossError: a loss must be a real scalar, got float64[1] for 'encoder'; reduce it with .mean()
    """
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        try:
            float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            given = cut(repr(value))
            raise LossError(
                f"a loss must be a real scalar, got {given} for {whose}; give a number or an array of shape ()"
            ) from error
        return
    given = f"a loss must be a real scalar, got {value.dtype}{list(value.shape)} for {whose}"
    if value.shape != ():
        raise LossError(f"{given}; reduce it with .mean()")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise LossError(f"{given}; take its .real")
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise LossError(f"{given}; give a number")
