"""Every case against every harness of the chosen backends."""

import pytest

from tests.conformance.cases import CASES
from tests.conformance.harness import Build
from tests.conformance.registry import chosen, harnesses, load


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    backends = chosen(metafunc.config.getoption("--backend", default=None))
    places = harnesses(backends)
    if "build" in metafunc.fixturenames:
        metafunc.parametrize("build", [load(place) for place in places.values()], ids=list(places), scope="module")


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, build: Build) -> None:
    CASES[case](build)
