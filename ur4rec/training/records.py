"""What is kept of a training step: its report, and its row of the decision log, as in ``decisions.csv``."""

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from alternator.recordings.log import StepRecord

__all__ = ["ArrayT", "StepRecord", "StepReport"]

ArrayT = TypeVar("ArrayT")
"""An array of a backend."""


class StepReport(NamedTuple, Generic[ArrayT]):
    """The losses of a training step, as scalars that may still be on the device."""

    total: ArrayT
    """The loss that was minimised."""
    modules: Mapping[str, ArrayT]
    """The raw primary loss of each module for which it was computed."""
    metrics: Mapping[str, ArrayT]
    """What else the epoch averages, by the metric's name (see `ur4rec.training.components`); NaN does not count."""
