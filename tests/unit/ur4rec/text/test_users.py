"""User texts: what a file may hold, how each mistake is answered, and vectors in the space of the items."""

import json
import logging

import numpy as np
import pytest

from ur4rec.errors import DataError
from ur4rec.text.encoders import encode_items, encode_users
from ur4rec.text.users import hash_file, read_user_texts, write_user_texts

USERS = ["u1", "u2", "u3"]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "texts.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_texts_come_in_the_order_of_the_users(write):
    path = write('\ufeff{"u3": "noir", "u1": "", "u2": "  "}')  # a byte order mark and blank texts are accepted
    assert read_user_texts(path, USERS) == ["", "", "noir"]


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "texts.json"
    write_user_texts(path, USERS, ["Amélie; M", "", 'a "b"\n'])
    assert json.loads(path.read_text("utf-8")) == {"u1": "Amélie; M", "u3": 'a "b"\n'}
    assert read_user_texts(path, USERS) == ["Amélie; M", "", 'a "b"\n']
    before = hash_file(path)
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    assert hash_file(path) != before


def test_users_whom_the_dataset_does_not_have_are_passed_over_with_a_warning(write, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_user_texts(write('{"u2": "noir", "nobody": "x"}'), USERS) == ["", "noir", ""]
    assert "1 of 2 users are not in the dataset, such as 'nobody'" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"u1": "a",\n "u2" "b"}', r"texts.json:2, column 7: must be JSON \(Expecting ':' delimiter\)"),
        ('{"u1": "a"', r"texts.json:1, column 11: must be JSON"),
        ("", r"texts.json:1, column 1: must be JSON"),
        (b'{"u1":\n "a\xff"}', r"texts.json:2, column 4: must be UTF-8, got the byte 0xff"),
        (b'{"u1": "a\x00"}', r"texts.json:1, column 10: must be JSON \(Invalid control character at\)"),
        ('["a"]', "must hold one JSON object, user id to text, got list"),
        ('{"u1": "a", "u2": "b", "u1": "c"}', "every user must be there once, got 'u1' twice"),
        ('{"u1": 3}', "the text of user 'u1' must be a string, got 3"),
        ('{"u1": null}', "the text of user 'u1' must be a string, got null"),
        ('{"u1": {"likes": "noir"}}', "the text of user 'u1' must be a string, got {"),
        ('{"u1": "\\ud800"}', "the text of user 'u1' must be Unicode"),
        ('{"1": "noir", "2": "war"}', r"got none among 2 users; use the dataset's ids, such as \['u1', 'u2', 'u3'\]"),
        ('{"u1": " "}', "must have a text for at least one user"),
        ("{}", "must have a text for at least one user"),
        ("[" * 100_000, "must hold one JSON object of strings"),
        ('{"u1": ' + "1" * 5000 + "}", "must hold one JSON object of strings"),
    ],
)
def test_each_mistake_is_named(write, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_user_texts(write(content), USERS)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"must be readable, but .*none.json is not \(No such file"):
        read_user_texts(tmp_path / "none.json", USERS)
    with pytest.raises(DataError, match="must be readable"):
        hash_file(tmp_path)


def test_tfidf_user_vectors_lie_in_the_space_of_the_items(tmp_path):
    words = [[f"{group}{number}" for number in range(5)] for group in "abcdef"]
    rng = np.random.default_rng(0)
    for num_items, dim in ((60, 8), (60, 64)):  # with components and without
        items = [" ".join(rng.choice(words[item % 6], 4)) for item in range(num_items)]
        texts = ["", "unheard of", items[3], "a0 a1 a2 a3 a4 unheard"]
        settings = {"encoder": "tfidf", "dim": dim, "cache_dir": tmp_path}
        items_ID, users_UD = encode_items(items, **settings), encode_users(texts, items, **settings)
        assert not users_UD[:2].any()  # no text, and no word that the items have
        np.testing.assert_allclose(users_UD[2], items_ID[3], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(users_UD[2:], axis=1), 1, rtol=1e-5)
        similar_I = users_UD[3] @ items_ID.T
        assert similar_I[::6].min() > np.delete(similar_I, np.arange(0, num_items, 6)).max()


def test_user_vectors_are_cached_by_the_items_too(tmp_path, caplog):
    settings = {"encoder": "tfidf", "dim": 4, "cache_dir": tmp_path}
    first = encode_users(["red fox"], ["red hen", "blue fox"], **settings)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(encode_users(["red fox"], ["red hen", "blue fox"], **settings), first)
    assert "1 user texts: vectors of tfidf from the cache" in caplog.text
    assert not np.array_equal(encode_users(["red fox"], ["red fox", "green hen"], **settings), first)


def test_nobody_with_a_text_needs_no_encoder(tmp_path):
    assert encode_users(["", " "], ["red hen"], encoder="no such model", dim=3, cache_dir=tmp_path).tolist() == [
        [0] * 3,
        [0] * 3,
    ]
