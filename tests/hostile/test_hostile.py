"""Whatever the commands are given, they say in one line what is wrong with it, and leave everything as it is."""

import itertools
import shutil
import sys

import pytest

from tests.hostile import corpus
from tests.hostile.commands import Commands, tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and figures of processes are Linux's")
SECONDS, MEGABYTES = 2, 500


@pytest.fixture(scope="session")
def commands():
    with Commands() as started:
        yield started


@pytest.fixture(scope="session")
def good(commands, tmp_path_factory):
    """What the cases damage."""
    directory = tmp_path_factory.mktemp("good")
    made = commands.run(directory, "tests.hostile.good:make")
    assert made.code == 0, made.stderr
    return directory


@pytest.fixture
def copy(good, tmp_path):
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def refused(commands, directory, words, message):
    """Whether a command says so in one line, at a bounded cost, and changes nothing but its own output."""
    before = tree(directory)
    outcome = commands.run(directory, *words)
    report = f"{' '.join(map(str, words))[:300]}: {outcome.stderr[-1500:]}"
    assert outcome.code == 2, report
    assert len(outcome.stderr.strip().splitlines()) == 1, report
    assert message in outcome.stderr, report
    assert "enough memory" not in outcome.stderr, report
    assert outcome.seconds < SECONDS, report
    assert outcome.megabytes < MEGABYTES, report
    own = ("new",) if words[1] == "compare" else ()  # a study begins with what is to be compared
    assert tree(directory, without=own) == before, report
    shutil.rmtree(directory / "new", ignore_errors=True)


@pytest.mark.parametrize("kind", corpus.COMMANDS)
def test_what_is_good_is_taken(commands, copy, kind):
    for words in corpus.COMMANDS[kind]:
        if words[1] == "compare" and "--report-only" not in words and "new" in words:
            continue  # a study of its own takes a while, and has tests of its own
        outcome = commands.run(copy, *words)
        assert outcome.code == 0, outcome.stderr
        for made in ("new", "converted"):
            shutil.rmtree(copy / made, ignore_errors=True)


@pytest.mark.parametrize("case", corpus.CASES, ids=lambda case: case.label)
def test_what_is_damaged_is_refused(commands, copy, case):
    case.damage(copy)
    for words in corpus.COMMANDS[case.kind]:
        refused(commands, copy, words, case.message)


@pytest.mark.parametrize("name", corpus.SETTINGS)
def test_settings_are_refused(commands, copy, name):
    for words in corpus.with_settings(corpus.SETTINGS[name]):
        refused(commands, copy, words, "")


@pytest.mark.parametrize("name", corpus.RULE_SETTINGS)
def test_settings_of_a_rule_are_refused(commands, copy, name):
    refused(commands, copy, ("alternator", "replay", "losses.csv", *corpus.RULE_SETTINGS[name]), "")


def test_no_two_cases_have_one_name():
    assert not [
        name for name, group in itertools.groupby(sorted(case.label for case in corpus.CASES)) if len([*group]) > 1
    ]
