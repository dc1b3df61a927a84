"""The real datasets, where an earlier run has cached them: the counts that published tables are about."""

import pytest

from ur4rec.data import describe, leave_one_out
from ur4rec.data.fetch import BUILT_IN
from ur4rec.data.sources import load_built_in
from ur4rec.files import cache_directory

EXPECTED = {
    "ml-100k": ((943, 1682, 100_000), "ff816e2291f9a61675200150b50575b0b6225b4ce2c2d4ec8a9eeb4dbc9f3078"),
    "ml-1m": ((6040, 3416, 999_611), "5ebb963746a1169d29ffc48b5f62101256a98209bf033208901f510d9a51ea72"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_and_split(name):
    cache = cache_directory() / "data"
    if not (cache / name).is_dir():
        pytest.skip(f"{name} is not cached; any run on it caches it")
    data = load_built_in(BUILT_IN[name], cache, None)
    facts = describe(data)
    counts, split_hash = EXPECTED[name]
    assert (facts["num_users"], facts["num_items"], facts["num_interactions"]) == counts
    assert leave_one_out(data).hash == split_hash
    assert facts["users_below_3"] == 0
    assert all(data.titles)
    assert sum(": " in text for text in data.texts) > 0.99 * data.num_items  # nearly all have genres
    if name == "ml-1m":
        assert facts["tied_last_two"] == pytest.approx(0.42, abs=0.005)
