"""The errors that users meet. Each message states the rule, the value and the remedy."""

from collections.abc import Iterable


def quoted(value: object, maximum: int = 200) -> str:
    """A value as messages quote it: in one line, and cut short where it is long.

    Example:
        >>> quoted("rank"), quoted(12345, maximum=3), quoted(10**5000)
        ("'rank'", '123...', 'a huge int')
    """
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except ValueError:  # Python does not write integers of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= maximum else f"{text[:maximum]}..."


class AlternatorError(ValueError):
    """Base of every error that the library raises for something that the user can fix."""


class ConfigurationError(AlternatorError):
    """A configuration that cannot work: out of range, or one that could never switch."""


class UnknownNameError(ConfigurationError):
    """A name (of a rule, a dataset, a stage, ...) that does not exist.

    Example:
        >>> raise UnknownNameError("rule", "plato", ("plateau", "trend"))
        Traceback (most recent call last):
        ...
        alternator.errors.UnknownNameError: unknown rule 'plato'; expected one of ('plateau', 'trend')
    """

    def __init__(self, kind: str, name: object, choices: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {quoted(name)}; expected one of {tuple(choices)}")


class UnknownModuleError(UnknownNameError):
    """A module name that the alternator does not have."""

    def __init__(self, name: object, modules: tuple[str, ...]) -> None:
        super().__init__("module", name, modules)


class LossError(AlternatorError):
    """A loss that is missing, or that is not a scalar."""


class StateError(AlternatorError):
    """A saved state that belongs to another configuration or version, or that is damaged."""
