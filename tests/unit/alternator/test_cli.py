"""The command: what it reads, what it prints, and how it answers mistakes."""

import json
import os
import random
import runpy
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from alternator import Alternator, Cycle, LossError, replay
from alternator.cli import main
from alternator.recordings.log import StepRecord, read_log
from alternator.recordings.log import write_log as log_of
from alternator.recordings.tables import read_losses
from alternator.recordings.text import MAX_SWITCHES
from alternator.rules.help import parameter_docs
from alternator.rules.named import RULES

LOG = "step,stage,active,next,reason,a_loss,b_loss\n"


def write_csv(path, num_steps=200, header="step,a,b"):
    draw = random.Random(0)
    rows = [f"{step},{draw.gauss(1, 0.05):.6f},{draw.gauss(2, 0.05):.6f}" for step in range(1, num_steps + 1)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_log(path):
    """A decision log as runs write it: a stage without alternation first, empty cells for losses not computed."""
    lines = ["step,stage,active,next,reason,value,limit,sasrec_loss,retriever_loss"]
    lines += [f"{step},pretrain_sasrec,sasrec,sasrec,stage,1,1,5.0," for step in range(1, 11)]
    for step in range(11, 111):
        active = "sasrec" if (step // 20) % 2 == 0 else "retriever"
        losses = "1.0," if active == "sasrec" else ",2.0"
        lines.append(f"{step},joint_finetune,{active},{active},changing,0.5,0.01,{losses}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_events(folder, tags=("loss/a", "loss/b", "lr")):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for step in range(40):
        for tag in tags if step % 4 else tags[:1]:
            value = Summary.Value(tag=tag, simple_value=1.0 + step)
            writer.add_event(Event(step=step, summary=Summary(value=[value])))
    writer.close()
    return folder


@pytest.fixture
def run(capsys):
    """Run the command in this process: exit code, output, errors."""

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_replay_answers_in_words(run, tmp_path):
    code, out, err = run("replay", write_csv(tmp_path / "losses.csv", 400), "--rule", "plateau")
    assert (code, err) == (0, "")
    assert "Losses   400 steps, 1 to 400; modules a, b" in out
    assert "Rule     Plateau(threshold=0.01, min_steps=5, window=10)" in out
    assert "a → b  change rate" in out
    assert "all modules have plateaued" in out
    assert "Who would have trained:" in out
    assert "change rate ≥ threshold" in out.split("Why it held")[1]
    assert "more (--all shows them)" in out
    assert "cannot know" in out
    every = run("replay", tmp_path / "losses.csv", "--rule", "plateau", "--all")[1]
    assert every.count("\n  step ") > MAX_SWITCHES == out.count("\n  step ")


def test_the_default_rule_is_the_recommended_one_and_it_says_why_it_never_switched(run, tmp_path):
    _, out, _ = run("replay", write_csv(tmp_path / "losses.csv", 60))
    assert "Rule     Trend(" in out
    assert "It would never have switched. Step 60: a trains on (" in out


def test_one_switch_reads_well(run, tmp_path):
    _, out, _ = run("replay", write_csv(tmp_path / "losses.csv", 30), "--rule", "cycle", "--set", "steps=20")
    assert "It would have switched once:" in out


@pytest.mark.parametrize(("tenure", "num_rows", "long"), [(40, 400, False), (41, 400, True), (41, 100, False)])
def test_replay_names_modules_that_wait_for_more_than_a_tenth(run, tmp_path, tenure, num_rows, long):
    path = write_csv(tmp_path / "losses.csv", num_rows)
    _, out, _ = run("replay", path, "--rule", "cycle", "--set", f"steps={tenure}")
    assert ("Long waits: a for 41, b for 41 of 400 steps, more than a tenth of them." in out) is long
    assert ("Long waits" in out) is long


def test_a_rule_that_switches_always_has_no_holds(run, tmp_path):
    _, out, _ = run("replay", write_csv(tmp_path / "losses.csv", 30), "--rule", "cycle")
    assert "It switched after every step." in out


def test_replay_reads_the_decision_log_of_a_run(run, tmp_path):
    path = write_log(tmp_path / "decisions.csv")
    _, out, _ = run("replay", path, "--rule", "plateau")
    assert "Losses   100 steps, 11 to 110; modules sasrec, retriever" in out
    rows = "stage=joint_finetune; the log has the stages pretrain_sasrec (10), joint_finetune (100): choose with"
    assert f"Rows     {rows}\n         --where stage=pretrain_sasrec" in out
    assert "Blind in" in out
    table = read_losses(path)
    assert table.recorded[:2] == ("sasrec", "sasrec")
    assert table.losses["retriever"][:2] == [None, None]
    chosen = read_losses(path, {"r": "retriever", "s": "sasrec_loss"})
    assert chosen.losses == {"r": table.losses["retriever"], "s": table.losses["sasrec"]}


def test_where_chooses_the_rows_of_a_log(run, tmp_path):
    path = write_log(tmp_path / "decisions.csv")
    _, out, _ = run("replay", path, "--where", "stage=pretrain_sasrec")
    assert "Losses   10 steps, 1 to 10" in out
    assert "Rows     stage=pretrain_sasrec;" in out
    table = read_losses(path, where=[("active", "retriever"), ("stage", "joint_finetune"), ("stage", "other")])
    assert set(table.recorded) == {"retriever"}
    assert len(table.steps) == 51
    both = run("replay", path, "--where", "stage=pretrain_sasrec", "--where", "stage=joint_finetune")[1]
    assert "Losses   110 steps, 1 to 110" in both
    code, _, err = run("replay", path, "--where", "stage=joint")
    assert code == 2
    assert "no row of losses where stage=joint; column 'stage' has joint_finetune, pretrain_sasrec" in err
    assert (
        "no row of losses where step=0; column 'step' has 1, 10, 100, " in run("replay", path, "--where", "step=0")[2]
    )


def test_where_chooses_the_rows_of_any_csv(run, tmp_path):
    path = write_csv(tmp_path / "losses.csv", 4, "phase,a,b")
    assert "Losses   1 steps, 1 to 1; modules a, b\nRows     phase=3" in run("replay", path, "--where", "phase=3")[1]


def test_by_default_the_stages_in_which_something_was_decided_are_used(tmp_path):
    header = "step,stage,active,next,reason,value,limit,a_loss,b_loss\n"
    held = "1,warm-up,a,a,stage,1,1,5,\n2,warm-up,a,a,stage,2,2,5,\n"
    decided = "3,joint,both,both,min_steps,1,2,1,1\n4,joint,both,both,pays,3,1,1,1\n"
    path = tmp_path / "decisions.csv"
    path.write_text(header + held + decided)
    table = read_losses(path)
    assert (table.steps, table.where) == ((3, 4), (("stage", "joint"),))
    assert table.stages == {"warm-up": 2, "joint": 2}
    for content in (held, held + held.replace("warm-up", "later")):
        path.write_text(header + content)
        assert len(read_losses(path).steps) == content.count("\n")


def test_the_directory_of_a_run_is_replayed_by_its_log(run, tmp_path):
    path = write_log(tmp_path / "decisions.csv")
    assert run("replay", tmp_path) == run("replay", path)


def test_a_log_is_written_and_read_for_any_modules():
    alternator = Alternator(("g", "d"), Cycle((1, 2)))
    records = []
    for step in range(1, 5):
        active = alternator.active
        record = StepRecord.of_decision(step, "", active, alternator.observe(1 / step))
        records.append(record._replace(losses={active: 1 / step, "d": float("inf")}))
    text = log_of(records, ("g", "d"))
    assert text.startswith(
        "step,stage,active,next,reason,value,limit,g_loss,d_loss\n1,,g,d,scheduled,1.0,1.0,1.0,inf\n"
    )
    assert read_log(text) == records
    assert text == log_of(records[:2], ("g", "d")) + log_of(records[2:], ("g", "d"), header=False)


def test_non_finite_losses_are_reported(run, tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("a,b\n" + "nan,1\n" * 12)
    code, out, _ = run("replay", path)
    assert code == 0
    assert "Non-finite losses: 12 of a." in out
    assert "10 non-finite losses in a row, limit 10" in out


def test_parameters_delay_and_modules(run, tmp_path):
    path = write_csv(tmp_path / "losses.csv")
    options = ("--rule", "random-tenure", "--set", "mean=7", "seed=2", "--modules", "second=b,a", "--delay", 1)
    _, out, _ = run("replay", path, *options)
    assert "modules second, a" in out
    assert "RandomTenure(mean=7, seed=2, min_steps=1)" in out


def test_json_is_json(run, tmp_path):
    path = write_csv(tmp_path / "losses.csv")
    result = json.loads(run("replay", path, "--rule", "plateau", "--json")[1])
    assert result["modules"] == ["a", "b"]
    assert result["num_steps"] == 200
    assert result["switches"][0]["why"].startswith("change rate")
    rows = json.loads(run("replay", path, "--rule", "plateau", "--sweep", "threshold=0.01,0.02", "--json")[1])
    assert [row["settings"] for row in rows] == [{"threshold": 0.01}, {"threshold": 0.02}]
    assert rows[0]["result"] == {**result, "rule": rows[0]["result"]["rule"]}


def test_a_sweep_is_a_table(run, tmp_path):
    grid = ("--sweep", "threshold=0.005,0.02", "window=2,10")
    code, out, _ = run("replay", write_csv(tmp_path / "losses.csv"), "--rule", "plateau", *grid)
    lines = out.splitlines()
    assert code == 0
    header = ["threshold", "window", "switches", "mean tenure", "a share", "b share", "longest wait", "blind steps"]
    assert [cell.strip() for cell in lines[0].split("  ") if cell.strip()] == header
    assert "refused: window must be at least 3, got 2" in lines[1]
    assert lines[2].split()[:2] == ["0.005", "10"]
    assert len({len(line) for line in (lines[0], lines[2], lines[4])}) == 1


@pytest.mark.parametrize("source", ["csv", "log"])
def test_the_plot_is_a_picture(run, tmp_path, source):
    path = write_csv(tmp_path / "x.csv", 1200) if source == "csv" else write_log(tmp_path / "decisions.csv")
    code, _, _ = run("replay", path, "--rule", "plateau", "--plot", tmp_path / "replay.png")
    assert code == 0
    pixels = imread(tmp_path / "replay.png")
    assert pixels.shape[0] > 500 < pixels.shape[1]
    assert pixels[..., :3].std() > 0.1


def test_tensorboard_events_are_read(run, tmp_path):
    folder = write_events(tmp_path / "events")
    options = ("--rule", "cycle", "--modules", "a=loss/a,b=loss/b")
    code, out, err = run("replay", folder, *options)
    assert (code, err) == (0, "")
    assert "40 steps, 0 to 39; modules a, b" in out
    assert run("replay", next(folder.glob("*tfevents*")), *options)[1] == out
    code, _, err = run("replay", folder, "--where", "stage=a")
    assert (code, "holds TensorBoard events; drop it" in err) == (2, True)
    code, _, err = run("replay", folder)
    assert code == 2
    assert "two or more scalars are needed, one per module; it has loss/a, loss/b, lr" in err
    code, _, err = run("replay", folder, "--modules", "a=loss/a,b=loss/c")
    assert code == 2
    assert "has no scalar 'loss/c'; it has loss/a, loss/b, lr" in err


def test_tags_that_end_in_loss_are_the_default(run, tmp_path):
    _, out, _ = run("replay", write_events(tmp_path / "events", ("gan/g_loss", "gan/d_loss", "lr")), "--rule", "cycle")
    assert "modules gan/g_loss, gan/d_loss" in out


def test_a_missing_extra_is_named(run, tmp_path, monkeypatch):
    path = write_csv(tmp_path / "losses.csv")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run("replay", path, "--plot", tmp_path / "x.png")
    assert code == 2
    assert "pip install 'adaptive-alternator[plot]'" in err
    folder = write_events(tmp_path / "events")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    code, _, err = run("replay", folder)
    assert code == 2
    assert "pip install 'adaptive-alternator[tensorboard]'" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; the first line must name the columns: step and one per module"),
        ("step,a,b\n", "no row of losses"),
        ("step,a,b\n1,0.5,0.5\n2,oops,0.5\n", "line 3, column 'a': 'oops' is not a number"),
        ("step,a,b\n1,0.5\n", "line 2: a row must have 3 cells, got 2"),
        ("step,a,b\n1.5,0.5,1\n", "line 2, column 'step': '1.5' is not a whole number"),
        ("step,a,a\n1,2,3\n", "columns must have different names, got step, a, a"),
        ("1,\n2,3\n", "every column must have a name, but column 2 has none; name it or drop it"),
        ("step,a\n1,2\n", "two or more columns of losses are needed, one per module; got a"),
        ('step,a,b\n1,2,3\n\n2,"2,3\n3,2,3\n', "line 4 is not CSV: unexpected end of data; look for a quote left open"),
        ("step,a,b\n1,2," + "3" * 200_000, "line 2 is not CSV: field larger than field limit"),
        ("step,a,b\n1,2," + "x" * 100_000, "line 2, column 'b': 'xxx"),
        ("step,a,b\n1,\0,3\n", "line 2: must be UTF-8 text, got the byte 0x00; is it a CSV file?"),
        ("step,a,b\n1,1_0,3\n", "line 2, column 'a': '1_0' is not a number"),
        (
            f"step,a,b\n{2**60},1,3\n",
            f"line 2, column 'step': {2**60} is beyond {2**53}; number the steps again from 1",
        ),
        (
            "step,a,b\n3,1,3\n\n2,1,3\n1,1,3\n",
            "line 4, column 'step': rows must be in the order of training, the oldest first, got 2 after 3, and 2 of 2 "
            "steps fall; sort the rows by step",
        ),
        ("step,a,b\n2,1,3\n1,1,3\n2,1,3\n1,1,3\n", "got 1 after 2, and 2 of 3 steps fall"),
        (
            f"{LOG}2,,a,a,x,1,1\n1,,a,a,x,1,1\n",
            "line 3, column 'step': rows must be in the order of training, the oldest first, got 1 after 2",
        ),
        ('"a\nb"\n1\n', "two or more columns of losses are needed, one per module; got a\\u000ab"),
        ("step;a;b\n1;2;3\n", "two or more columns of losses are needed, one per module; got step;a;b"),
        (",".join(f"c{i}" for i in range(50_000)), "no row of losses"),
        (LOG, "no row of losses"),
        ("step,stage,active,next,reason,a_loss\n1,joint_finetune,a,a,x,1\n", "two or more columns of losses"),
    ],
)
def test_a_malformed_csv_is_one_line_and_exit_code_2(run, tmp_path, content, message):
    path = tmp_path / "losses.csv"
    path.write_text(content)
    code, out, err = run("replay", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert len(err) < 1100
    assert str(path) in err
    assert message in err


@pytest.mark.parametrize("steps", [(1, 2, 1, 2), (1, 2, 3, 2, 3, 4), (1, 1, 1), (7,), (0, 10, 5), (-3, -2)])
def test_steps_may_repeat_or_begin_again(tmp_path, steps):
    path = tmp_path / "losses.csv"
    path.write_text("step,a,b\n" + "".join(f"{step},1,2\n" for step in steps))
    assert read_losses(path).steps == steps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("step,a,b\n1,2,3\n" + "4" * 60, "line 3: a line must have at most 20 bytes; is it a CSV file?"),
        ("step,a,b\r1,2,3\r" * 3 + "x", "line 7: a row must have 3 cells, got 1"),
    ],
)
def test_a_long_line_is_refused_before_it_is_parsed(run, tmp_path, monkeypatch, content, message):
    monkeypatch.setattr("alternator.recordings.tables.MAX_LINE_BYTES", 20)
    (tmp_path / "losses.csv").write_bytes(content.encode())
    code, _, err = run("replay", tmp_path / "losses.csv")
    assert code == 2
    assert message in err


def test_an_event_file_with_a_record_of_an_absurd_length_is_refused(run, tmp_path):
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(struct.pack("<Q", 8) + b"x" * 16 + struct.pack("<Q", 2**60) + b"x" * 40)
    code, _, err = run("replay", path)
    assert code == 2
    assert f"must hold records of at most {2**28} bytes, got {2**60} at byte 24" in err


def test_an_event_file_that_cannot_be_read_is_one_line(run, tmp_path):
    path = tmp_path / "events.out.tfevents.1.host"
    assert "cannot be read: No such file or directory" in run("replay", path)[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "min_steps=0x" + "f" * 5000], "min_steps must be an integer of at least 1, got '0xfff"),
        (["--set", "min_steps=" + "-" * 30_000 + "1"], "min_steps must be an integer of at least 1, got '---"),
        (["--set", "min_steps={[]: 1}"], "min_steps must be an integer of at least 1, got '{[]: 1}'"),
        (["--set", f"min_steps={2**64}"], f"min_steps must be an integer of at most {2**63 - 1}, got {2**64}"),
        (["--set", f"threshold={10**400}"], "threshold must be a finite number above 0, got 1000"),
        (["--sweep", "min_steps={[]: 1}"], "min_steps must be an integer of at least 1, got '{[]: 1}'"),
        (["--sweep", "window=" + ",".join(["5"] * 10_001)], "at most 10000 combinations, got 10001; try fewer"),
    ],
)
def test_hostile_settings_are_one_line(run, tmp_path, words, message):
    (tmp_path / "losses.csv").write_text("step,a,b\n1,2,3\n")
    code, _, err = run("replay", tmp_path / "losses.csv", "--rule", "plateau", *words)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "payoff", "--set", "costs=(2,1)"], "which recorded losses do not hold, so it cannot be replayed"),
        (["--rule", "trendy"], "unknown rule 'trendy'; expected one of ('balance', "),
        (["--set", "min_gian=0.1"], "trend has no setting 'min_gian'; it has ('min_gain', "),
        (["--set", "min_gain"], "a setting must read name=value, got 'min_gain'"),
        (["--set", "min_gain=-1"], "min_gain must be a finite number above 0, got -1"),
        (["--rule", "random_tenure"], "random_tenure needs mean; give it as mean=VALUE"),
        (["--sweep", "min_gain"], "a sweep must read name=value,value,..., got 'min_gain'"),
        (["--sweep", "min_gian=1,2"], "trend has no setting 'min_gian'"),
        (["--sweep", "min_gain=1,2", "--plot", "x.png"], "--plot draws one replay, not a sweep"),
        (["--modules", "a,c"], "has no column 'c'; it has step, a, b"),
        (["--delay", "-1"], "delay must be an integer of at least 0, got -1"),
        (["--delay", "x"], "argument --delay: invalid int value: 'x' (see alternator replay --help)"),
        (["--plot", "no/such/folder/x.png"], "the plot no/such/folder/x.png cannot be written"),
        (["--plot", "x.nonsense"], "the plot x.nonsense cannot be written"),
        (["--where", "phase=1"], "has no column 'phase'; it has step, a, b"),
        (["--where", "stage"], "--where must read COLUMN=VALUE, got 'stage'"),
        (["--where", "a=1", "--modules", "a,b"], "--where needs a column that is not a loss, got 'a'; name another"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path, arguments, message):
    code, out, err = run("replay", write_csv(tmp_path / "losses.csv"), *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_files_that_cannot_be_read(run, tmp_path):
    code, _, err = run("replay", tmp_path / "none.csv")
    assert (code, err) == (2, f"alternator: {tmp_path / 'none.csv'} cannot be read: No such file or directory\n")
    for content, line in ((b"\xff\xfe\x00\x81" * 9, 1), (b"step,a,b\r\n1,2,3\r\xe9,2,3", 3)):
        (tmp_path / "binary.csv").write_bytes(content)
        code, _, err = run("replay", tmp_path / "binary.csv")
        assert code == 2
        assert f"binary.csv, line {line}: must be UTF-8 text, got the byte 0x" in err
    err = run("replay", tmp_path)[2]
    assert f"{tmp_path} must hold a decision log (decisions.csv) or TensorBoard event files (*tfevents*)" in err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "decisions.csv").symlink_to(write_log(tmp_path / "elsewhere.csv"))
    assert "decisions.csv is a link; give its target" in run("replay", tmp_path / "run")[2]
    code, _, err = run("replay", "x" * 5000)
    assert (code, err.count("\n")) == (2, 1)
    assert "File name too long" in err
    assert run("replay")[0] == 2
    assert run()[0] == 2


def test_rules_lists_every_rule_and_parameter(run):
    code, out, _ = run("rules")
    assert code == 0
    for name, rule in RULES.items():
        assert f"{name}\n  {rule.__doc__.splitlines()[0]}" in out
        docs = parameter_docs(rule)
        assert list(docs) == list(rule.__dataclass_fields__)
        for field in docs:
            assert f"--set {field}=" in out
    assert "--set mean=VALUE (required)" in out
    assert run("rules", "gain")[1] in out
    code, _, err = run("rules", "gian")
    assert code == 2
    assert err.startswith("alternator: unknown rule 'gian'; expected one of ")


CELLS = [
    "1",
    "0.5",
    "-3e2",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    " 2 ",
    "x",
    "1_0",
    '"',
    '"4"',
    ",",
    "\n",
    "\r\n",
    "\r",
    "\0",
    "é",
]


@settings(max_examples=150)
@given(
    st.sampled_from(["step,a,b\n", "a,b\r\n", " step , a,b\n", ""]), st.lists(st.sampled_from([*CELLS, ",", ",", "\n"]))
)
def test_any_file_is_replayed_or_refused_with_its_name(tmp_path_factory, header, cells):
    path = tmp_path_factory.mktemp("losses") / "losses.csv"
    path.write_bytes((header + "".join(cells)).encode())
    try:
        table = read_losses(path)
    except LossError as error:
        message = str(error)
    else:
        rows = {len(column) for column in (table.steps, *table.losses.values())}
        assert len(rows) == 1
        assert replay(table.losses, steps=table.steps).steps == table.steps
        return
    assert str(path) in message


@pytest.mark.parametrize("arguments", [["rules"], ["--help"], ["replay", "--help"]])
def test_a_reader_who_goes_away_is_no_error(monkeypatch, capfd, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(arguments) == 1
    assert capfd.readouterr().err == ""


def test_help_teaches(run):
    code, out, _ = run("replay", "--help")
    assert code == 0
    assert "examples:" in out
    assert "It never switches?" in out
    assert "replay" in run("--help")[1]


def test_it_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alternator", "rules", "cycle"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("alternator", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("cycle\n")
    assert "main" in runpy.run_module("alternator", run_name="imported")


def test_the_command_needs_no_third_party(tmp_path):
    path = write_csv(tmp_path / "losses.csv")
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-S", "-m", "alternator", "replay", str(path)]  # -S: no site-packages
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "Why it held" in done.stdout
