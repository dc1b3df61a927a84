"""Meshes by their text, and parts of batches."""

import numpy as np
import pytest

from ur4rec.errors import ConfigurationError, ProcessesError
from ur4rec.training.mesh import Mesh, parse_mesh
from ur4rec.training.processes import check_equal, part_of


@pytest.mark.parametrize("text", ["", "data", "data=0", "data=-1", "rows=2", "data=2,data=2", "data=2;items=1", "2x4"])
def test_a_mesh_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"mesh must be such as 'data=4,items=2'"):
        parse_mesh(text, 4)


def test_a_mesh_must_use_all_devices() -> None:
    assert parse_mesh(" items=2, data=3 ", 6) == Mesh(data=3, items=2)
    with pytest.raises(ConfigurationError, match=r"as many devices as there are, 4, got 6 \(data=3,items=2\)"):
        parse_mesh("data=3,items=2", 4)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 8])
def test_parts_are_all_rows_in_their_order(num_rows: int, num_parts: int) -> None:
    rows = np.arange(num_rows)
    parts = [rows[part_of(num_rows, part, num_parts)] for part in range(num_parts)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert max(map(len, parts)) <= -(-num_rows // num_parts)


class TwoProcesses:
    """Process 0 of two; the other one has a value of its own."""

    rank, count = 0, 2

    def __init__(self, other: str) -> None:
        self.other = np.frombuffer(other.encode(), np.uint8)

    def any(self, flag: bool) -> bool:
        return flag

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [array, self.other]


def test_processes_that_disagree_are_refused() -> None:
    check_equal(TwoProcesses("3"), "the seed", "3")
    with pytest.raises(ProcessesError, match=r"the seed must be equal in all processes, got '3' in process 0 and '12'"):
        check_equal(TwoProcesses("12"), "the seed", "3")
