"""Data: interactions from built-in datasets, files or a generator, and their splits."""

from ur4rec.data.describe import describe
from ur4rec.data.interactions import Interactions, Sequences, build_interactions
from ur4rec.data.sample import sample_users, without_texts
from ur4rec.data.sources import load_dataset
from ur4rec.data.splits import Split, Targets, as_given, global_temporal, leave_one_out, make_split
from ur4rec.data.synthetic import synthetic
from ur4rec.options import DataOptions

__all__ = [
    "DataOptions",
    "Interactions",
    "Sequences",
    "Split",
    "Targets",
    "as_given",
    "build_interactions",
    "describe",
    "global_temporal",
    "leave_one_out",
    "load_dataset",
    "make_split",
    "sample_users",
    "synthetic",
    "without_texts",
]
