"""What a loss may be: a real scalar, checked by shape and type, so that no check waits for the device."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from alternator import LossError
from alternator.checks import to_float
from alternator.errors import quoted

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
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        given = f"a loss must be a real scalar, got {value.dtype}{list(value.shape)} for {whose}"
        if value.shape != ():
            raise LossError(f"{given}; reduce it with .mean()")
        _check_real(given, value.dtype)
        return
    try:
        to_float(value)
    except LossError as error:
        raise LossError(
            f"a loss must be a real scalar, got {quoted(value, 60)} for {whose}; give a number or an array of shape ()"
        ) from error


def check_vector(values: jax.Array | np.ndarray, count: int) -> None:
    """Refuse losses that are not one real number per module, without reading them.

    Raises:
        LossError: Naming what was given and the remedy.
    """
    if values.shape != (count,):
        raise LossError(f"losses must be one scalar, or one per module ({count}), got the shape {values.shape}")
    _check_real(f"losses must be real, got {values.dtype}{list(values.shape)}", values.dtype)


def _check_real(given: str, dtype: DTypeLike) -> None:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise LossError(f"{given}; take its .real")
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise LossError(f"{given}; give a number")
