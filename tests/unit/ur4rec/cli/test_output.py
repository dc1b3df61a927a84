"""What is printed is whole: no number is cut, no path broken, on a terminal of any width and in a file."""

import io

import pytest
from rich.console import Console

from ur4rec.cli import output
from ur4rec.cli.tables import metrics_table

METRICS = {f"{metric}@{k}": 0.1234 for metric in ("hit", "ndcg") for k in (5, 10, 20)}
ROWS = dict.fromkeys(("SASRec alone", "retriever alone, repeated"), METRICS)
PATH = "/".join(["/a/long/way", "to the runs of mine", "x" * 90, "run"])


@pytest.fixture
def printed(monkeypatch):
    """Gives what something prints: on a terminal of a width, or with None to a file."""

    def print_to(width, say, *content):
        file = io.StringIO()
        console = Console(file=file, width=width or 80, force_terminal=width is not None, color_system=None)
        monkeypatch.setattr(output, "_console", console)
        say(*content)
        return file.getvalue()

    return print_to


@pytest.mark.parametrize("width", [None, 200, 80, 40, 20, 1])
def test_no_number_of_a_table_is_cut(printed, width):
    text = printed(width, output.say_table, metrics_table("Test", ROWS))
    assert text.count("0.1234") == 12
    assert "…" not in text
    assert {word for word in text.split() if word[0].isalpha()} >= {"SASRec", "alone", "retriever", "repeated"}


def test_a_table_fits_a_terminal_if_it_can(printed):
    lines = printed(76, output.say_table, metrics_table("Test", ROWS)).splitlines()
    assert max(map(len, lines)) == 76
    assert [line for line in lines if "alone, repeated" not in line and "repeated" in line]


def test_a_table_in_a_file_is_as_wide_as_it_is(printed):
    titles = ["The title of an item " * 20, "i" * 300]
    text = printed(None, output.say_table, output.build_table({"title": {}}, [[each] for each in titles], title="t"))
    assert all(title.strip() in text for title in titles)


def test_on_a_terminal_words_are_wrapped_and_only_what_is_no_word_is_broken(printed):
    table = output.build_table(
        {"id": {}, "title": {}}, [["d7a1b0de-8a8e-4c1a-9b1c-1f2e3d4c5b6a", "w" * 100]], title="t"
    )
    text = printed(60, output.say_table, table)
    assert "d7a1b0de-8a8e-4c1a-9b1c-1f2e3d4c5b6a" in text
    assert text.count("w") == 100
    assert "w" * 41 not in text


@pytest.mark.parametrize("width", [None, 80, 20])
def test_a_path_is_in_one_line(printed, width):
    assert printed(width, output.say, f"Everything is in {PATH}") == f"Everything is in {PATH}\n"
    assert f"{PATH}, test targets\n" in printed(width, output.say_table, metrics_table(f"{PATH}, test targets", ROWS))


REPORT = f"""# Schedules

Run it again:

    ur4rec compare --out {PATH} --updates 16

![Who trained when](turns.png)

| arm | change | {" | ".join(["NDCG@10"] * 9)} |
| --- | --- | {" | ".join(["---"] * 9)} |
| matched:plateau | -3.9% [-39.4%, +33.0%] | {" | ".join(["0.0261 (1.00x)"] * 9)} |
"""


@pytest.mark.parametrize("width", [None, 80, 20])
def test_a_report_is_whole(printed, width):
    text = printed(width, output.say_markdown, REPORT)
    assert f"ur4rec compare --out {PATH} --updates 16\n" in text
    words = text.split()
    assert [words.count(each) for each in ("0.0261", "(1.00x)", "+33.0%]", "matched:plateau")] == [9, 9, 1, 1]
    assert not {"…", "🌆"} & set(text)


def test_heads_are_shown_as_they_are(printed):
    text = printed(80, output.say_table, output.build_table({"[b]:heart:": {}}, [["x"]], title="[b]:smile:"))
    assert "[b]:heart:" in text
    assert "[b]:smile:" in text
