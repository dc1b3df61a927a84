"""The content of a text file: unpacked, decoded and checked, and in memory that Arrow owns while it is parsed."""

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from alternator.checks import one_line
from ur4rec.errors import DataError, without_options

MAX_BYTES, MAX_RATIO = 2**27, 100
"""What a file unpacks to (gzip, zstd, Parquet) has at most this number of bytes, or this number of times its own."""
MAX_LINE_BYTES = 2**24
"""A longer line is refused before the file is parsed, which would say which of its fields is too long."""
MAX_ROW_BYTES = 2**20
"""The maximum length of a row of a text file: the block that pyarrow reads at once."""
PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of packed text files, and what pyarrow calls their formats."""
LINE_END = re.compile(b"\r\n|\n|\r")
_MARK = codecs.BOM_UTF8
_WIDE_MARKS = {
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),  # these begin with those of UTF-16
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
_PIECE, _PEEKED = 2**22, 2**12


def bare_name(path: Path) -> str:
    """The name of a file without the suffix of its packing.

    Example:
        >>> bare_name(Path("plays.csv.gz"))
        'plays.csv'
    """
    return path.stem if path.suffix.lower() in PACKED else path.name


def kind_of(path: Path) -> str:
    """The suffix of a file in lower case, without that of its packing.

    Example:
        >>> kind_of(Path("meta.JSON.gz"))
        '.json'
    """
    return Path(bare_name(path)).suffix.lower()


def check_is_file(path: Path) -> None:
    """Refuse what is no file: nothing, directories, pipes."""
    if not path.is_file():
        found = "a directory" if path.is_dir() else "something else" if path.exists() else "none of that name"
        raise DataError(f"{path}: must be an existing file, got {found}", "give the path of one")


def read_content(path: Path, encoding: str = "utf-8") -> bytes:
    """The content as UTF-8 without a byte order mark, checked to be text in its encoding.

    Raises:
        DataError: The file is missing, empty, badly packed, in another encoding or has a line that no row may have.
    """
    check_is_file(path)
    try:
        content = _unpack(path) if path.suffix.lower() in PACKED else path.read_bytes()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or one_line(str(error))}"
        ) from error
    content = content.removeprefix(_MARK)
    if not content.strip():
        raise DataError(f"{path}: is empty; give a file with at least one row")
    _refuse_long_lines(path, content)
    return _as_utf8(path, content, encoding).removeprefix(_MARK)


def peek_line(path: Path) -> str:
    """The first line of a text file that is not empty, for messages: cut where it is long."""
    try:
        with pa.input_stream(str(path), compression=PACKED.get(path.suffix.lower())) as stream:
            start = stream.read(_PEEKED)
    except (OSError, pa.ArrowException):
        return ""
    return LINE_END.split(start.removeprefix(_MARK).lstrip(b"\r\n"), maxsplit=1)[0].decode(errors="replace")


def own(content: bytes | memoryview) -> pa.BufferReader:
    """A stream over a copy that Arrow owns.

    A thread of Arrow may let go of the last block that it has read while the interpreter ends: if Python owned the
    memory (`pa.py_buffer`, or an ``encoding`` that is decoded in Python) the process would abort, with exit code 134.
    """
    copy = pa.BufferOutputStream()
    copy.write(content)
    return pa.BufferReader(copy.getvalue())


def _unpack(path: Path) -> bytes:
    limit, pieces = max(MAX_BYTES, MAX_RATIO * path.stat().st_size), []
    with pa.input_stream(str(path), compression=PACKED[path.suffix.lower()]) as stream:
        while piece := stream.read(_PIECE):
            pieces.append(piece)
            if (limit := limit - len(piece)) < 0:
                raise DataError(
                    f"{path}: must unpack to at most {MAX_RATIO} times its size, this one is larger; unpack it first"
                )
    return b"".join(pieces)


def _as_utf8(path: Path, content: bytes, encoding: str, first_line: int = 1) -> bytes:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _no_text(path, content, error.start, encoding, first_line) from error
    is_wide = _is_wide(encoding)
    if is_wide and b"\0" not in content and _is_utf8(content):  # which reads as other characters
        raise DataError(f"{path}: must be {encoding} text, it is utf-8", option="leave out --encoding")
    utf8 = content if encoding == "utf-8" else text.encode()
    if b"\0" in utf8:
        whole = utf8 if is_wide or b"\0" not in content else content
        raise _no_text(path, whole, whole.find(b"\0"), encoding, first_line)
    return utf8


def _no_text(path: Path, content: bytes, place: int, encoding: str, first_line: int = 1) -> DataError:
    """The error that a byte is of no text in an encoding, with what would read the file."""
    before, found = content[:place], content[place]
    lines = LINE_END.split(before)
    fault = (
        f"{path}:{first_line + len(lines) - 1}, byte {len(lines[-1]) + 1}: must be {encoding} text, got the byte "
        f"0x{found:02x}"
    )
    likely = None if _is_wide(encoding) else find_wide_encoding(content)
    if likely is not None:
        return DataError(f"{fault}: it is {likely}", "save it as utf-8", f"give --encoding {likely}")
    if not found:
        return DataError(f"{fault}, which no text has", "remove such bytes, or give another file")
    if encoding != "utf-8":
        return DataError(fault, "save it as utf-8", "leave out --encoding" if _is_utf8(content) else "")
    usual = "cp1252" if re.search(rb"[\x80-\x9f]", content) else "latin-1"
    return DataError(fault, "save it as utf-8", f"give its --encoding, such as {usual}" if before.isascii() else "")


def find_wide_encoding(content: bytes) -> str | None:
    """UTF-16 or UTF-32, where a byte order mark or a NUL byte in every other place shows it.

    Example:
        >>> find_wide_encoding("user".encode("utf-16")), find_wide_encoding("user".encode("utf-16-be"))
        ('utf-16', 'utf-16-be')
    """
    if marked := next((name for mark, name in _WIDE_MARKS.items() if content.startswith(mark)), None):
        return marked
    start = content[:_PEEKED]
    shares = [part.count(0) / max(len(part), 1) for part in (start[::2], start[1::2])]
    if max(shares) < 0.5 or min(shares) > 0.1:
        return None
    return "utf-16-be" if shares[0] > shares[1] else "utf-16-le"


def _is_wide(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_long_lines(path: Path, content: bytes) -> None:
    """Refuse a line that no row may have, before the file is decoded and parsed: both take many times its memory."""
    start = 0
    while len(content) - start > MAX_LINE_BYTES:
        end = max(content.rfind(each, start, start + MAX_LINE_BYTES + 1) for each in (b"\n", b"\r"))
        if end < 0:
            lines = len(LINE_END.split(content[:start]))
            raise DataError(f"{path}:{lines}: a row must have at most {MAX_ROW_BYTES} bytes, got more; shorten it")
        start = end + 1


class ByteStream:
    """The unpacked bytes of a file, read block by block.

    Args:
        path: The file.

    Attributes:
        stream: The bytes, as pyarrow reads them.

    Raises:
        DataError: It is no file.
    """

    def __init__(self, path: Path) -> None:
        check_is_file(path)
        self._raw = pa.OSFile(str(path))
        packed = PACKED.get(path.suffix.lower())
        self.stream = self._raw if packed is None else pa.CompressedInputStream(self._raw, packed)
        self._size = max(path.stat().st_size, 1)

    @property
    def share(self) -> float:
        """How much of the file has been read, from 0 to 1."""
        return min(1.0, int(self._raw.tell()) / self._size)


def read_beginning(path: Path) -> bytes:
    """The first bytes of a UTF-8 file without a byte order mark: what its format is seen from.

    Raises:
        DataError: The file is missing, empty or badly packed.
    """
    with refuse_unreadable(path):
        content = bytes(ByteStream(path).stream.read(MAX_ROW_BYTES)).removeprefix(_MARK)
    if not content.strip():
        raise DataError(f"{path}: is empty; give a file with at least one row")
    if (place := content.find(b"\0")) >= 0:
        with without_options("save it as utf-8"):
            raise _no_text(path, content, place, "utf-8")
    return content


@contextmanager
def refuse_unreadable(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a file that it cannot read into one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(str(error))}") from error


def read_blocks(path: Path, size: int = 2**24) -> Iterator[tuple[int, bytes, float]]:
    """A text file in blocks of whole lines: the number of the first, the block, and the share that has been read.

    Raises:
        DataError: It is badly packed, no UTF-8 text, or has a line that no row may have.
    """
    source, line, rest = ByteStream(path), 1, b""
    while True:
        with refuse_unreadable(path):
            piece = bytes(source.stream.read(size))
        block = rest + piece
        if not piece and not block:
            return
        end = len(block) if not piece else max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1
        if not end and len(block) > MAX_LINE_BYTES:
            raise DataError(f"{path}:{line}: a row must have at most {MAX_ROW_BYTES} bytes, got more; shorten it")
        whole, rest = block[:end], block[end:]
        if whole:
            with without_options("save it as utf-8"):
                checked = _as_utf8(path, whole, "utf-8", line)
            yield line, checked.removeprefix(_MARK) if line == 1 else checked, source.share
            line += len(LINE_END.findall(whole))


def refuse_bytes(path: Path) -> None:
    """Raise for the first byte of a file that is no UTF-8 text, if there is one."""
    for _ in read_blocks(path):
        pass
