import dataclasses
import json

import pytest

from alternator import RandomTenure
from tests.unit.ur4rec.compare.tiny_study import TINY, tiny_study
from ur4rec.cli.compare import repeat_options
from ur4rec.compare.arms import check_arms, is_ratio, schedule_string, slug
from ur4rec.compare.directory import StudyDirectory, open_study
from ur4rec.compare.runner import RunKey
from ur4rec.compare.study import StudyConfig
from ur4rec.compare.summary import tuned_ratio
from ur4rec.config import TrainerConfig
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.runs.sizes import Counts
from ur4rec.schedule.alternators import build_alternator, parse_schedule
from ur4rec.schedule.stages import STAGES


def test_a_matched_arm_is_random_tenures_with_the_measured_mean():
    text = schedule_string("matched:trend,min_gain=0.02", turns={"mean_tenure": 7.25}, seed=4)
    assert parse_schedule(text).rule == RandomTenure(mean=7.25, seed=4)


def test_a_shuffled_arm_has_the_tenures_of_its_original_in_another_order():
    tenures = [["both", 20], *([turn, length] for length in range(1, 9) for turn in ("sasrec", "both"))]
    rules = [
        parse_schedule(schedule_string("shuffled:x", turns={"tenures": tenures}, seed=seed)).rule for seed in (0, 1)
    ]
    originals = tuple(map(tuple, tenures))
    assert all(sorted(rule.tenures) == sorted(originals) for rule in rules)
    assert len({originals, *(rule.tenures for rule in rules)}) == 3
    for rule in rules:
        assert rule.tenures[0] == ("both", 20)
        assert [turn for turn, _ in rule.tenures] == [turn for turn, _ in originals]


def test_a_sequence_trains_what_it_says_and_begins_anew():
    rule = parse_schedule("sequence:(('both', 3), ('retriever', 1), ('both', 1))").rule
    alternator = build_alternator(STAGES["joint_finetune"], TrainerConfig(), rule)
    active = []
    for _ in range(8):
        active.append(alternator.active)
        alternator.advance()
    assert active == ["both", "both", "both", "retriever", "both", "both", "both", "both"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence:", "must read"),
        ("sequence:()", "one or more pairs"),
        ("sequence:(('sasrec', 0),)", "a length of at least 1"),
        ("sequence:(('fusion', 2),)", "pairs of a turn"),
        ("sequence:(3, 4)", "must read"),
    ],
)
def test_a_sequence_that_cannot_work_is_refused(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("joint",), "must hold 'parity'"),
        (("parity", "joint", "joint"), "must differ"),
        (("parity", "matched:plateau"), "needs an arm 'plateau'"),
        (("parity", "joint", "matched:joint"), "that switches"),
        (("parity", "plato"), "unknown schedule 'plato'"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(arms, message):
    with pytest.raises(ConfigurationError, match=message):
        check_arms(arms)


def test_slugs_never_collide():
    arms = ["parity", "1:2", "1-2", "matched:plateau", "plateau,threshold=0.02", "plateau,threshold=0.2", "x" * 300]
    slugs = [slug(arm) for arm in arms]
    assert len(set(slugs)) == len(arms)
    assert all("/" not in each and ":" not in each for each in slugs)


def test_ratios_are_known():
    assert [is_ratio(arm) for arm in ("parity", "12:1", "7:7:1", "joint", "cycle,steps=2")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_points_end_with_the_budget():
    assert StudyConfig(updates=10, eval_every=4).points == (0.4, 0.8, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every": 500}, "eval_every must be at most updates"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"budgets": ("steps",)}, "budgets must be"),
        ({"data": {"num_items": 50}}, "unknown option of data 'num_items'"),
        ({"joint_loss": "both"}, "unknown joint_loss"),
        ({"updates": 1}, "updates must be"),
        ({"trainer": {"fusion_fit": "held_out"}}, "fusion_fit must be 'training' in a study"),
        ({"model": {"fusion_popularity": True}}, "fusion_popularity must be False in a study"),
    ],
)
def test_a_study_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        StudyConfig(**changes)


def test_a_study_survives_json():
    study = StudyConfig(**{**TINY, "arms": ("parity", "1:2")})
    assert StudyConfig.from_json(json.loads(json.dumps(study.to_json()))) == study
    with pytest.raises(ConfigurationError, match="unknown setting 'speed'"):
        StudyConfig.from_json({"speed": 1})


def test_a_study_is_extended_by_arms_and_seeds_but_not_changed(tmp_path):
    tiny_study(tmp_path / "s", arms=("parity", "joint"))
    both = tiny_study(tmp_path / "s", arms=("parity", "1:2"), seeds=(5,)).study
    assert (both.arms, both.seeds) == (("parity", "joint", "1:2"), (0, 1, 5))
    assert StudyDirectory.reopen(tmp_path / "s").study == both
    with pytest.raises(ConfigurationError, match="holds a study with updates=12, got 24"):
        tiny_study(tmp_path / "s", updates=24)


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="must be new, empty or a study"):
        tiny_study(tmp_path)
    with pytest.raises(ConfigurationError, match=r"it has no study\.json"):
        StudyDirectory.reopen(tmp_path)


def test_only_whole_runs_count_as_finished(tmp_path):
    directory = tiny_study(tmp_path / "s", arms=("parity", "joint"), seeds=(0,))
    parity, joint = RunKey("parity", 0, "updates"), RunKey("joint", 0, "cost")
    assert directory.missing() == [parity, RunKey("joint", 0, "updates"), joint]
    directory.write_run(joint, {"best": 0}, {})
    directory.write_run(parity, {"best": 0}, {})
    assert directory.missing() == [RunKey("joint", 0, "updates")]
    (tmp_path / "s" / "runs" / "joint" / "cost-seed-0.json").unlink()
    assert joint in directory.missing()
    (tmp_path / "s" / "runs" / "parity" / "updates-seed-0.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        directory.read_run(parity)
    with pytest.raises(DataError, match="is damaged"):
        directory.read_arrays(joint._replace(basis="updates"))


def test_the_tuned_ratio_is_chosen_by_validation_alone():
    def run(validation, test):
        return {"best": 0, "points": [{"validation": {"ndcg@10": validation}, "test": {"ndcg@10": test}}]}

    runs = {
        "parity": [run(0.3, 0.9), run(0.3, 0.9)],
        "2:1": [run(0.2, 0.1), run(0.5, 0.1)],
        "4:1": [run(0.1, 0.8), run(0.4, 0.8)],
        "trend": [run(0.9, 0.9), run(0.9, 0.9)],
    }
    assert tuned_ratio(runs) == "2:1"


def test_options_of_many_values():
    words = ["DIR", "--arms", "joint", "3:1", "--updates", "60", "--seeds", "0", "1", "--report-only"]
    assert repeat_options(words) == [
        *("DIR", "--arms", "joint", "--arms", "3:1", "--updates", "60"),
        *("--seeds", "0", "--seeds", "1", "--report-only"),
    ]
    assert repeat_options(["--arms", "--seeds"]) == ["--arms", "--seeds"]


def test_a_command_opens_a_new_study_or_an_earlier_one(tmp_path):
    path = tmp_path / "s"
    made = open_study(None, path, {"dataset": "synthetic", "updates": 50, "num_users": None}, arms=["joint"], seeds=[4])
    assert (made.study.arms, made.study.seeds, made.study.eval_every) == (("parity", "joint"), (4,), 5)
    assert made.study.preset == "smoke"
    assert open_study(path, None, {}).study == made.study
    assert open_study(path, None, {}, arms=["2:1"]).study.arms == ("parity", "joint", "2:1")
    with pytest.raises(ConfigurationError, match="give either --out"):
        open_study(path, path, {})
    with pytest.raises(ConfigurationError, match="holds a study with updates=50"):
        open_study(path, None, {"updates": 60})


def test_a_study_keeps_what_its_preset_leaves_to_the_data(tmp_path):
    counts = Counts(num_interactions=20_000, num_items=900, num_users=400, typical_length=90)
    given = StudyConfig(preset="default", dataset="synthetic", model={"sasrec_hidden_dim": 48})
    directory = StudyDirectory.begin(tmp_path / "new", given)
    directory.settle(counts)
    config = StudyDirectory.reopen(tmp_path / "new").study.run_config("parity", 3)
    assert config.from_data == ()
    assert (config.model["max_seq_len"], config.model["sasrec_hidden_dim"], config.seed) == (96, 48, 3)
    assert config.trainer["sasrec_lr"] == 3e-3
    again = StudyDirectory.begin(tmp_path / "new", dataclasses.replace(given, arms=("parity", "joint")))
    assert again.study.sizes == directory.study.sizes
    again.settle(Counts(num_interactions=9, num_items=9, num_users=3, typical_length=3))
    assert again.study.sizes == directory.study.sizes


def test_a_study_that_began_before_sizes_came_from_the_data_goes_on_as_it_was(tmp_path):
    directory = tiny_study(tmp_path / "old", preset="default")
    before = (tmp_path / "old" / "study.json").read_bytes()
    assert b"sizes" not in before
    directory.settle(Counts(num_interactions=20_000, num_items=900, num_users=400, typical_length=90))
    assert (tmp_path / "old" / "study.json").read_bytes() == before
    config = directory.study.run_config("parity", 0)
    assert config.from_data == ()
    assert "sasrec_lr" not in config.trainer


def test_arms_of_the_default_begin_at_the_peak_rates_and_learn_their_fusion_weights():
    study = StudyConfig(preset="default", dataset="synthetic")
    config = study.run_config("parity", 0)
    assert (config.trainer["joint_lr_scale"], config.trainer["fusion_fit"]) == (1, "training")
    assert "fusion_popularity" not in config.model
    slower = dataclasses.replace(study, trainer={"joint_lr_scale": 0.5})
    assert slower.run_config("parity", 0).trainer["joint_lr_scale"] == 0.5


def test_a_fixed_preset_leaves_nothing_to_the_data(tmp_path):
    directory = StudyDirectory.begin(tmp_path / "s", StudyConfig(dataset="synthetic", preset="smoke"))
    directory.settle(Counts(num_interactions=20_000, num_items=900, num_users=400, typical_length=90))
    assert directory.study.sizes == {}
    assert directory.study.run_config("parity", 0).batch_size == 64


@pytest.mark.parametrize("sizes", [3, {"colour": 3}, {"batch_size": 0}])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ConfigurationError):
        StudyConfig(sizes=sizes)
