"""The default against random settings, in small: the draws, the choice, the verdict, and that a run is made once."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ur4rec.runs.sizes import FROM_DATA

TINY = {"num_users": 300, "num_items": 40, "num_clusters": 4, "mean_length": 8}


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        names = ("defaults", "defaults_search", "defaults_report")
        yield SimpleNamespace(**{name.removeprefix("defaults_"): import_module(name) for name in names})


def result(cell, validation, ranks, seconds=1.0):
    """A finished run."""
    config = {"batch_size": 64, "model": {"max_seq_len": 16}, "trainer": {"sasrec_lr": 0.01}, "epochs": {}}
    return {
        **cell._asdict(),
        "config": config,
        "counts": {"num_interactions": 900, "num_items": 50, "num_users": 40},
        "validation": validation,
        "test": {"fused": float(np.mean(1 / np.log2(1 + np.array(ranks))))},
        "test_ranks": list(ranks),
        "epochs": {"pretrain_sasrec": 3},
        "cpu_seconds": seconds,
        "facts": {},
    }


def results_of(study, default_ranks, best_ranks, seeds=(0, 1)):
    cell = study.search.Cell
    found = {cell("few users", "default", seed): (0.2, default_ranks) for seed in seeds}
    found |= {cell("few users", "random 01", seed): (0.3, best_ranks) for seed in seeds}
    found[cell("few users", "random 00", 0)] = (0.1, [1] * len(best_ranks))  # the best test, not chosen
    return {each: result(each, *values) for each, values in found.items()}


def test_random_settings_are_valid_of_every_shape_and_within_the_ranges(study):
    for shape in study.search.SHAPES:
        drawn = [study.search.random_setting(shape, number) for number in range(20)]
        assert len({json.dumps(each, sort_keys=True) for each in drawn}) == 20
        for each in drawn:
            assert set(each) == set(FROM_DATA)
            assert 3e-4 <= each["sasrec_lr"] <= 1e-2
            assert 10 <= each["pretrain_sasrec"] <= 200
        cell = study.search.Cell(shape, "random 03", 1)
        config = study.search.config_of(cell, study.search.Search())
        assert config.from_data == ()
        assert config.seed == 1
        assert config.batch_size == drawn[3]["batch_size"]
        assert config.model["max_seq_len"] == drawn[3]["max_seq_len"]


def test_the_setting_is_chosen_by_validation_and_judged_on_test(study):
    results = results_of(study, default_ranks=[3] * 40, best_ranks=[1] * 20 + [2] * 20)
    summary = study.report.summarise(results, "few users", [0, 1])
    assert summary.best[0]["arm"] == "random 01"
    best = (1 + 1 / np.log2(3)) / 2
    assert summary.difference.estimate == pytest.approx(0.5 / best - 1)
    assert summary.verdict == "worse"
    assert summary.num_better == 1
    text = study.report.render([summary], {"command": "c", "processor": "p", "commit": "x", "date": "d", "seeds": 2,
                                           "settings": 2})  # fmt: skip
    assert "| few users | 900, 50, 40 | 0.5000 |" in text
    assert study.report.draw([summary]).startswith(b"\x89PNG")
    assert "test_ranks" not in json.dumps(summary.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("ranks", "verdict"), [([1] * 40, "within 5%"), ([1] * 39 + [9], "within 5%, not for sure"), ([8] * 40, "worse")]
)
def test_the_verdict_needs_the_interval(study, ranks, verdict):
    summary = study.report.summarise(results_of(study, ranks, [1] * 40), "few users", [0, 1])
    assert summary.verdict == verdict


def test_a_difference_to_nothing_is_no_verdict(study):
    summary = study.report.summarise(results_of(study, [1] * 40, [99] * 40), "few users", [0, 1])
    assert summary.verdict == "too few targets to say"
    assert json.loads(json.dumps(summary.to_json()))["difference"][1] is None


def test_there_is_no_summary_before_all_seeds_are_done(study):
    results = results_of(study, [1] * 40, [1] * 40, seeds=(0,))
    assert study.report.summarise(results, "few users", [0, 1]) is None
    assert study.report.choose_best({}, "few users", 0) is None


def test_the_command_goes_on_where_it_stopped_and_writes_its_report(study, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(study.search, "SHAPES", {"few users": TINY})
    monkeypatch.setattr(study.defaults, "SHAPES", {"few users": TINY})
    study.search.load_shape.cache_clear()
    study.search.counts_of_shape.cache_clear()
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    arguments = ["--quick", "--settings", "1", "--seeds", "1", "--jobs", "1", *folders]
    ran = []
    run = study.search.run_cell
    monkeypatch.setattr(study.defaults, "run_cell", lambda cell, search: ran.append(str(cell)) or run(cell, search))
    assert study.defaults.main([*arguments, "--only", "default"]) == 1  # nothing to compare it with yet
    assert study.defaults.main(arguments) == 0
    assert ran == ["few users: default, seed 0", "few users: random 00, seed 0"]
    files = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {".md", ".json", ".png"}
    (shape,) = json.loads(files[".json"].read_text())["shapes"]
    assert shape["searched"] == shape["best"]
    assert "| max_seq_len | 16 |" in files[".md"].read_text()
    assert study.defaults.main([*arguments, "--list"]) == 0
    assert "done  few users: random 00, seed 0" in capsys.readouterr().out
    monkeypatch.setattr("ur4rec.runs.sizes.LENGTHS", (8,))  # other rules: the default alone runs again
    study.defaults.main(arguments)
    assert ran[2:] == ["few users: default, seed 0"]
    assert study.defaults.main([*arguments, "--only", "nothing"]) == 2
    assert "`python benchmarks/defaults.py --settings 1" in files[".md"].read_text()
    monkeypatch.setattr(
        study.defaults, "SHAPES", {"few users": TINY, "dense": TINY}
    )  # of which the first alone is done
    assert study.defaults.main([*arguments, "--report-only"]) == 0
    assert "`python benchmarks/defaults.py --only 'few users' --settings 1" in files[".md"].read_text()
    study.search.load_shape.cache_clear()
    study.search.counts_of_shape.cache_clear()
