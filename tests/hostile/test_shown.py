"""What comes from data is shown as it is: no markup of Rich, no orders to a terminal, no mathtext in a plot.

A test per place where strings are shown, and one that finds new places: only the files named here may show any.
"""

import ast
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

import alternator.cli
from tests.integration.tiny_run import invoke
from ur4rec.cli import output
from ur4rec.cli.tables import metrics_table
from ur4rec.compare import plots
from ur4rec.runs import plot

ROOT = Path(__file__).parents[2]
EVIL = "[/b] [deluxe edition] [red]x\x1b]0;owned\x07\x9b2J\u202e $\\frac{$"
SHOWN = (
    EVIL.replace("\x1b", "\\u001b").replace("\x07", "\\u0007").replace("\x9b", "\\u009b").replace("\u202e", "\\u202e")
)
ORDERS = set("\x1b\x07\x9b\u202e")


@pytest.fixture
def terminal(monkeypatch):
    """What reaches a terminal, wide and with colours."""
    shown = io.StringIO()
    monkeypatch.setattr(output, "_console", Console(file=shown, width=400, highlight=False))
    return shown


def assert_shown(text):
    assert SHOWN in text
    assert not ORDERS & set(text)


def test_tables_show_titles_and_cells_as_they_are(terminal):
    output.say_table(output.build_table({"title": {}}, [[EVIL]], title="t"))
    assert_shown(terminal.getvalue())
    scores = {f"{metric}@{k}": 0.5 for metric in ("hit", "ndcg") for k in (5, 10, 20)}
    output.say_table(metrics_table(EVIL, {EVIL: scores}))
    assert terminal.getvalue().count(SHOWN) == 3


def test_lines_and_reports_show_what_they_say(terminal):
    output.say(EVIL)
    output.say_markdown(f"    {EVIL}")
    output.say_markdown("[a](https://evil.example)")
    assert terminal.getvalue().count(SHOWN) == 2
    assert_shown(terminal.getvalue())  # a link in a terminal is an order too


def test_json_shows_escapes_and_means_the_same(capsys):
    output.say_json([EVIL, "日本"])
    text = capsys.readouterr().out
    assert not ORDERS & set(text)
    assert "日本" in text
    assert json.loads(text) == [EVIL, "日本"]


def test_a_dataset_with_such_a_path_is_described_and_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(output._console, "_width", 400)  # whatever the environment said when it was made
    name = EVIL.replace("/", "") + ".csv"
    path = tmp_path / name
    path.write_text("\n".join(["user,item,timestamp", *(f"u{n % 5},i{n},{n}" for n in range(30))]))
    result = invoke("data", path)
    assert result.exit_code == 0
    assert SHOWN.replace("/", "") in result.stdout.replace("\n", "")
    path.write_text("user,item\n1,2")
    refused = invoke("data", path)
    assert refused.exit_code == 2
    assert SHOWN.replace("/", "") in refused.stderr
    assert not ORDERS & {*result.output, *refused.output}


def test_recommended_titles_are_shown_as_they_are(tmp_path, monkeypatch):
    from ur4rec.runs import recommender

    class Stub:
        interactions = type("", (), {"titles": [EVIL]})
        checkpoint = "best"
        excludes_seen = True

        def __init__(self, directory, **options):
            pass

        def history_of(self, user):
            return [0]

        def recommend(self, items, **options):
            shares = dict.fromkeys(("sasrec", "retriever", "fused"), 0.5)
            return [recommender.Recommendation("i", EVIL, shares)]

    monkeypatch.setattr(recommender, "Recommender", Stub)
    monkeypatch.setattr(output._console, "_width", 400)
    config = {"dataset": "plays.csv", "backend": "torch", "schedule": "parity"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = invoke("recommend", tmp_path, "--user", "u")
    assert result.stdout.count(SHOWN) == 2, result.output
    assert not ORDERS & set(result.output)
    assert not ORDERS & set(invoke("recommend", tmp_path, "--user", "u", "--json").output)


def test_log_lines_are_one_line_without_orders(capsys, monkeypatch):
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    output.log_to_stderr(quiet=False)
    root.warning("%s\nsecond", EVIL)
    (line,) = capsys.readouterr().err.splitlines()
    assert_shown(line)


@pytest.fixture
def losses(tmp_path):
    """Recorded losses whose columns have such names."""
    path = tmp_path / "losses.csv"
    rows = [f"{step},{1 / step},{2 / step}" for step in range(1, 40)]
    path.write_text("\n".join([f'step,"{EVIL}","b\nRule     forged"', *rows]))
    return path


def test_a_replay_shows_names_of_modules_as_they_are(losses, capsys, tmp_path):
    assert alternator.cli.main(["replay", str(losses), "--plot", str(tmp_path / "replay.png")]) == 0
    text = capsys.readouterr().out
    assert_shown(text)
    assert text.count("\nRule ") == 1
    assert imread(tmp_path / "replay.png").ndim == 3
    assert alternator.cli.main(["replay", str(losses), "--json"]) == 0
    assert SHOWN in json.loads(capsys.readouterr().out)["modules"]
    assert alternator.cli.main(["replay", str(losses), "--modules", "x,y"]) == 2
    assert_shown(capsys.readouterr().err)


def texts_of(figure):
    return {text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_parse_math"))}


def figures(monkeypatch, module):
    """The figures that a module makes."""
    made = []

    def make(*arguments, **options):
        made.append(Figure(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(module, "Figure", make)
    return made


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_picture_of_a_run_has_its_title_as_it_is(tmp_path, monkeypatch):
    made = figures(monkeypatch, plot)
    plot.plot_schedule(tmp_path / "schedule.png", [], (), [], EVIL)
    assert SHOWN in texts_of(made[0])
    assert imread(tmp_path / "schedule.png").ndim == 3


def test_the_pictures_of_a_study_have_names_as_they_are(monkeypatch):
    made = figures(monkeypatch, plots)
    curve = {name: [1.0, 2.0] for name in ("updates", "validation_ndcg@10", "validation_nll")}
    interval = {metric: [0.0, -0.1, 0.1] for metric in ("ndcg@10", "hit@10", "nll")}
    budget = {"tuned": EVIL, "curves": {EVIL: {"0": curve}}, "differences": {EVIL: {"tuned": interval}}}
    plots.draw_curves({"budgets": {"updates": budget}})
    plots.draw_forest({"budgets": {"updates": budget}})
    assert SHOWN in texts_of(made[0])
    assert {SHOWN, f"against the tuned ratio ({SHOWN})"} <= texts_of(made[1])


def test_a_logarithmic_scale_needs_no_mathtext(tmp_path, monkeypatch):
    axes = Figure().subplots()
    plot._scale(axes, [100.0], [0.001])
    axes.set_ylim(-1, 1000)
    axes.figure.savefig(io.BytesIO())
    labels = [each.get_text() for each in axes.get_yticklabels()]
    assert "1000" in labels
    assert not any("$" in each for each in labels)
    assert np.isfinite(axes.get_yticks()).all()


PACKAGES = ("alternator", "adapters", "ur4rec", "ur4rec_torch", "ur4rec_jax")
OUTPUT = ROOT / "ur4rec" / "cli" / "output.py"
MAIN = ROOT / "ur4rec" / "__main__.py"
SHOWING = {"print", "echo", "secho", "basicConfig", "StreamHandler", "add_row", "add_column"}


def trees():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def is_plain(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "printable"


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_one_file_prints():
    """Another one may print only what `printable` gives, and only the one file knows Rich."""
    for path, tree in trees():
        if path == OUTPUT:
            continue
        if path == MAIN:  # `printable` may not be there yet: what it did not write itself is shown by `ascii`
            shown = [node for node in ast.walk(tree) if isinstance(node, ast.FormattedValue)]
            assert {ast.unparse(node.value) for node in shown if node.conversion != ord("a")} == {
                "', '.join(missing)",
                "line",
            }
            continue
        assert not [name for name in imported(tree) if name.split(".")[0] == "rich"], path
        for name, call in calls(tree):
            shows = name in SHOWING or (name == "write" and ast.unparse(call.func).startswith("sys.std"))
            assert not shows or all(map(is_plain, call.args)), f"{path}:{call.lineno}"


def test_every_figure_is_made_where_strings_are_literal():
    found = 0
    for path, tree in trees():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            if any(name == "Figure" for name, _ in calls(function)):
                found += 1
                assert "literal_texts()" in map(ast.unparse, function.decorator_list), f"{path}:{function.lineno}"
    assert found == 6


def test_progress_bars_are_named_by_the_program():
    for path, tree in trees():
        for name, call in calls(tree):
            described = [each.value for each in call.keywords if name == "tqdm" and each.arg == "desc"]
            assert all(
                isinstance(each, ast.Constant) or ast.unparse(each) == "f'epoch {epoch}'" for each in described
            ), path
