"""The command `ur4rec`."""

from ur4rec.cli.commands import app, main

__all__ = ["app", "main"]
