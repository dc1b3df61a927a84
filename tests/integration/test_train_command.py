"""`ur4rec train` as a user meets it: what it leaves, how it resumes, what it answers to mistakes."""

import json
import shutil
import subprocess
import time
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from alternator.cli import main as alternator_main
from tests.integration.tiny_run import COMMAND, ENVIRONMENT, TINY, ur4rec
from ur4rec.cli import app
from ur4rec.runs.ranking import Ranking
from ur4rec.training.memory import enough_for_scores


def mistaken(*arguments, settings=TINY):
    """The one line that a mistake is answered with."""
    result = CliRunner().invoke(app, ["train", *settings, *map(str, arguments)])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    return line


def lines_of(path):
    return path.read_text().splitlines()


def test_the_run_directory_holds_everything(run):
    out, printed = run
    assert {path.name for path in out.iterdir()} >= {
        *("config.json", "metrics.json", "decisions.csv", "schedule.png", "checkpoint", "test_ranks.csv"),
        *("popularity.csv", "popularity.png"),
    }
    latest = (out / "checkpoint" / "LATEST").read_text().strip()
    files = {path.name for path in (out / "checkpoint" / latest).iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert "fused" in printed
    assert "0.0% of the targets repeat an item of their history (auto: allowed from 10%)" in printed
    assert str(out) in printed
    assert "Payoff trained both modules" in printed
    assert "ur4rec compare --dataset synthetic" in printed


def test_metrics_name_every_scorer_and_beat_popularity(run):
    metrics = json.loads((run[0] / "metrics.json").read_text())
    assert set(metrics["final"]) == {
        *("popularity", "SASRec alone", "retriever alone", "SASRec in it", "retriever in it", "fused")
    }
    fused, popularity = (metrics["final"][name]["test"] for name in ("fused", "popularity"))
    assert set(fused) == {"mrr", *(f"{metric}@{k}" for metric in ("hit", "ndcg") for k in (5, 10, 20))}
    assert fused["ndcg@10"] > 2 * popularity["ndcg@10"]
    assert [epoch["stage"] for epoch in metrics["epochs"]] == [
        *("pretrain_sasrec", "pretrain_retriever", *["joint_finetune"] * 3, "end_to_end")
    ]
    assert metrics["facts"]["split_hash"]


def test_metrics_are_reported_by_popularity_of_the_target(run):
    out, printed = run
    metrics = json.loads((out / "metrics.json").read_text())
    groups = metrics["by_popularity"]
    assert sum(group["num_targets"] for group in groups) == metrics["facts"]["test_targets"]
    assert sum(group["num_items"] for group in groups) == metrics["facts"]["num_items"]
    for metric in ("ndcg@10", "hit@10"):
        for name, result in metrics["final"].items():
            found = [(each["num_targets"], each["scorers"][name][metric]) for each in groups if each["num_targets"]]
            mean = sum(num * estimate for num, (estimate, _, _) in found) / sum(num for num, _ in found)
            assert mean == pytest.approx(result["test"][metric])
            assert all(low <= estimate <= high for _, (estimate, low, high) in found)
    header, *rows = lines_of(out / "popularity.csv")
    assert header == (
        "decile,num_items,least,most,num_targets,scorer,hit@10,hit@10_low,hit@10_high,ndcg@10,ndcg@10_low,ndcg@10_high"
    )
    assert len(rows) == sum(len(group["scorers"]) for group in groups)
    assert "by popularity of the target" in " ".join(printed.split())


def test_decisions_say_who_trained_and_why(run):
    header, *rows = lines_of(run[0] / "decisions.csv")
    assert header == "step,stage,active,next,reason,value,limit,sasrec_loss,retriever_loss"
    metrics = json.loads((run[0] / "metrics.json").read_text())
    assert len(rows) == metrics["epochs"][-1]["step"]
    assert {row.split(",")[2] for row in rows if ",pretrain_retriever," in row} == {"retriever"}
    assert {row.split(",")[2] for row in rows if ",end_to_end," in row} == {"both"}
    joint = [row.split(",") for row in rows if ",joint_finetune," in row]
    assert all(later[2] == earlier[3] for earlier, later in pairwise(joint))


def test_what_was_measured_is_kept(run):
    header, *rows = lines_of(run[0] / "payoffs.csv")
    assert header == "step,active,module,payoff,limit,stderr,z"
    judged = [row for row in lines_of(run[0] / "decisions.csv") if row.split(",")[4] in ("pays", "unconfirmed", "idle")]
    assert rows
    assert {row.split(",")[0] for row in rows} == {row.split(",")[0] for row in judged}


def test_a_run_is_replayed_by_its_directory(run):
    with redirect_stdout(StringIO()) as printed:
        assert alternator_main(["replay", str(run[0]), "--rule", "plateau"]) == 0
    assert "stage=joint_finetune" in printed.getvalue()


def test_a_second_run_is_the_same_to_the_bit_and_so_is_a_resumed_one(run, tmp_path):
    out, _ = run
    stopped = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "train", *TINY, "--out", str(stopped)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not (stopped / "checkpoint" / "LATEST").exists():
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert (stopped / "checkpoint" / "LATEST").exists()
    done = ur4rec("train", "--resume", stopped, "--quiet")
    assert done.returncode == 0, done.stderr
    for name in ("decisions.csv", "payoffs.csv"):
        assert (stopped / name).read_bytes() == (out / name).read_bytes()
    latest = (out / "checkpoint" / "LATEST").read_text().strip()
    for name in ("model.safetensors", "optimizer.safetensors"):
        resumed, whole = (each / "checkpoint" / latest / name for each in (stopped, out))
        assert resumed.read_bytes() == whole.read_bytes()
    assert (stopped / "test_ranks.csv").read_bytes() == (out / "test_ranks.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "ml-100"], "unknown dataset 'ml-100'; expected one of"),
        (["--schedule", "sometimes"], "unknown schedule 'sometimes'; expected one of"),
        (["--epochs", "warmup=3"], "unknown stage 'warmup'; expected one of ('pretrain_sasrec',"),
        (["--epochs", "end_to_end=many"], "must be a whole number of at least 0, got 'many'"),
        (["--backend", "tensorflow"], "unknown backend 'tensorflow'; expected one of ('torch', 'jax')"),
        (["--set", "joint_loss=added"], "unknown joint_loss 'added'; expected one of"),
        (["--set", "sasrec_lr"], "--set must read name=value, got 'sasrec_lr'"),
        (["--set", "sasrec_rate=1"], "unknown setting 'sasrec_rate'; expected one of"),
        (["--set", "max_seq_len=0"], "max_seq_len must be an integer of at least 1, got 0"),
        (["--preset", "huge"], "unknown preset 'huge'; expected one of"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, arguments, message):
    assert message in mistaken("--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_out_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "--out must be writable" in mistaken("--out", tmp_path / "file" / "run")


def test_out_and_resume_exclude_each_other(tmp_path):
    assert "give --out DIR" in mistaken()
    assert "leave out --dataset, --out" in mistaken("--out", tmp_path / "a", "--resume", tmp_path / "b")
    assert "is no run directory" in mistaken("--resume", tmp_path, settings=())


def test_a_malformed_row_is_one_line_with_its_place(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\nu1\ti1\t1\nu1\ti2\tyesterday\n"
    )
    line = mistaken("--dataset", tmp_path / "mine", "--out", tmp_path / "run")
    assert "mine.inter:3, column 'timestamp': must be a finite number or an ISO 8601 date, got 'yesterday'" in line
    assert not (tmp_path / "run").exists()


def test_data_of_one_item_is_refused_by_its_name(tmp_path):
    (tmp_path / "one.csv").write_text("user,item,timestamp\n" + "".join(f"u{n % 2},i,{n}\n" for n in range(8)))
    (line,) = ur4rec(
        "train", "--dataset", tmp_path / "one.csv", "--preset", "smoke", "--quiet", "--out", tmp_path / "run"
    ).stderr.splitlines()
    assert line == "error: one: must have at least 2 items, got 1; look which column is the item's"
    assert not (tmp_path / "run").exists()


def test_losses_that_stay_nan_stop_the_run_with_one_line(tmp_path):
    assert "must be finite" in mistaken(
        "--out", tmp_path / "run", "--set", "sasrec_lr=1e30", "--set", "max_nonfinite_losses=3"
    )


def test_a_full_disk_stops_the_run_with_one_line_and_leaves_whole_files(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in mistaken("--out", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_help_names_the_stages_and_the_schedules():
    text = ur4rec("train", "--help").stdout
    assert "pretrain_sasrec" in text
    assert "adaptive" in text
    assert "parity" in text


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("there", [False, True])
def test_what_does_not_fit_into_memory_is_one_line_and_leaves_nothing(tmp_path, backend, there):
    out = tmp_path / "runs" / "run"
    if there:
        out.mkdir(parents=True)
    line = mistaken("--backend", backend, "--batch-size", 2**44, "--log", "tensorboard", "--out", out)
    assert line.startswith(
        "error: there must be memory for a training step on 17592186044416 histories with a model of 300"
    )
    assert line.endswith("lower batch_size, max_seq_len or a width (sasrec_hidden_dim, text_embedding_dim, ...)")
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == ([out] if there else [])


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("what", ["validation", "test"])
def test_targets_that_do_not_fit_into_memory_are_one_line_and_leave_nothing(tmp_path, monkeypatch, backend, what):
    def ranks(self, scorer, *given):
        with enough_for_scores():
            if what == "validation" or len(self.targets) > 100:
                raise MemoryError("Unable to allocate 3.5 GiB for an array")
        return whole(self, scorer, *given)

    whole = Ranking.ranks
    monkeypatch.setattr(Ranking, "ranks", ranks)
    out = tmp_path / "runs" / "run"
    line = mistaken(
        "--backend", backend, "--eval-users", 100, "--checkpoint-every", 0, "--log", "tensorboard", "--out", out
    )
    assert "there must be memory for the scores of a batch of histories" in line
    assert "but 3.5 GiB was not to be had" in line
    assert not out.exists()


def test_without_a_terminal_a_run_says_a_line_per_epoch_and_which_was_kept(tmp_path):
    settings = [word for word in TINY if word != "--quiet"]
    options = ("--eval-users", 100, "--eval-every", 2, "--early-stopping", 3, "--out", tmp_path / "run")
    done = ur4rec("train", *settings, *options)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if ", epoch " in line]
    places = [line.split(":")[0] for line in lines]
    assert places == [
        *("pretrain_sasrec, epoch 1 of 1", "pretrain_retriever, epoch 1 of 1"),
        *(f"joint_finetune, epoch {number} of 3" for number in (1, 2, 3)),
        "end_to_end, epoch 1 of 1",
    ]
    assert ["validation NDCG@10" in line for line in lines] == [True, True, False, True, True, True]
    assert all("steps ALL" in line and " elapsed" in line for line in lines[2:])
    assert all(", at most " in line and line.endswith(" left") for line in lines[:-1])
    assert "%|" not in done.stderr
    assert "(of a sample: 100 of 600 users)" in " ".join(done.stdout.split())
    assert "Kept: SASRec alone at epoch 1 of pretrain_sasrec (validation NDCG@10 0." in done.stdout
    assert "fell along a cosine" in done.stdout


@pytest.mark.parametrize(("threads", "warnings"), [(7, 1), (None, 0), ("as it was", 0)])
def test_a_run_that_continues_on_another_number_of_threads_says_so(run, tmp_path, caplog, threads, warnings):
    shutil.copytree(run[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["facts"]["threads"] == 1  # the run's environment says so
    if threads != "as it was":
        config["facts"]["threads"] = threads
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, ["train", "--quiet", "--resume", str(tmp_path / "run")])
    torch.set_num_threads(before)
    assert result.exit_code == 0
    lines = [line for line in caplog.messages if "the run began on 7 CPU threads and continues on 1" in line]
    assert len(lines) == warnings
