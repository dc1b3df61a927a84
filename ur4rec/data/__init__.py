"""Data: interactions from built-in datasets, files or a generator, and their splits."""

from ur4rec.data.interactions import Interactions, build_interactions
from ur4rec.data.sequences import Sequences
from ur4rec.data.splits import Split, Targets, global_temporal, leave_one_out
from ur4rec.data.synthetic import synthetic

__all__ = [
    "Interactions",
    "Sequences",
    "Split",
    "Targets",
    "build_interactions",
    "global_temporal",
    "leave_one_out",
    "synthetic",
]
