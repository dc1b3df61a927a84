"""What does a recipe cost?  `python benchmarks/recipes.py` writes a JSON result, a table and a plot.

The programs of each recipe in examples/recipes, with an adapter and with the same schedule by hand, take turns in one
process, which is theirs alone. What each takes to start, the time of `train(1)`, is taken off; what is left are steps.
Then the program with the adapter runs as a whole, to show what it learns.
"""

import argparse
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch
from overhead import RESULTS, ROOT, Row, machine, measure, save, spread, table, turns
from tqdm import tqdm

sys.path.insert(0, str(ROOT))
from docs.tools.recipes import Recipe, find_recipes

QUESTION = "What does a recipe cost?"
ROUNDS, SECONDS = 31, 0.5
"""Per recipe the number of rounds, and the CPU seconds of steps in a round of each program."""
Train = Callable[[int], object]


def measure_recipe(recipe: Recipe, rounds: int, seconds: float) -> Row:
    """The ratio of the times of a step."""
    ours, theirs = (load(path) for path in (recipe.after, recipe.twin))
    first = start_of(theirs)
    num_steps = steps_of(theirs, first, max(seconds, 2 * first))
    starts = start_of(ours), start_of(theirs)
    pairs = turns(partial(ours, num_steps), partial(theirs, num_steps), rounds)
    steps = [[whole - start for whole, start in zip(pair, starts, strict=True)] for pair in pairs]
    median, low, high = spread([mine / other for mine, other in steps])
    mine_ms, other_ms = (statistics.median(column) / (num_steps - 1) * 1e3 for column in zip(*steps, strict=True))
    return Row(
        name=recipe.name,
        against=recipe.twin.name,
        value=median,
        low=low,
        high=high,
        unit="×",
        bar=None,
        detail=f"{mine_ms:.3g} ms against {other_ms:.3g} ms, {rounds} rounds of {num_steps} steps",
    )


def load(path: Path) -> Train:
    """The `train` of a program."""
    train: Train = runpy.run_path(str(path))["train"]
    return train


def start_of(train: Train, calls: int = 5) -> float:
    """CPU seconds of a call that makes a single step."""
    train(1)
    return statistics.median(measure(partial(train, 1)) for _ in range(calls))


def steps_of(train: Train, start: float, seconds: float) -> int:
    """How many steps take this many CPU seconds more than the start does."""
    num_steps = 8
    while (taken := measure(partial(train, num_steps)) - start) < seconds / 4:
        num_steps *= 2
    return max(2, int(num_steps * seconds / taken))


def in_a_process(recipe: Recipe, rounds: int, seconds: float) -> Row:
    """The row of a recipe, measured in a process of its own, with what it prints in another."""
    measured = [__file__, "--only", recipe.name, "--rounds", str(rounds), "--seconds", str(seconds), "--print"]
    row = Row(**json.loads(lines_of(measured)[-1]))
    learned = re.sub(
        r"\d+\.\d+", lambda found: f"{float(found[0]):.4g}", " → ".join(figures(lines_of([str(recipe.after)])))
    )
    return replace(row, detail=f"{row.detail}; {learned}")


def figures(lines: list[str]) -> list[str]:
    """What a program says of itself before and after; frameworks print lines of their own."""
    return [line for line in lines if re.search(r"\b(before|after)\b", line)]


def lines_of(program: list[str]) -> list[str]:
    """What a Python program prints."""
    done = subprocess.run([sys.executable, *program], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{done.stderr}")
    return done.stdout.splitlines()


def kept_rows(folder: Path) -> dict[str, Row]:
    """The rows of the newest result, by recipe."""
    files = sorted(folder.glob("recipes_*.json"))
    rows = json.loads(files[-1].read_text(encoding="utf-8"))["rows"] if files else []
    return {row["name"]: Row(**{key: value for key, value in row.items() if key != "passes"}) for row in rows}


def main(arguments: list[str] | None = None) -> int:
    """Measure all recipes and save the result."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[each.name for each in find_recipes()],
        help="measure some, and keep the rows of others",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each recipe")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="CPU seconds of steps in a round of each program"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--print", action="store_true", help="measure one recipe in this process, and print its row")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipes = [each for each in find_recipes() if options.only is None or each.name in options.only]
    if options.print:
        warnings.simplefilter("ignore")
        print(json.dumps(asdict(measure_recipe(recipes[0], options.rounds, options.seconds))))
        return 0
    measured = {} if options.only is None else kept_rows(options.out)
    command, hardware = "python benchmarks/recipes.py", f"cpu{torch.multiprocessing.cpu_count()}"
    for recipe in (bar := tqdm(recipes, unit="recipe")):
        bar.set_description(recipe.name)
        measured[recipe.name] = in_a_process(recipe, options.rounds, options.seconds)
        rows = [measured[each.name] for each in find_recipes() if each.name in measured]
        file = save(rows, options.out, hardware, command, theme="recipes", question=QUESTION)
    print(table(rows, machine(), command, QUESTION))
    print(f"written: {file.stem}.json, .md, .png; python docs/tools/recipes.py shows them in the guide")
    return 0


if __name__ == "__main__":
    sys.exit(main())
