"""The command `ur4rec`."""

from ur4rec.cli.app import main

__all__ = ["main"]
