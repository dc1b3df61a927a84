"""The benchmark of domains: finished runs are kept, a report comes from the packed file alone, regrets are right."""

import json
import pickle
from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np
import pytest

from benchmarks.domains import _command as command
from benchmarks.domains._cells import Cell, Facts, Kept, Run, fingerprint, read_packed, write_packed
from benchmarks.domains._domain import Arm, Domain, Outcome, Point, all_domains
from benchmarks.domains._regret import difference, summarise


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Knows what each arm comes to; counts runs in a file, since runs may be in other processes."""

    log: str
    name: str = "toy"
    question: str = "Which number is largest?"
    metric: str = "number"
    higher_is_better: bool = True
    budget: float = 10.0
    unit: str = "steps"
    num_seeds: int = field(default=2, repr=False)
    has_signal: bool = True
    fails: str = ""

    def arms(self):
        return {
            "all": Arm(kind="joint", setting=0.5),
            "a alone": Arm(kind="fixed", setting=0.8),
            "b alone": Arm(kind="fixed", setting=0.4),
            "random": Arm(kind="random", setting=0.45),
            "somebody's": Arm(kind="published", setting=0.7, note="Somebody (2024)"),
            "Trial": Arm(kind="ours", setting=0.76),
        }

    def run(self, arm, seed):
        with open(self.log, "a") as file:
            file.write(f"{arm} {seed}\n")
        if arm == self.fails:
            raise RuntimeError("out of numbers")
        value = self.arms()[arm].setting + seed / 100
        curve = [Point(5, value - 0.2, value - 0.3), Point(10, value, value)]
        return Outcome.at_best(curve, higher_is_better=True, shares={"a": 0.25, "b": 0.75})


@pytest.fixture
def toy(tmp_path, monkeypatch):
    domain = Toy(log=str(tmp_path / "log"))
    monkeypatch.setattr(command, "all_domains", lambda: {"toy": domain})
    return domain


@pytest.fixture
def arguments(tmp_path):
    folders = [
        f"--{name}={tmp_path / path}" for name, path in (("work", "work"), ("out", "out"), ("packed", "p/r.parquet"))
    ]
    return ["--jobs", "1", *folders]


def log_of(toy):
    with open(toy.log) as file:
        return file.read().splitlines()


def of_suffix(tmp_path, suffix):
    (found,) = (tmp_path / "out").glob(f"*{suffix}")
    return found


def test_a_run_is_judged_where_held_out_data_say():
    points = [Point(1, 0.5, 9.0), Point(2, 0.3, 0.4), Point(3, 0.3, 0.1), Point(4, nan, 7.0), Point(5, -inf, 7.0)]
    assert Outcome.at_best(points, higher_is_better=False).test == 0.4
    assert Outcome.at_best(points, higher_is_better=True).test == 9.0
    assert Outcome.at_best(points[3:], higher_is_better=True).test == 7.0
    assert Outcome.at_best(points, higher_is_better=False).cost == 5


def run(arm, seed, test, held_out, kind="fixed", in_grid=True):
    outcome = Outcome(test=test, held_out=held_out, cost=1.0, curve=(Point(1.0, held_out, test),))
    return Run(
        cell=Cell("d", arm, seed),
        kind=kind,
        in_grid=in_grid,
        note="",
        fingerprint="f",
        seconds=0.1,  # of which 32 bits keep 7 digits alone
        outcome=outcome,
    )


def facts(**changes):
    given = Facts(name="d", question="?", metric="m", higher_is_better=True, budget=1.0, unit="steps", has_signal=True)
    return replace(given, **changes)


def test_regret_is_against_the_arm_of_the_grid_that_held_out_data_choose_and_judged_on_test_data():
    runs = [
        *(run("chosen", seed, test, 0.9) for seed, test in enumerate((0.4, 0.6))),
        *(run("lucky on test data", seed, 0.9, 0.1) for seed in range(2)),
        *(run("not allowed", seed, 0.95, 0.99, kind="joint", in_grid=False) for seed in range(2)),
        *(run("rule", seed, test, 0.5, kind="ours", in_grid=False) for seed, test in enumerate((0.3, 0.4))),
        run("just begun", 0, 0.9, 0.95),
    ]
    found = summarise(facts(), runs)
    assert (found.best, found.grid_size, found.seeds) == ("chosen", 2, (0, 1))
    rule = found.arm("rule")
    half = 12.7062 * (0.1 / 2**0.5) / 2**0.5  # Student's t with one degree of freedom, the differences 0.1 and 0.2
    assert rule.regret == pytest.approx((0.15 / 0.5, (0.15 - half) / 0.5, (0.15 + half) / 0.5), rel=1e-4)
    assert rule.from_joint.estimate == pytest.approx((0.35 - 0.95) / 0.95)
    assert found.arm("chosen").regret == (0, 0, 0)
    assert found.joint.arm == "not allowed"
    assert found.arm("just begun") is None


def test_where_lower_is_better_regret_has_the_same_sign():
    runs = [run("best", 0, 2.0, 1.0), run("worse", 0, 3.0, 2.0), run("rule", 0, 1.5, 1.9, kind="ours", in_grid=False)]
    found = summarise(facts(higher_is_better=False), runs)
    assert {each.arm: each.regret.estimate for each in found.arms} == {"best": 0, "worse": 0.5, "rule": -0.25}
    assert found.arm("rule").from_joint is None


def test_a_difference_is_in_parts_of_the_size_of_a_negative_reference_too():
    assert difference(np.array([-90.0]), np.array([-100.0])).estimate == pytest.approx(0.1)


def test_nothing_is_said_before_a_schedule_of_the_grid_is_finished():
    assert summarise(facts(), []) is None
    assert summarise(facts(), [run("rule", 0, 1.0, 1.0, kind="ours", in_grid=False)]) is None


def test_the_command_continues_where_it_stopped(toy, arguments, tmp_path, capsys):
    assert command.main([*arguments, "--seeds", "2", "--only", "alone"]) == 0
    assert len(log_of(toy)) == 4
    assert "[4/4, about 0 min left] toy: b alone, seed 1: number 0.41 (held out 0.41)" in capsys.readouterr().err
    assert command.main(arguments) == 0  # of its own number of seeds, which is two
    assert len(log_of(toy)) == len(set(log_of(toy))) == 12
    text = of_suffix(tmp_path, ".md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| toy |"))
    assert "a alone: 0.805 | 3 × 10 steps" in row
    assert "**+5.0% [+5.0%, +5.0%]**<br>joint +51.5% [+51.5%, +51.5%]" in row  # 0.765 of 0.805; 0.765 of 0.505
    assert "somebody's: **+12.4%" in row
    assert "*somebody's*: Somebody (2024)." in text
    found = json.loads(of_suffix(tmp_path, ".json").read_text())["domains"][0]
    assert found["arms"][0]["test"] == [0.5, 0.51]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_runs_in_other_processes_are_kept_too(toy, arguments, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")
    assert command.main([*arguments, "--seeds", "1", "--jobs", "2", "--only", "alone"]) == 0
    assert sorted(log_of(toy)) == ["a alone 0", "b alone 0"]


def test_other_settings_make_a_run_again_and_the_listing_says_so(toy, arguments, monkeypatch, capsys):
    assert command.main([*arguments, "--seeds", "1", "--only", "alone"]) == 0
    changed = replace(toy, budget=20.0)
    monkeypatch.setattr(command, "all_domains", lambda: {"toy": changed})
    capsys.readouterr()
    assert command.main([*arguments, "--seeds", "1", "--only", "alone", "--list"]) == 0
    assert "a alone (fixed): 0 of 1 finished" in capsys.readouterr().out
    assert command.main([*arguments, "--seeds", "1", "--only", "alone", "--report-only"]) == 0
    assert "2 of 2 runs were made with other settings than today's" in capsys.readouterr().err
    assert command.main([*arguments, "--seeds", "1", "--only", "alone"]) == 0
    assert len(log_of(toy)) == 4


def test_a_run_that_fails_leaves_the_others(toy, arguments, monkeypatch, capsys):
    monkeypatch.setattr(command, "all_domains", lambda: {"toy": replace(toy, fails="b alone")})
    assert command.main([*arguments, "--seeds", "1"]) == 1
    shown = capsys.readouterr()
    assert "failed: toy: b alone, seed 0" in shown.err
    assert "RuntimeError: out of numbers" in shown.err
    assert "| toy | number ↑ | a alone: 0.8 | 2 × 10 steps |" in shown.out
    assert command.main([*arguments, "--seeds", "1", "--only", "b alone"]) == 1  # it is tried again
    assert log_of(toy).count("b alone 0") == 2


def test_a_report_comes_from_the_packed_file_alone(toy, arguments, tmp_path):
    assert command.main([*arguments, "--seeds", "3", "--pack"]) == 0
    before = of_suffix(tmp_path, ".json").read_text()
    (tmp_path / "work" / "toy.jsonl").unlink()
    of_suffix(tmp_path, ".json").unlink()
    assert command.main([*arguments, "--seeds", "3", "--report-only"]) == 0
    assert len(log_of(toy)) == 18
    shown, expected = json.loads(of_suffix(tmp_path, ".json").read_text()), json.loads(before)
    assert shown["domains"] == expected["domains"]
    assert command.main([*arguments, "--seeds", "3"]) == 0  # what is packed is finished
    assert len(log_of(toy)) == 18


def test_packed_runs_are_those_that_were_packed(tmp_path):
    runs = [run("a", 0, 0.25, 0.5), run("b", 1, nan, inf, kind="ours", in_grid=False)]
    write_packed(tmp_path / "runs.parquet", [facts()], runs)
    found_facts, found = read_packed(tmp_path / "runs.parquet")
    assert found_facts == {"d": facts()}
    assert found[runs[0].cell] == runs[0]
    assert repr(found[runs[1].cell]) == repr(runs[1])


def test_a_line_that_was_left_half_written_is_not_a_run(tmp_path):
    kept = Kept(tmp_path, tmp_path / "none.parquet")
    kept.add(run("a", 0, 1.0, 1.0))
    with (tmp_path / "d.jsonl").open("a") as file:
        file.write('{"cell": ["d", "b"')
    assert list(Kept(tmp_path, tmp_path / "none.parquet").runs) == [Cell("d", "a", 0)]
    kept.add(run("b", 0, 1.0, 1.0))
    assert len(Kept(tmp_path, tmp_path / "none.parquet").runs) == 2


def test_nothing_that_is_asked_for_is_said(toy, arguments, capsys):
    assert command.main([*arguments, "--only", "nobody"]) == 2
    assert "--list shows all" in capsys.readouterr().err
    assert command.main([*arguments, "--report-only"]) == 1
    assert "nothing is finished" in capsys.readouterr().err


def tiny(name):
    """The domain in a size of seconds."""
    few = {"budget": 12.0, "num_target": 24, "num_held_out": 16, "num_test": 20, "num_source": 100, "source_epochs": 1}
    sizes = {
        "few-shot-input": few,
        "few-shot-feature": few,
        "few-shot-output": few,
        "memory-cap": {"budget": 24.0, "num_blocks": 3, "width": 8, "num_train": 40, "num_held_out": 16}
        | {"num_test": 20, "num_source": 100, "source_epochs": 1, "look_every": 8.0},
        "character-model": {"budget": 12.0, "num_layers": 1, "width": 8, "length": 8, "batch": 2, "num_held_out": 16}
        | {"num_test": 4, "source_steps": 2, "look_every": 6.0},
    }
    return replace(all_domains()[name], **sizes[name])


@pytest.mark.parametrize("name", ["few-shot-input", "few-shot-feature", "few-shot-output", "memory-cap"])
def test_every_arm_trains_within_its_budget(name):
    pytest.importorskip("torch")
    domain = tiny(name)
    for arm in domain.arms():
        outcome = domain.run(arm, 0)
        assert 0 < outcome.cost <= domain.budget + 0.7, arm  # what measures last may end a little beyond
        assert len(outcome.curve) > 1
        assert sum(outcome.shares.values()) == pytest.approx(1)
        assert np.isfinite([outcome.test, outcome.held_out]).all()


def test_the_language_model_trains_by_every_kind_of_arm():
    pytest.importorskip("torch")
    domain = tiny("character-model")
    arms = {arm.kind: name for name, arm in domain.arms().items()}
    for arm in arms.values():
        outcome = domain.run(arm, 0)
        assert 0 < outcome.cost <= domain.budget + 0.7


def test_a_seed_means_the_same_data_and_weights_for_all_arms():
    pytest.importorskip("torch")
    domain = tiny("few-shot-input")
    starts = {domain.run(arm, 3).curve[0][1:] for arm in ("joint", "block1 alone", "Trial")}
    assert len(starts) == 1
    assert domain.run("joint", 3) == domain.run("joint", 3)


def test_an_arm_of_one_block_trains_that_block_alone():
    torch = pytest.importorskip("torch")
    from benchmarks.domains._torch import Run

    domain = tiny("few-shot-input")
    problem = domain.problem(0)
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    Run(problem, domain.arms()["block3 alone"].setting, 5.0, 5.0).train()
    changed = {name for name, value in problem.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"block3.0.weight", "block3.0.bias"}


def test_under_the_cap_no_more_than_one_block_has_optimizer_state():
    pytest.importorskip("torch")
    from benchmarks.domains._blocks import run_blocks

    domain = tiny("memory-cap")
    for arm in ("descending, 1 steps", "LISA", "BlockLLM", "Trial"):
        problem = domain.problem(0)
        held = []
        choose = problem.before_step
        run = run_blocks(problem, domain.arms()[arm].setting, 12.0, 6.0)
        choose = problem.before_step

        def count(run, choose=choose, problem=problem, held=held):
            held.append(sum(bool(optimizer.state) for optimizer in problem.optimizers.values()))
            choose(run)

        problem.before_step = count
        run.train()
        assert max(held) == 1, arm


def test_orders_repeat_from_where_they_should():
    from alternator import Alternator
    from benchmarks.domains._rules import Order, RandomOrder

    def turns(rule, num_steps):
        alternator = Alternator(("a", "b", "c"), rule=rule)
        return "".join(alternator.advance().active for _ in range(num_steps))

    assert turns(Order(((0, 1), (1, 2), (0, 1)), again_from=1), 8) == "bbabbabb"
    assert turns(Order(((0, 2), (2, 1))), 5) == "acccc"
    assert turns(RandomOrder(2, seed=1), 40) == turns(RandomOrder(2, seed=1), 40) != turns(RandomOrder(2, seed=2), 40)
    assert set(turns(RandomOrder(2, seed=1), 40)) == set("abc")


def test_every_domain_is_complete():
    pytest.importorskip("torch")
    for name, domain in all_domains().items():
        found: Domain = domain
        assert name == name.lower()
        assert found.question.endswith("?")
        assert found.budget > 0
        arms = found.arms()
        assert any(arm.is_of_grid for arm in arms.values())
        has_control = name != "costly-encoder-sports"  # of 6 minutes a run: the other costly encoder has the control
        assert {arm.kind for arm in arms.values()} >= {"fixed", "ours", *(["random"] if has_control else [])}
        marks = {fingerprint(found, arm) for arm in arms.values()}
        assert len(marks) == len(arms), "two arms with the same setting"
        assert " at 0x" not in repr(found) + repr([arm.setting for arm in arms.values()])


@pytest.mark.parametrize("name", ["movielens", "few-shot-input", "players"])
def test_a_domain_that_was_asked_goes_to_another_process(name):
    """Runs are in processes of their own, and the command has asked every domain before."""
    domain = all_domains()[name]
    assert domain.budget > 0
    assert fingerprint(domain, domain.arms()["joint"])
    again = pickle.loads(pickle.dumps(domain))  # noqa: S301 (ours)
    assert (again.name, again.budget, [*again.arms()]) == (name, domain.budget, [*domain.arms()])
