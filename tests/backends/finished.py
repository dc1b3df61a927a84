"""What the tests of runs share: worse validations, and what a run leaves."""

from ur4rec.runs.run import TrainingRun


def spoil_later_epochs(run, monkeypatch, first):
    """Let the validation of each stage be worse from this epoch (of the stage) on."""
    validate = TrainingRun._validate

    def spoilt(self, stage):
        found = validate(self, stage)
        worse = self.plan.stage_epoch >= first
        return {scorer: {**metrics, "ndcg@10": 0.0} for scorer, metrics in found.items()} if worse else found

    monkeypatch.setattr(TrainingRun, "_validate", spoilt)


def outcome(run):
    """Everything of a finished run that must not depend on whether it was stopped."""
    rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in run.epochs]
    checkpoint = run.directory.checkpoint("latest")
    weights = [(checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]
    results = {
        name: {**result.to_json(), "test_ranks": result.test_ranks.tolist()} for name, result in run.results.items()
    }
    logs = (run.directory.path / "decisions.csv").read_bytes(), (run.directory.path / "test_ranks.csv").read_bytes()
    return rows, weights, results, logs, run.directory.checkpoint("best").stem
