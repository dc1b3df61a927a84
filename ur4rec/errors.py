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
    "without_options",
]


class UR4RecError(AlternatorError):
    """Base of every error that the recommender raises for something that the user can fix."""


class DataError(UR4RecError):
    """Data that is malformed. Says the file, line and column where they are known.

    Args:
        fault: The rule and the value.
        remedy: What to do about the data.
        option: Which option of `ur4rec.options.DataOptions`, as a command has it, would read the data as it is. Where
            none can be given, `without_options` leaves it out.

    Example:
        >>> str(DataError("a.csv:2: must be a time, got '1.2.2020'", "write seconds", "give a --time-format"))
        "a.csv:2: must be a time, got '1.2.2020'; write seconds, or give a --time-format"
    """

    def __init__(self, fault: str, remedy: str = "", option: str = "") -> None:
        super().__init__("; ".join(filter(None, (fault, ", or ".join(filter(None, (remedy, option)))))))
        self.fault, self.remedy, self.option = fault, remedy, option


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


@contextmanager
def without_options(remedy: str) -> Iterator[None]:
    """Read a file for which no option can be given: errors advise none.

    Args:
        remedy: What to do where an option was all that was advised.

    Example:
        >>> with without_options("write one id per line"):
        ...     raise DataError("ids.csv: needs a column 'user', has 'who'", option="give --columns user=who")
        Traceback (most recent call last):
        ...
        ur4rec.errors.DataError: ids.csv: needs a column 'user', has 'who'; write one id per line
    """
    try:
        yield
    except DataError as error:
        if not error.option:
            raise
        raise type(error)(error.fault, error.remedy or remedy) from error
