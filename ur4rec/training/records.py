"""What is kept of a training step: its row of the decision log, as in ``decisions.csv``."""

from alternator.recordings.log import StepRecord

__all__ = ["StepRecord"]
