"""The results of a study as numbers: per arm, and each arm against the references.

Shapes: S seeds, T targets.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.compare.arms import JOINT, MATCHED, PARITY, SHUFFLED, is_ratio
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.runner import RunKey
from ur4rec.compare.statistics import (
    Curves,
    ResampledCurves,
    Resamples,
    largest_drop,
    spent_to_reach,
    time_ratio,
)
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import ndcg
from ur4rec.evaluation.results import CRITERION
from ur4rec.schedule.stages import joint_turn

METRICS = ("ndcg@10", "hit@10", "nll")
PARTS = (0.95, 1.0)
"""The parts of parity's final validation NDCG@10 whose price is reported."""
NUM_CURVE_RESAMPLES = 2000
"""Of the intervals of that price, for which whole curves are resampled."""
RunReport = Mapping[str, Any]


class Arm(NamedTuple):
    """The finished runs of an arm under a budget, by seed."""

    runs: dict[int, RunReport]
    """What each reported."""
    keys: dict[int, RunKey]
    """Where each is kept."""


def summarise_study(directory: StudyDirectory) -> dict[str, Any]:
    """Everything that the report shows, as plain JSON values.

    Raises:
        DataError: Parity has no finished run yet, or runs were charged with different costs.
    """
    directory.check_costs()
    study = directory.study
    budgets = {}
    for basis in study.budgets:
        arms = {arm: _collect(directory, arm, basis) for arm in study.arms}
        arms = {arm: found for arm, found in arms.items() if found.runs}
        if PARITY not in arms:
            raise DataError(f"{directory.path} has no finished run of parity yet; continue the comparison")
        budgets[basis] = _summarise_budget(directory, arms, basis)
    runs = [run for _, run in directory.runs()]
    return {
        "study": study.to_json(),
        "costs": directory.read_costs(),
        "facts": runs[0]["facts"],
        "commits": sorted({str(run["facts"]["commit"]) for run in runs}),
        "hashes_agree": len({run["facts"]["split_hash"] for run in runs}) == 1,
        "runs": {"finished": len(runs), "planned": len(directory.keys())},
        "errors": {f"{key.arm}, {key.basis}, seed {key.seed}": run["error"] for key, run in _failed(directory)},
        "budgets": budgets,
    }


def _failed(directory: StudyDirectory) -> list[tuple[RunKey, RunReport]]:
    return [(key, run) for key, run in directory.runs() if run["error"] is not None]


def _collect(directory: StudyDirectory, arm: str, basis: str) -> Arm:
    keys = {seed: directory.key_of(arm, seed, basis) for seed in directory.study.seeds}
    keys = {seed: key for seed, key in keys.items() if directory.is_done(key)}
    runs = {seed: directory.read_run(key) for seed, key in keys.items()}
    return Arm({seed: run for seed, run in runs.items() if run["best"] is not None}, keys)


def _summarise_budget(directory: StudyDirectory, arms: Mapping[str, Arm], basis: str) -> dict[str, Any]:
    tuned = tuned_ratio({arm: list(found.runs.values()) for arm, found in arms.items()})
    final = _final(arms[PARITY])
    return {
        "budget": next(iter(arms[PARITY].runs.values()))["budget"][basis],
        "tuned": tuned,
        "target": final,
        "arms": {arm: _summarise_arm(found, final, directory.study.modules) for arm, found in arms.items()},
        "differences": _differences(directory, arms, tuned),
        "time_ratios": _time_ratios(directory, arms, basis),
        "curves": {arm: {str(seed): _curve(run) for seed, run in found.runs.items()} for arm, found in arms.items()},
    }


def tuned_ratio(runs: Mapping[str, Sequence[RunReport]]) -> str:
    """The fixed ratio, parity among them, whose best validation NDCG@10 is highest on average over the seeds."""
    ratios = {arm: found for arm, found in runs.items() if is_ratio(arm)}
    return max(ratios, key=lambda arm: float(np.mean([_best(run)["validation"][CRITERION] for run in ratios[arm]])))


def _summarise_arm(arm: Arm, target: Mapping[str, float], modules: Sequence[str]) -> dict[str, Any]:
    runs = list(arm.runs.values())
    test = {metric: [_best(run)["test"][metric] for run in runs] for metric in METRICS}
    return {
        "seeds": list(arm.runs),
        "schedule": runs[0]["schedule"],
        "test": {metric: _spread(values) for metric, values in test.items()},
        "validation": {metric: _spread([_best(run)["validation"][metric] for run in runs]) for metric in METRICS},
        "test_at_end": {metric: _spread([run["points"][-1]["test"][metric] for run in runs]) for metric in METRICS},
        "to_target": _to_target(runs, target),
        "largest_drop": _mean([largest_drop(_quality(run)) for run in runs]),
        "shares": {module: _mean([run["turns"]["shares"][module] for run in runs]) for module in modules},
        "both_steps": _mean([run["turns"]["turn_steps"][joint_turn(modules)] / run["turns"]["steps"] for run in runs]),
        "switches": _mean([run["turns"]["switches"] for run in runs]),
        "mean_tenure": _mean([run["turns"]["mean_tenure"] for run in runs]),
        "spent": {unit: _mean([run["spent"][unit] for run in runs]) for unit in ("updates", "cost")},
        "best_part": _mean([(run["best"] + 1) / len(run["points"]) for run in runs]),
        "seconds": _mean([run["seconds"] for run in runs]),
    }


def _to_target(runs: Sequence[RunReport], target: Mapping[str, float]) -> dict[str, Any]:
    """Updates and cost at which the mean curve over seeds first reaches parity's final quality."""
    length = min(len(run["points"]) for run in runs)
    mean = {
        key: np.mean([[point[key] for point in run["points"][:length]] for run in runs], axis=0)
        for key in ("updates", "cost")
    }
    quality = {
        metric: np.mean([[point["validation"][metric] for point in run["points"][:length]] for run in runs], axis=0)
        for metric in (CRITERION, "nll")
    }
    reached: dict[str, Any] = {}
    for unit, spent in mean.items():
        for part in PARTS:
            reached[f"{unit}_{part:.0%}"] = spent_to_reach(spent, quality[CRITERION], part * target[CRITERION])
        reached[f"{unit}_nll"] = spent_to_reach(spent, -quality["nll"], -target["nll"])
    return reached


def _differences(directory: StudyDirectory, arms: Mapping[str, Arm], tuned: str) -> dict[str, Any]:
    """Each arm against parity, the tuned ratio, joint training and its own controls."""

    @cache
    def resamples(num_seeds: int, num_targets: int) -> Resamples:
        return _resamples(arms[PARITY], "test", num_seeds, num_targets)

    values = {arm: _per_target(directory, found) for arm, found in arms.items()}
    table: dict[str, Any] = {}
    for arm in arms:
        references = {
            "parity": PARITY,
            "tuned": tuned,
            "joint": JOINT,
            "matched": MATCHED + arm,
            "shuffled": SHUFFLED + arm,
        }
        for name, reference in references.items():
            seeds = [seed for seed in values[arm] if seed in values.get(reference, {})]
            if reference == arm or not seeds:
                continue
            stacks = {each: _stack(values[each], seeds) for each in (arm, reference)}
            table.setdefault(arm, {})[name] = {
                metric: list(
                    resamples(len(seeds), stacks[arm][metric].shape[1]).relative_difference(
                        stacks[arm][metric], stacks[reference][metric]
                    )
                )
                for metric in METRICS
            }
    return table


def _resamples(arm: Arm, split: str, num_seeds: int, num_targets: int, **settings: int) -> Resamples:
    """Draws of seeds and users; the targets of a user, as its runs report them, are drawn together."""
    run = next(iter(arm.runs.values()))
    counts = (run.get("targets_per_user") or {}).get(split) or [1] * num_targets
    if sum(counts) != num_targets:
        raise DataError(
            f"the {split} targets of a run must be those of its users, got {num_targets} for {sum(counts)}; remove its "
            "files and compare again"
        )
    return Resamples(num_seeds, len(counts), targets_per_user=counts, **settings)


def pack_study(directory: StudyDirectory) -> None:
    """Pack a study's finished runs, with the intervals that need every target at every point.

    Raises:
        DataError: Parity has no finished run yet.
    """
    kept: dict[str, Any] = {}
    for basis, budget in summarise_study(directory)["budgets"].items():
        seeds = {arm: found["seeds"] for arm, found in budget["arms"].items()}
        kept[basis] = {
            arm: {"seeds": [seed for seed in seeds[arm] if seed in seeds[PARITY]], "ratios": ratios}
            for arm, ratios in budget["time_ratios"].items()
        }
    directory.pack(kept)


def _time_ratios(directory: StudyDirectory, arms: Mapping[str, Arm], basis: str) -> dict[str, Any]:
    """Each arm's cost to parity's final validation quality, by parity's, with an interval; None for infinite.

    Computed from loose runs and kept for packed ones, also when parity has been run again; an arm that has some of each
    is left out.
    """
    kept = directory.kept_time_ratios(basis)
    curves = {arm: _curves_per_target(directory, found) for arm, found in arms.items()}

    @cache
    def resamples(num_seeds: int, num_targets: int) -> Resamples:
        return _resamples(arms[PARITY], "validation", num_seeds, num_targets, num_resamples=NUM_CURVE_RESAMPLES)

    @cache
    def resampled(arm: str, seeds: tuple[int, ...]) -> dict[str, ResampledCurves]:
        stacked = _stack_curves([curves[arm][seed] for seed in seeds])
        draws = resamples(len(seeds), stacked[CRITERION].quality_SPT.shape[2])
        return {name: draws.curves(each) for name, each in stacked.items()}

    table: dict[str, Any] = {}
    for arm, found in arms.items():
        seeds = tuple(seed for seed in found.runs if seed in arms[PARITY].runs)
        if arm == PARITY or not seeds:
            continue
        loose = [seed in curves[arm] for seed in seeds]
        if all(loose) and all(seed in curves[PARITY] for seed in seeds):
            table[arm] = _time_ratio(resampled(arm, seeds), resampled(PARITY, seeds))
        elif not any(loose) and kept.get(arm, {}).get("seeds") == list(seeds):
            table[arm] = kept[arm]["ratios"]
    return table


def _time_ratio(arm: Mapping[str, ResampledCurves], parity: Mapping[str, ResampledCurves]) -> dict[str, Any]:
    found = {f"{part:.0%}": time_ratio(arm[CRITERION], parity[CRITERION], part) for part in sorted(PARTS)}
    found["nll"] = time_ratio(arm["nll"], parity["nll"])
    return {name: [each if np.isfinite(each) else None for each in ratio] for name, ratio in found.items()}


def _curves_per_target(directory: StudyDirectory, arm: Arm) -> dict[int, dict[str, Curves]]:
    """By seed: validation NDCG@10, and minus the NLL, of every target at every point, against cost; of loose runs."""
    found = {}
    for seed, run in arm.runs.items():
        if not directory.is_loose(arm.keys[seed]):
            continue
        arrays = directory.read_arrays(arm.keys[seed])
        ndcg_PT = ndcg(arrays["validation_ranks_PT"], 10)
        cost_P = np.array([point["cost"] for point in run["points"]])
        found[seed] = {CRITERION: Curves(cost_P, ndcg_PT), "nll": Curves(cost_P, -arrays["validation_nll_PT"])}
    return found


def _stack_curves(by_seed: Sequence[Mapping[str, Curves]]) -> dict[str, Curves]:
    """Those of several seeds, up to the last point that all of them reached."""
    length = min(len(each[CRITERION].spent_SP) for each in by_seed)
    return {
        name: Curves(
            np.stack([each[name].spent_SP[:length] for each in by_seed]),
            np.stack([each[name].quality_SPT[:length] for each in by_seed]).astype(float),
        )
        for name in by_seed[0]
    }


def _per_target(directory: StudyDirectory, arm: Arm) -> dict[int, dict[str, NDArray[Any]]]:
    """By seed: each metric of every test target at the best validation point."""
    found = {}
    for seed in arm.runs:
        targets = directory.read_targets(arm.keys[seed])
        hits_T = (targets.ranks_T <= 10).astype(float)
        found[seed] = {"hit@10": hits_T, "ndcg@10": ndcg(targets.ranks_T, 10), "nll": targets.nll_T}
    return found


def _stack(by_seed: Mapping[int, Mapping[str, NDArray[Any]]], seeds: Sequence[int]) -> dict[str, NDArray[Any]]:
    return {metric: np.stack([by_seed[seed][metric] for seed in seeds]).astype(float) for metric in METRICS}


def _best(run: RunReport) -> Mapping[str, Any]:
    point: Mapping[str, Any] = run["points"][run["best"]]
    return point


def _quality(run: RunReport) -> list[float]:
    return [point["validation"][CRITERION] for point in run["points"]]


def _final(arm: Arm) -> dict[str, float]:
    """The mean over seeds of the validation metrics at the end."""
    ends = [run["points"][-1]["validation"] for run in arm.runs.values()]
    return {metric: _mean([end[metric] for end in ends]) for metric in METRICS}


def _curve(run: RunReport) -> dict[str, list[float]]:
    """One list per quantity, point by point."""
    curve = {unit: [_round(point[unit]) for point in run["points"]] for unit in ("updates", "cost")}
    for split in ("validation", "test"):
        for metric in METRICS:
            curve[f"{split}_{metric}"] = [_round(point[split][metric]) for point in run["points"]]
    return curve


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": _mean(values), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _round(value: float) -> float:
    return float(f"{value:.5g}")
