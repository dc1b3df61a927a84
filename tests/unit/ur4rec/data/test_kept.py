"""What a run keeps of its data is the data again."""

from dataclasses import replace

import numpy as np
import pytest

from ur4rec.data import Interactions, synthetic
from ur4rec.data.kept import hash_contents, read_interactions, to_arrow, write_interactions

DATA = synthetic(num_users=40, num_items=30, num_clusters=5, mean_length=8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timestamps_N": DATA.timestamps_N + 0.5},
        {"parts_N": np.repeat(np.arange(4, dtype=np.int8), [len(DATA) - 9, 3, 3, 3])},
        {
            "titles": [f'"\n\r, \0 {item} é' for item in range(DATA.num_items)],
            "user_ids": ["0" * (n + 1) for n in range(40)],
        },
    ],
)
def test_it_is_read_as_it_was_written(tmp_path, changes):
    data = replace(DATA, **changes)
    write_interactions(tmp_path / "data", data, {"more": b"1"})
    again = read_interactions(tmp_path / "data")
    for name in Interactions.__dataclass_fields__:
        before, after = getattr(data, name), getattr(again, name)
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(after, before)
            assert after.dtype == before.dtype
        else:
            assert after == before
    assert (again.hash, hash_contents(again)) == (data.hash, hash_contents(data))
    assert (tmp_path / "data/more").read_bytes() == b"1"


@pytest.mark.parametrize(
    "changes",
    [
        {"titles": DATA.texts},
        {"user_ids": DATA.user_ids[::-1]},
        {"timestamps_N": DATA.timestamps_N + 1},
        {"parts_N": np.zeros(len(DATA), np.int8)},
        {"items_N": DATA.items_N[::-1]},
    ],
)
def test_the_hash_of_the_contents_tells_other_data(changes):
    assert hash_contents(replace(DATA, **changes)) != hash_contents(DATA)


def test_arrow_owns_the_memory_of_what_it_is_given():
    """A buffer of Python's that a thread of Arrow frees while the interpreter ends aborts the process."""
    numbers = np.arange(5)
    array = to_arrow(numbers)
    numbers[:] = 0
    assert array.to_pylist() == [0, 1, 2, 3, 4]
