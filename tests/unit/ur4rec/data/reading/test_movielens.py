"""Both layouts of both MovieLens datasets, on tiny files: the same indices, titles and texts, hence the same hash."""

import pytest

from ur4rec.data import leave_one_out
from ur4rec.data.reading.movielens import find_layout, read_movielens
from ur4rec.errors import DataError

FLAGS = {"unknown": 0, "Comedy": 5, "Drama": 8, "Sci-Fi": 15}


def item_row(item, title, genre):
    """A line of u.item: 5 fields and 19 flags."""
    flags = ["1" if flag == FLAGS[genre] else "0" for flag in range(19)]
    return "|".join([item, title, "01-Jan-1995", "", "http://example.org", *flags]) + "\n"


OFFICIAL_100K = {
    "u.data": "7\t30\t3\t500\n5\t10\t4\t400\n7\t20\t1\t500\n5\t30\t2\t300\n7\t267\t2\t600\n",
    "u.item": (
        item_row("10", "Postino, Il (1994)", "Drama")
        + item_row("20", "Misérables, Les (1995)", "Comedy")
        + item_row("30", "Land Before Time III (1995) (V)", "Sci-Fi")
        + item_row("267", "unknown", "unknown")
    ),
}
COPY_100K = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + OFFICIAL_100K["u.data"],
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tPostino, Il\t1994\tDrama\n20\tMisérables, Les\t1995\tComedy\n"
        "30\tLand Before Time III (1995)\tV\tSci-Fi\n267\tunkonwn\tunkonwn\tunknown\n"
    ),
}
OFFICIAL_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n2::661::3::978301968\n1::914::3::978301968\n",
    "movies.dat": (
        "661::James and the Giant Peach (1996)::Animation|Children's\n914::Misérables, Les (1964)::Musical\n"
        "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n"
    ),
}
COPY_1M = {
    "ml-1m.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
        "1m_1\tOne Flew Over the Cuckoo's Nest (1975)\t5\t978300760\r\n"
        "1m_1\tJames and the Giant Peach (1996)\t3\t978302109\r\n"
        "1m_2\tJames and the Giant Peach (1996)\t3\t978301968\r\n"
        "1m_1\tMisérables, Les (1964)\t3\t978301968\r\n"
    ),
    "ml-1m.item": (
        "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
        "James and the Giant Peach (1996)\tJames and the Giant Peach\t1996\tAnimation Children's\r\n"
        "Misérables, Les (1964)\tMisérables, Les\t1964\tMusical\r\n"
        "One Flew Over the Cuckoo's Nest (1975)\tOne Flew Over the Cuckoo's Nest\t1975\tDrama\r\n"
    ),
}
LAYOUTS = {"ml-100k": (OFFICIAL_100K, COPY_100K), "ml-1m": (OFFICIAL_1M, COPY_1M)}


def write(directory, files, encoding):
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_bytes(text.encode(encoding))
    return directory


@pytest.fixture(params=LAYOUTS)
def both(request, tmp_path):
    """The name of a dataset and the directories of its two layouts."""
    official, copy = LAYOUTS[request.param]
    return request.param, write(tmp_path / "official", official, "latin-1"), write(tmp_path / "copy", copy, "utf-8")


def test_both_layouts_agree(both):
    name, *directories = both
    official, copy = (read_movielens(name, path, min_item_interactions=1, source="test") for path in directories)
    assert official.hash == copy.hash
    assert leave_one_out(official).hash == leave_one_out(copy).hash
    assert official.titles == copy.titles
    assert official.texts == copy.texts
    assert official.user_ids == copy.user_ids
    assert official.timestamps_N.tolist() == copy.timestamps_N.tolist()
    assert "Misérables, Les (1995)" in official.titles or "Misérables, Les (1964)" in official.titles


def test_both_layouts_agree_after_dropping_rare_items(both):
    name, *directories = both
    official, copy = (read_movielens(name, path, min_item_interactions=2, source="test") for path in directories)
    assert official.hash == copy.hash
    assert official.titles == copy.titles
    assert official.num_items == 1


def test_canonical_order_titles_and_texts(tmp_path):
    data = read_movielens(
        "ml-100k", write(tmp_path / "x", OFFICIAL_100K, "latin-1"), min_item_interactions=1, source="test"
    )
    assert data.user_ids == ["7", "5"]
    assert data.item_ids == ["30", "10", "20", "267"]
    assert data.texts == [
        "Land Before Time III (1995) (V): Sci-Fi",
        "Postino, Il (1994): Drama",
        "Misérables, Les (1995): Comedy",
        "unknown",
    ]
    assert data.items_N.tolist() == [0, 1, 0, 2, 3]
    assert data.timestamps_N.tolist() == [300, 400, 500, 500, 600]
    assert data.users_N.tolist() == [1, 1, 0, 0, 0]


def test_several_genres(tmp_path):
    data = read_movielens("ml-1m", write(tmp_path / "x", COPY_1M, "utf-8"), min_item_interactions=1, source="test")
    assert data.texts[1] == "James and the Giant Peach (1996): Animation, Children's"


def test_layouts_are_told_apart(both, tmp_path):
    name, official, copy = both
    assert find_layout(name, official) == tuple(LAYOUTS[name][0])
    assert find_layout(name, copy) == tuple(LAYOUTS[name][1])
    assert find_layout(name, tmp_path) is None


def test_a_damaged_official_row_is_named(tmp_path):
    files = OFFICIAL_1M | {"ratings.dat": "1::1193::5::978300760\n1::661::3\n"}
    directory = write(tmp_path / "x", files, "latin-1")
    with pytest.raises(DataError, match=r"ratings.dat:2, column 3: every row must have 4 fields, got 3; fix the row"):
        read_movielens("ml-1m", directory, min_item_interactions=1, source="test")


def test_a_bad_official_time_is_named(tmp_path):
    files = OFFICIAL_100K | {"u.data": "7\t30\t3\t500\n5\t10\t4\tnoon\n"}
    directory = write(tmp_path / "x", files, "latin-1")
    with pytest.raises(DataError, match=r"u.data:2, column 'timestamp': must be a finite number .* got 'noon'"):
        read_movielens("ml-100k", directory, min_item_interactions=1, source="test")
