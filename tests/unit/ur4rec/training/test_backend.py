"""Backends by name."""

import importlib.util

import pytest

from ur4rec.errors import ConfigurationError
from ur4rec.training.backend import load_backend


def test_an_unknown_backend_is_an_error_that_lists_the_choices():
    with pytest.raises(ConfigurationError, match=r"backend must be one of \('torch', 'jax'\), got 'tensorflow'"):
        load_backend("tensorflow")


def test_a_missing_framework_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs torch.*pip install 'adaptive-alternator\[torch\]'"):
        load_backend("torch")
