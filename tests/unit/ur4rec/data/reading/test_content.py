"""Text in another encoding than it is read in: the advice is what would read it."""

import pytest

from ur4rec.data import load_dataset
from ur4rec.data.reading.content import find_wide_encoding
from ur4rec.data.reading.ids import read_ids
from ur4rec.data.reading.opening import open_source
from ur4rec.errors import DataError, without_options
from ur4rec.options import DataOptions

TEXT = "user,item,timestamp\n" + "".join(f"u{number % 3},i{number},{number}\n" for number in range(9))
ADVISED = {
    "utf-16": (TEXT.encode("utf-16"), "it is utf-16; save it as utf-8, or give --encoding utf-16$"),
    "utf-16-le": (TEXT.encode("utf-16-le"), "it is utf-16-le; save it as utf-8, or give --encoding utf-16-le$"),
    "utf-16-be": (TEXT.encode("utf-16-be"), "it is utf-16-be; save it as utf-8, or give --encoding utf-16-be$"),
    "utf-32": (TEXT.encode("utf-32"), "it is utf-32; save it as utf-8, or give --encoding utf-32$"),
    "a NUL byte": (
        TEXT.replace("u1", "\0", 1).encode(),
        ":3, byte 1: .*0x00, which no text has; remove such bytes, or",
    ),
    "latin-1": (
        TEXT.replace("u1", "é").encode("latin-1"),
        "save it as utf-8, or give its --encoding, such as latin-1$",
    ),
    "cp1252": (TEXT.replace("u1", "€").encode("cp1252"), "save it as utf-8, or give its --encoding, such as cp1252$"),
    "damaged": (TEXT.replace("u1", "é").encode() + b"u\xff,i,1\n", ":11, byte 2: .*0xff; save it as utf-8$"),
}


@pytest.mark.parametrize("name", ADVISED)
def test_the_advised_encoding_reads_the_file(tmp_path, name):
    content, message = ADVISED[name]
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        load_dataset(path)
    if "--encoding" in refused.value.option:
        encoding = refused.value.option.split()[-1]
        assert len(load_dataset(path, options=DataOptions(encoding=encoding))) == 9


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_that_was_given_gets_the_same_advice(tmp_path, name):
    (tmp_path / "x.csv").write_bytes(ADVISED[name][0])
    with pytest.raises(DataError, match=f"must be latin-1 text, .*: {ADVISED[name][1]}"):
        load_dataset(tmp_path / "x.csv", options=DataOptions(encoding="latin-1"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "ascii"])
def test_utf_8_that_is_read_as_something_else(tmp_path, encoding):
    (tmp_path / "x.csv").write_text(TEXT.replace("u1", "é"))
    with pytest.raises(DataError, match=rf"must be {encoding} text, .* leave out --encoding$"):
        load_dataset(tmp_path / "x.csv", options=DataOptions(encoding=encoding))


@pytest.mark.parametrize("name", ADVISED)
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_what_is_read_in_pieces_must_be_utf_8_and_advises_no_option(tmp_path, name, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(ADVISED[name][0])
    with pytest.raises(DataError, match="must be utf-8 text") as refused:
        for _ in open_source(path, DataOptions()).tables(None):
            pass
    assert "--" not in str(refused.value)


def test_json_lines_that_are_read_in_pieces_are_not_of_another_encoding(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"user": "u", "item": "i", "timestamp": 1}\n', encoding="latin-1")
    with pytest.raises(DataError, match=r"must be UTF-8 .*, it is text in latin-1; write it so, or leave it as it is"):
        open_source(tmp_path / "x.jsonl", DataOptions(encoding="latin-1"))


IDS = {
    "x.csv": (b"who\nu1\n", "needs a column 'user', has 'who'; rename it, or write one id per line"),
    "y.csv": ("user\né\n".encode("latin-1"), "got the byte 0xe9; save it as utf-8$"),
    "x.txt": ("é\n".encode("utf-16"), "it is utf-16; save it as utf-8$"),
    "x.inter": (b"user\nu1\n", "must be name:type with a type of .*; fix the header$"),
}


@pytest.mark.parametrize("name", IDS)
def test_lists_of_ids_advise_no_option(tmp_path, name):
    content, message = IDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_ids(tmp_path / name, ("user", "user_id"))


def test_a_few_bytes_show_no_encoding():
    assert find_wide_encoding(b"\0" * 100) is None
    assert find_wide_encoding(b"a,b\n1,2\n") is None
    assert find_wide_encoding(b"") is None


def test_an_error_without_an_option_stays_as_it_is():
    with pytest.raises(DataError, match=r"^no; do this$") as refused, without_options("never said"):
        raise DataError("no", "do this")
    assert refused.value.__cause__ is None
