"""Prepares data of any number of rows: reads files piece by piece and writes what `ur4rec.data.prepared` maps."""

from ur4rec.data.preparing.prepare import prepare_files

__all__ = ["prepare_files"]
