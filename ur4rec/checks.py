"""Checks of single values, one line each for the user: those of the core."""

from alternator.checks import check_choice

__all__ = ["check_choice"]
