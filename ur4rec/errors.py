"""The errors that users of the recommender meet. Each message states the rule, the value and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from alternator import AlternatorError, ConfigurationError, UnknownNameError

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "EncoderError",
    "LeakageError",
    "NonFiniteError",
    "OutOfMemoryError",
    "ProcessesError",
    "SourceError",
    "UR4RecError",
    "UnknownNameError",
    "refuse_malformed",
]


class UR4RecError(AlternatorError):
    """Base of every error that the recommender raises for something that the user can fix."""


class DataError(UR4RecError):
    """Data that is malformed. Says the file, line and column where they are known."""


class LeakageError(DataError):
    """User texts that reveal what is held out from training."""


class SourceError(UR4RecError):
    """A dataset that no source could supply. Lists every source that was tried and why it failed."""


class CacheError(UR4RecError):
    """A cache that cannot be written, or that others can write."""


class EncoderError(UR4RecError):
    """A text encoder that is missing or failed."""


class NonFiniteError(UR4RecError):
    """A score or loss that is NaN or infinite where a number is needed."""


class OutOfMemoryError(UR4RecError):
    """Memory that ran out, of the machine or an accelerator. Says what was being made, its size and what to lower."""


class ProcessesError(UR4RecError):
    """Processes of one run that disagree, or one of them that is lost."""


class CheckpointError(UR4RecError):
    """A checkpoint that is missing, damaged, or of another configuration."""


@contextmanager
def refuse_malformed(what: object, remedy: str, kind: type[UR4RecError] = DataError) -> Iterator[None]:
    """Turn whatever a document of another form leads to, while it is interpreted, into one error that names it.

    For code that does nothing but read what came from a file: a missing key or a wrong type there is the file's fault.

    Args:
        what: The file.
        remedy: What to do about it.
        kind: The class of the error.

    Example:
        >>> with refuse_malformed("costs.json", "measure them again"):
        ...     float({"seconds": "many"}["seconds"])
        Traceback (most recent call last):
        ...
        ur4rec.errors.DataError: costs.json is damaged (ValueError: could not convert string ...); measure them again
    """
    try:
        yield
    except AlternatorError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise kind(f"{what} is damaged ({type(error).__name__}: {error}); {remedy}") from error
