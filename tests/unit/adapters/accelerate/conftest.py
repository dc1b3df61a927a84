"""No state of Accelerate outlives a test."""

import pytest

from tests.unit.adapters.accelerate.accelerated_runs import forget


@pytest.fixture(autouse=True)
def alone():
    yield
    forget()
