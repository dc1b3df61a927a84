"""The commands with a text encoder that trains: a run, resumed and evaluated, and items that came after it."""

import json

import pytest

from tests.integration.tiny_run import invoke
from ur4rec.data import synthetic
from ur4rec.training.backend import BACKENDS
from ur4rec.training.trainer import BaseTrainer

SETTINGS = [
    *("--dataset", "synthetic", "--preset", "smoke", "--batch-size", "128", "--quiet", "--checkpoint-every", "2"),
    *(f"--epochs={stage}=0" for stage in ("pretrain_sasrec", "pretrain_retriever", "end_to_end")),
    *("--epochs=joint_finetune=1", "--schedule", "sequence:(('both', 3), ('all', 2))"),
    *("--set", "text_encoder=transformer", "--set", "text_embedding_dim=16", "--set", "text_encoder_layers=1"),
    *("--set", "sasrec_hidden_dim=16", "--set", "retriever_output_dim=16", "--set", "max_seq_len=8"),
]


class PowerCutError(Exception):
    """Ends a run as nothing that it expects."""


FILES = ("model", "optimizer")


@pytest.fixture(scope="module", params=BACKENDS)
def encoder_run(request, tmp_path_factory):
    """The name of a backend and a run with it."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    done = invoke("train", *SETTINGS, "--backend", request.param, "--out", out)
    assert done.exit_code == 0, done.stderr
    return request.param, out


def test_the_decisions_say_when_the_encoder_trained(encoder_run):
    _, out = encoder_run
    header, *lines = (out / "decisions.csv").read_text().splitlines()
    assert header.endswith(",sasrec_loss,retriever_loss,text_encoder_loss")
    assert [line.split(",")[2] for line in lines] == (["both"] * 3 + ["all"] * 2) * 2 + ["both"] * 3
    settings = json.loads((out / "config.json").read_text())["model"]
    assert 5 <= settings["text_encoder_vocab"] < 8192  # what the texts need
    assert {path.name for path in (out / "data").iterdir()} >= {"tokenizer.json", "items.parquet"}


@pytest.mark.parametrize("stopped_in", [5, 9, 12])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(encoder_run, tmp_path, monkeypatch, stopped_in):
    backend, out = encoder_run
    train_step = BaseTrainer.train_step

    def fail(self, batch):
        if self.step == stopped_in:
            raise PowerCutError
        return train_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "train_step", fail)
        cut = invoke("train", *SETTINGS, "--backend", backend, "--out", tmp_path / "run")
    assert isinstance(cut.exception, PowerCutError)
    done = invoke("train", "--resume", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.stderr
    latest = (out / "checkpoint" / "LATEST").read_text().strip()
    for name in ("decisions.csv", "test_ranks.csv", *(f"checkpoint/{latest}/{file}.safetensors" for file in FILES)):
        assert (tmp_path / "run" / name).read_bytes() == (out / name).read_bytes(), name


def test_a_run_is_evaluated_as_it_was(encoder_run):
    _, out = encoder_run
    done = invoke("evaluate", out, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    final = json.loads((out / "metrics.json").read_text())["final"]
    assert found["fused"] == pytest.approx(final["fused"]["test"])
    assert found["retriever"] == pytest.approx(final["retriever in it"]["test"])


def test_items_that_came_later_are_recommended_by_their_texts(encoder_run, tmp_path):
    _, out = encoder_run
    data = synthetic()
    lines = [f"cold{number},{data.texts[number]}" for number in (3, 40)]
    (tmp_path / "items.csv").write_text("\n".join(["item,title", *lines]))
    done = invoke(
        "recommend", out, "--user", "u7", "--items", tmp_path / "items.csv", "--top", "400", "--json", "--quiet"
    )
    assert done.exit_code == 0, done.stderr
    rows = {row["item_id"]: row for row in json.loads(done.stdout)}
    for number, twin in ((3, "cold3"), (40, "cold40")):
        assert rows[twin]["cold"]
        known = data.item_ids[number]
        if known in rows:
            own, other = (rows[name]["probabilities"]["retriever"] for name in (twin, known))
            assert own == pytest.approx(other, rel=1e-3)  # the same words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "text_encoder=bert"], "unknown text_encoder 'bert'; expected one of ('none', 'transformer',"),
        (["--set", "text_encoder_heads=3"], "text_embedding_dim must be a multiple of text_encoder_heads (3), got 16"),
        (["--set", "text_encoder_trains=first:2"], "text_encoder_trains must be 'all', 'last:K' for the last K blocks"),
        (["--set", "text_encoder_tokens=513"], "text_encoder_tokens must be an integer of at most 512, got 513"),
        (["--set", "text_encoder_vocab=4"], "text_encoder_vocab must be an integer of at least 5, got 4"),
        (["--set", "text_encoder_lr=nan"], "text_encoder_lr must be a finite number above 0, got 'nan'"),
        (["--set", "text_encoder=pretrained"], "text_encoder='pretrained' needs the folder of a sentence encoder"),
        (["--schedule", "payoff"], "a Payoff rule needs a model of the modules ('sasrec', 'retriever'), got"),
        (["--schedule", "3:1"], "steps must be one number or one per module (3), got 2"),
        (["--user-texts", "profiles.json"], "user_texts must be left out with text_encoder='transformer'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles.json").write_text("{}")
    result = invoke("train", *SETTINGS, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
