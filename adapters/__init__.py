"""The adapters, one package per framework. Importing this one imports none of them."""

import sys
import warnings
from importlib.metadata import distributions

NAMESAKES = tuple(distributions(name="adapters"))
"""Installed distributions of others that have a package of this name."""

if NAMESAKES and "alternator" not in sys.modules:  # which has said it; who wants theirs does not import that
    warnings.warn(
        "this package 'adapters' is adaptive-alternator's, but the distribution adapters "
        f"{NAMESAKES[0].version} has one too; use adaptive-alternator in an environment without it",
        stacklevel=2,
    )
