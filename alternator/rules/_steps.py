"""Lengths of tenures: one number for all modules, or one per module."""

from alternator.checks import check_integer, plain
from alternator.errors import ConfigurationError


def check_steps(steps: object) -> int | tuple[int, ...]:
    """The lengths as integers; refuses anything but integers of at least 1."""
    steps = plain(steps)
    if isinstance(steps, (list, tuple)):
        return tuple(check_integer("steps", each, 1) for each in steps)
    return check_integer("steps", steps, 1)


def steps_per_module(steps: int | tuple[int, ...], num_modules: int) -> tuple[int, ...]:
    """The length of each module's tenures.

    Raises:
        ConfigurationError: There are several lengths, but not one per module.
    """
    each = (steps,) * num_modules if isinstance(steps, int) else steps
    if len(each) != num_modules:
        raise ConfigurationError(
            f"steps must be one number or one per module ({num_modules}), got {len(each)}: {steps}"
        )
    return each


def steps_of(steps: int | tuple[int, ...], index: int) -> int:
    """The length of a module's tenures."""
    return steps if isinstance(steps, int) else steps[index]
