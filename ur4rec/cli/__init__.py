"""The command `ur4rec`."""

from ur4rec.cli.app import app, main

__all__ = ["app", "main"]
