"""Checks of single values, one line each for the user."""

from ur4rec.errors import ConfigurationError, UnknownNameError


def check_switch(name: str, value: object) -> None:
    """Refuse anything but True and False: a text such as "false" would count as on."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")


def check_range(name: str, value: object, least: float, below: float) -> None:
    """Refuse anything but a number of at least ``least`` and below ``below``."""
    if not is_number(value) or not least <= value < below:  # type: ignore[operator]
        raise ConfigurationError(f"{name} must be at least {least:g} and below {below:g}, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of the names."""
    if value not in choices:
        raise UnknownNameError(name, value, choices)


def is_number(value: object) -> bool:
    """Whether a value is an integer or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
