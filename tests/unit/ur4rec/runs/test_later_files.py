"""Files of what came after a run was trained: their errors name no option, as the command has none for them."""

import pytest

from ur4rec.data import synthetic
from ur4rec.errors import DataError
from ur4rec.options import DataOptions
from ur4rec.runs.recommender import _with_later

FORM = "write the file as the run's data is written$"
INTERACTIONS = {
    "times": (
        b"user,item,timestamp\nu,i,yesterday\n",
        "got 'yesterday'; write seconds as a number, or an ISO 8601 date$",
    ),
    "an order": (b"user,item,timestamp\nu,i,01/02/2020\n", f"may have the day or the month first, .*; {FORM}"),
    "columns": (b"who,item,timestamp\nu,i,1\n", f"needs a column 'user', has 'who', 'item', 'timestamp'; {FORM}"),
    "no header": (b"u,i,1\nu,j,2\n", f"its first line must be names of columns, it looks like values; {FORM}"),
    "latin-1": ("user,item,timestamp\né,i,1\n".encode("latin-1"), "got the byte 0xe9; save it as utf-8$"),
    "no rating": (b"user,item,timestamp\nu,i,1\n", f"needs a column 'rating', .*; {FORM}"),
}


@pytest.mark.parametrize("name", INTERACTIONS)
def test_later_interactions_advise_no_option(tmp_path, name):
    content, message = INTERACTIONS[name]
    (tmp_path / "later.csv").write_bytes(content)
    options = DataOptions(min_rating=3) if name == "no rating" else DataOptions()
    with pytest.raises(DataError, match=message) as refused:
        _with_later(synthetic(num_users=20, num_items=60), options, tmp_path / "later.csv", None)
    assert "--" not in str(refused.value)


def test_later_items_advise_no_option(tmp_path):
    (tmp_path / "items.csv").write_text("item,label\ni,x\n")
    with pytest.raises(
        DataError, match=r"needs a column 'name', .*; write the file as the items of the run's data are"
    ):
        _with_later(synthetic(num_users=20, num_items=60), DataOptions(title="name"), None, tmp_path / "items.csv")
