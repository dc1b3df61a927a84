"""The errors that users meet. Each message states the rule, the value and the remedy."""


class AlternatorError(ValueError):
    """Base of every error that the library raises for something the user can mend."""


class ConfigurationError(AlternatorError):
    """A configuration that cannot work: out of range, or one that could never switch."""


class UnknownModuleError(AlternatorError):
    """A module name that the alternator does not have."""

    def __init__(self, name: object, modules: tuple[str, ...]) -> None:
        super().__init__(f"unknown module {name!r}; expected one of {modules}")


class LossError(AlternatorError):
    """A loss that is missing, or that is not a scalar."""


class StateError(AlternatorError):
    """A saved state that belongs to another configuration or version, or that is damaged."""
