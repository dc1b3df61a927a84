"""Each planted flaw is found by the cases that are there for it; and the table in the guide says which find which."""

from functools import cache

import pytest

from tests.conformance.cases import CASES
from tests.conformance.mutants import KILLED, Mutant, committed, mutants_of, render
from tests.conformance.registry import BACKENDS, chosen

row_of = cache(Mutant.row)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    backends = chosen(metafunc.config.getoption("--backend", default=None))
    if "mutant" in metafunc.fixturenames:
        mutants = [mutant for backend in backends for mutant in mutants_of(backend)]
        metafunc.parametrize("mutant", mutants, ids=[f"{mutant.backend}-{mutant.name}" for mutant in mutants])


def test_each_mutant_is_killed(mutant: Mutant) -> None:
    killers = {name for name, verdict in row_of(mutant).items() if verdict == KILLED}
    assert mutant.killers
    assert mutant.killers <= killers, f"survives {sorted(mutant.killers - killers)}; killed by {sorted(killers)}"


def test_each_case_kills_a_mutant_of_the_reference() -> None:
    rows = [row_of(mutant) for mutant in mutants_of("reference")]
    assert [name for name in CASES if not any(row[name] == KILLED for row in rows)] == []


def test_the_table_in_the_guide_is_up_to_date(request: pytest.FixtureRequest) -> None:
    backends = chosen(request.config.getoption("--backend", default=None))
    every = set(backends) >= set(BACKENDS)
    rows = [(mutant, row_of(mutant)) for backend in BACKENDS if backend in backends for mutant in mutants_of(backend)]
    table = render(rows) if every else ""
    kept = committed().splitlines()
    for line in table.splitlines() or render(rows).splitlines()[4 + len(CASES) :]:
        assert not line.startswith("| ") or line in kept, "run python -m tests.conformance.mutants"
    assert not every or table.splitlines() == kept, "run python -m tests.conformance.mutants"
