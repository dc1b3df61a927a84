"""How items of a history are found by name, and what is said where one cannot be."""

from types import SimpleNamespace

import pytest

from ur4rec.errors import DataError
from ur4rec.runs.recommender import Recommender

ITEMS = {
    **{"i1": "Dune", "i2": "Dune", "i3": "Dune II", "i4": "Star Wars (1977)", "i5": "[b]Heat :heart:"},
    **{f"s{number}": f"Sequel {number}" for number in range(9)},
}


@pytest.fixture
def recommender():
    found = Recommender.__new__(Recommender)  # a model has no part in it
    found.interactions = SimpleNamespace(item_ids=[*ITEMS], titles=[*ITEMS.values()])
    return found


@pytest.mark.parametrize(("name", "item"), [("i2", 1), ("dune ii", 2), ("wars", 3), (":heart:", 4), ("Sequel 8", 13)])
def test_an_item_is_found_by_id_title_or_part(recommender, name, item):
    assert recommender.find_items([name]).tolist() == [item]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dune", "an item must be named clearly, 'dune' fits 2 titles: give the id of one, 'i1' (Dune), 'i2' (Dune)"),
        ("seq", "'s0' (Sequel 0), 's1' (Sequel 1), 's2' (Sequel 2), 's3' (Sequel 3), 's4' (Sequel 4) and 4 more"),
        ("dunes", "the nearest are 'i1' (Dune), 'i2' (Dune), 'i3' (Dune II): give the id of one, or a part"),
        (
            "zzzz",
            "nor a title like it; give an id or a part of a title of the run's items, which are 'i1' (Dune), ",
        ),
    ],
)
def test_what_is_not_clear_is_refused_with_ids_to_choose_from(recommender, name, message):
    with pytest.raises(DataError) as refused:
        recommender.find_items([name])
    assert message in str(refused.value)
