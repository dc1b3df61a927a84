"""Does damaged or hostile input ever end in a traceback?  `python benchmarks/fuzz.py --seed 0 --minutes 10`.

The corpus of `tests/hostile` is a table of what somebody thought of. Here hypothesis draws what nobody did: bytes of a
file flipped, cut, repeated and moved; values of a JSON document replaced, with the checksums that belong to it; headers
of safetensors changed; cells of tables; strings for settings. Every command that reads the file is run on it, as in the
tests: a command either does its work or says in one line, with exit code 2, what is wrong, at a bounded cost; nothing
else is changed. A failure is printed as a line with which it can be made again (``--again KIND JSON``), and the counts
go to ``benchmarks/results/fuzz_SEED.json``.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.hostile import corpus
from tests.hostile.commands import Commands, tree
from tests.hostile.good import EVENTS
from ur4rec.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE

RESULTS = Path(__file__).parent / "results"
SECONDS, MEGABYTES, ROUND = 10, 500, 5
"""Processor time at most: more than of a refusal, as a command may also do its work; memory; draws of a round."""

FILES = {
    "config": ["run/config.json"],
    "checkpoint": [f"run/checkpoint/{name}" for name in ("BEST", "LATEST")],
    "decisions": ["run/decisions.csv"],
    "payoffs": ["run/payoffs.csv"],
    "data": ["data/interactions.csv", "data/items.csv"],
    "parquet": ["plays.parquet"],
    "texts": ["texts.json"],
    "study": [
        *("study/study.json", "study/costs.json", "study/runs/joint/updates-seed-0.json"),
        "study/runs/joint/updates-seed-0.npz",
    ],
    "packed": ["packed/runs.parquet", "packed/study.json"],
    "losses": ["losses.csv"],
    "events": [EVENTS],
}
"""The files of a kind whose bytes are changed."""
JSON_FILES = {kind: [path for path in paths if path.endswith(".json")] for kind, paths in FILES.items()}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**53, 2**63, 10**30, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
FRACTIONS = st.floats(0, 1, exclude_max=True)
BYTES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "drop"]), FRACTIONS, st.integers(1, 64), st.integers(0, 255)
    ),
    min_size=1,
    max_size=6,
)


def change_bytes(content, changes):
    """The content after the changes, one after the other."""
    changed = bytearray(content)
    for how, fraction, length, byte in changes:
        start = int(fraction * len(changed))
        piece = bytes(changed[start : start + length])
        if how == "flip" and changed:
            changed[start] ^= byte or 1
        elif how == "cut":
            del changed[start:]
        elif how == "insert":
            changed[start:start] = bytes([byte]) * length
        elif how == "repeat":
            changed[start:start] = piece * byte
        elif how == "drop":
            del changed[start : start + length]
    return bytes(changed)


def places(document, place=()):
    """Every place of a JSON document; of a list, the first and the last."""
    yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*place, key))
    elif isinstance(document, list):
        for number in sorted({0, len(document) - 1} if document else ()):
            yield from places(document[number], (*place, number))


def replace_somewhere(document, fraction, value):
    """The document with a value at one of its places, but the first, the whole."""
    found = [*places(document)][1:]
    return corpus.holding(document, found[int(fraction * len(found))], value) if found else value


def damage(root, kind, drawn):
    """Do what was drawn, a mapping of plain JSON values, to the files in a directory."""
    how, where = drawn["how"], drawn.get("where", 0.0)
    if how == "bytes":
        paths = FILES[kind]
        path = root / paths[int(where * len(paths))]
        path.write_bytes(change_bytes(path.read_bytes(), drawn["changes"]))
    elif how == "json":
        paths = JSON_FILES[kind]
        path = root / paths[int(where * len(paths))]
        document = json.loads(path.read_text())
        for fraction, value in drawn["changes"]:
            document = replace_somewhere(document, fraction, value)
        path.write_text(json.dumps(document))
    elif how == "state":
        for fraction, value in drawn["changes"]:
            corpus.each_checkpoint(lambda a, s, f=fraction, v=value: (a, replaced_state(s, f, v)))(root)
    elif how == "header":
        for fraction, value in drawn["changes"]:
            change = corpus.header(lambda document, f=fraction, v=value: replace_somewhere(document, f, v))
            corpus.arrays(MODEL_FILE if where < 0.5 else OPTIMIZER_FILE, change)(root)
    elif how == "cell":
        name = f"{kind}.csv"
        for fraction, value in drawn["changes"]:
            corpus.logs(name, lambda table, f=fraction, v=value: replace_somewhere(table, f, v))(root)


def replaced_state(document, fraction, value):
    """The state of a checkpoint with a value somewhere, its checksums left to be made again."""
    return {**replace_somewhere({k: v for k, v in document.items() if k != "sha256"}, fraction, value), "sha256": {}}


PAIRS = st.lists(st.tuples(FRACTIONS, VALUES), min_size=1, max_size=3)
CELLS = st.lists(
    st.tuples(st.floats(0.01, 1, exclude_max=True), st.text(max_size=8) | st.integers().map(str)),
    min_size=1,
    max_size=3,
)


def draws_of(kind):
    """What is drawn for a kind."""
    ways = [st.fixed_dictionaries({"how": st.just("bytes"), "where": FRACTIONS, "changes": BYTES})]
    if JSON_FILES.get(kind):
        ways.append(st.fixed_dictionaries({"how": st.just("json"), "where": FRACTIONS, "changes": PAIRS}))
    if kind == "checkpoint":
        ways += [st.fixed_dictionaries({"how": st.just("header"), "where": FRACTIONS, "changes": PAIRS})] * 2
        ways += [st.fixed_dictionaries({"how": st.just("state"), "changes": PAIRS})] * 3
    return st.one_of(ways)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
LITERALS = st.one_of(
    TEXTS, VALUES.map(repr), st.sampled_from(["0x" + "f" * 5000, "(" * 3000, "-" * 9000 + "1", "9" * 5000])
)
SETTINGS = st.one_of(
    st.tuples(st.just("--set"), st.tuples(st.sampled_from(["sasrec_lr", "sasrec_num_heads", "fusion"]), LITERALS)),
    st.tuples(st.just("--schedule"), st.tuples(st.sampled_from(["plateau,threshold", "cycle,steps", "x"]), LITERALS)),
    st.tuples(st.just("--epochs"), st.tuples(st.sampled_from(["joint_finetune", "x"]), LITERALS)),
).map(lambda drawn: [drawn[0], f"{drawn[1][0]}={drawn[1][1]}"])


class Fuzz:
    """Draws, runs and counts.

    Args:
        commands: Where commands run.
        good: What is damaged.
        work: Where.
    """

    def __init__(self, commands, good, work):
        self.commands, self.good, self.work = commands, good, work
        self.cases, self.runs, self.codes, self.failures = Counter(), Counter(), Counter(), []

    def case(self, kind, drawn):
        """One drawing, and every command that reads it."""
        self.cases[kind] += 1
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.good, self.work)
        if kind == "settings":
            words = [("ur4rec", "train", "--dataset", "missing", "--out", "new", *drawn)]
        else:
            try:
                damage(self.work, kind, drawn)
            except (AssertionError, KeyError, IndexError, TypeError, ValueError):
                return  # an earlier change left nothing for a later one
            words = corpus.COMMANDS[kind]
        for each in words:
            if "jax" in each and self.cases[kind] % 10:
                continue  # what both backends share is most of it, and compiling takes seconds
            self._run(kind, drawn, each)

    def _run(self, kind, drawn, words):
        if words[1] == "compare" and "--report-only" not in words:
            return  # what it continues may take as long as the study says
        own = {"train": ("new", "run", "jax", "cache"), "convert": ("converted",), "compare": (words[2],)}.get(
            words[1], ()
        )
        before = tree(self.work)
        outcome = self.commands.run(self.work, *words)
        self.runs[kind] += 1
        self.codes[outcome.code] += 1
        lines = outcome.stderr.strip().splitlines()
        faults = []
        if outcome.code not in (0, 2):
            faults.append(f"exit code {outcome.code}")
        if outcome.code == 2 and len(lines) != 1:
            faults.append(f"{len(lines)} lines")
        if outcome.seconds > SECONDS or outcome.megabytes > MEGABYTES:
            faults.append(f"{outcome.seconds:.1f} s, {outcome.megabytes:.0f} MB")
        kept = {path: digest for path, digest in before.items() if path.split("/")[0] not in own or outcome.code == 2}
        after = tree(self.work)
        if changed := [path for path, digest in kept.items() if after.get(path) != digest]:
            faults.append(f"changed {changed[:3]}")
        if faults:
            line = f"{'; '.join(faults)}: --again {kind!r} {json.dumps(drawn)!r}: {' '.join(words[:3])}: {lines[-1:]}"
            self.failures.append(line)
            print(line[:2000], flush=True)


def round_of(fuzz, kind, number):
    """Some drawings of a kind; the number is their seed."""

    @seed(number)
    @settings(
        max_examples=ROUND, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @given(SETTINGS if kind == "settings" else draws_of(kind))
    def draw(drawn):
        fuzz.case(kind, json.loads(json.dumps(drawn)))

    draw()


def main():
    """Run the command; whether anything failed is its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kinds", nargs="+", default=[*FILES, "settings"])
    parser.add_argument("--again", nargs=2, metavar=("KIND", "JSON"), help="run one drawing again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Commands() as commands:
        good = Path(scratch) / "good"
        good.mkdir()
        made = commands.run(good, "tests.hostile.good:make")
        assert made.code == 0, made.stderr
        fuzz = Fuzz(commands, good, Path(scratch) / "work")
        if arguments.again:
            fuzz.case(arguments.again[0], json.loads(arguments.again[1]))
            return bool(fuzz.failures)
        end, number = time.monotonic() + 60 * arguments.minutes, 0
        while time.monotonic() < end:
            for kind in arguments.kinds:
                if time.monotonic() < end:
                    round_of(fuzz, kind, arguments.seed * 1_000_000 + number)
                    counts = f"{sum(fuzz.cases.values())} cases, {len(fuzz.failures)} failures"
                    print(f"round {number + 1}, {kind}: {counts}", flush=True)
            number += 1
    report = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "cases": dict(fuzz.cases),
        "commands": dict(fuzz.runs),
        "exit_codes": {str(code): count for code, count in sorted(fuzz.codes.items())},
        "failures": fuzz.failures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"fuzz_{arguments.seed}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return bool(fuzz.failures)


if __name__ == "__main__":
    sys.exit(main())
