"""Files of recommendations hold every string byte for byte."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ur4rec.errors import ConfigurationError
from ur4rec.runs.recommendations import SUFFIXES, check_output, write_recommendations
from ur4rec.runs.recommender import SCHEMA

STRINGS = ["007", "=1+1", 'a "b", c', "two\nlines\r\n", " blank ", "NULL", "", "é\u2028\0", "1e5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_strings_come_back_as_they_were(tmp_path, suffix):
    rows = [
        {
            "user": user,
            "place": place,
            "item": user[::-1],
            "title": user,
            "fused": 0.5,
            "sasrec": 0.25,
            "retriever": 1.0,
            "cold": False,
        }
        for place, user in enumerate(STRINGS)
    ]
    path = tmp_path / f"recs{suffix}"
    write_recommendations(path, (pa.Table.from_pylist([row], SCHEMA) for row in rows))
    if suffix == ".parquet":
        assert pq.read_table(path).to_pylist() == rows
        assert pq.ParquetFile(path).num_row_groups == 1
    elif suffix == ".jsonl":
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == rows
    else:
        with path.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        assert [(row["user"], row["item"], row["title"]) for row in found] == [
            (user, user[::-1], user) for user in STRINGS
        ]


@pytest.mark.parametrize("name", ["recs", "recs.xlsx", "no/recs.csv", "folder.csv"])
def test_what_cannot_be_written_is_refused_before(tmp_path, name):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match="--out must"):
        check_output(tmp_path / name)
