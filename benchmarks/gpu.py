"""Is an accelerator kept busy, and does the freeze contract hold there?  `python benchmarks/gpu.py` takes 10 minutes.

Each part is a process of its own with a time limit: one that hangs is killed, one that raises is reported with its
traceback, and the rest goes on. The limits add up to `--minutes`; what a part leaves over, those after it may use.
Results are written after every part, those of a part after every figure, so that nothing is lost if all of it is ended.
What is cheap and tells most comes first; `--list` says what there is. Nothing needs to be installed but the frameworks:
it runs from a copy of the repository. `--device cpu --quick` runs every part with tiny sizes and no accelerator.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpu_results import PartResult, Record, Skipped, read_record, save  # noqa: E402 (it runs from a copy too)

LIMITS = {
    "environment": 30.0,
    "contract-torch": 45.0,
    "waits-torch": 40.0,
    "contract-jax": 60.0,
    "waits-jax": 45.0,
    "roofline-torch": 45.0,
    "roofline-jax": 60.0,
    "bf16": 45.0,
    "memory": 30.0,
    "epochs": 35.0,
    "compile": 55.0,
    "quality": 105.0,
}
"""Seconds of each part at most in ten minutes, in their order; with other minutes they are longer or shorter alike."""
SPARE = 5.0
"""Seconds before the end in which no part is begun."""
SKIPPED = 77
"""The exit code of a part that has nothing to do."""


def limits(minutes: float) -> dict[str, float]:
    """The limit of each part.

    Example:
        >>> round(sum(limits(10).values())), limits(5)["environment"]
        (595, 15.0)
    """
    return {name: seconds * minutes / 10 for name, seconds in LIMITS.items()}


def run_part(
    name: str, command: Sequence[str], seconds: float, folder: Path, environment: dict[str, str]
) -> PartResult:
    """Run a part's process, and kill it with all that it started when its time is over."""
    record, messages = folder / f"{name}.json", folder / f"{name}.txt"
    record.unlink(missing_ok=True)
    started = time.monotonic()
    with messages.open("w") as errors:
        process = subprocess.Popen(
            command, stderr=errors, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_all(process)
    found = read_record(record)
    tail = "\n".join(messages.read_text(errors="replace").splitlines()[-40:])
    status, message = "done", ""
    if code is None:
        status, message = "killed", f"killed after {seconds:.0f} s"
    elif code == SKIPPED:
        status, message = "skipped", tail
    elif code:
        status, message = "failed", tail or f"ended with {code}"
    return PartResult(
        name=name, status=status, seconds=time.monotonic() - started, limit=seconds, message=message, **found
    )


def end_all(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_parts_with_this() -> None:
    """When this program is asked to end, the part that runs ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))


def command_of(name: str, options: argparse.Namespace, seconds: float, folder: Path) -> list[str]:
    """The command of a part's process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--seconds", f"{seconds:.1f}"]
    command += ["--record", str(folder / f"{name}.json"), "--device", options.device]
    command += ["--quick"] if options.quick else []
    return command + (["--data-dir", str(options.data_dir)] if options.data_dir else [])


def environment_of(device: str) -> dict[str, str]:
    """The environment of the parts: JAX leaves memory to PyTorch, and there is one thread where there is no device."""
    found = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": str(ROOT)}
    if device == "cpu":
        found |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        flags = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
        found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return found


def commit() -> str:
    """The commit that is measured, where it is known: a copy without history has none."""
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def run_all(options: argparse.Namespace, stem: Path, about: dict[str, str]) -> list[PartResult]:
    """Run the parts one after the other until the time is over."""
    end = time.monotonic() + options.minutes * 60 - SPARE
    share = limits(options.minutes)
    results = [PartResult(name=name) for name in options.only or share]
    folder = stem.parent / f"{stem.name}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    spare = 0.0  # what the parts so far have left over
    for place, each in enumerate(results):
        seconds = min(share[each.name] + spare, end - time.monotonic())
        if seconds <= 1:
            each.message = "no time was left"
            continue
        print(f"{each.name}: at most {seconds:.0f} s", flush=True)
        command = command_of(each.name, options, seconds, folder)
        found = results[place] = run_part(each.name, command, seconds, folder, environment_of(options.device))
        print(f"{found.name}: {found.status} after {found.seconds:.0f} s {found.message}".rstrip(), flush=True)
        spare = max(0.0, seconds - found.seconds)
        save(results, stem, about)
    save(results, stem, about)
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), or cpu with --quick for a look")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which all has ended (default: 10)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few steps")
    parser.add_argument("--only", nargs="+", choices=tuple(LIMITS), metavar="PART", help="these parts alone")
    parser.add_argument("--data-dir", type=Path, help="the files of MovieLens-1M, for the part quality")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result files")
    for hidden in ("--part", "--record", "--seconds"):  # of a part's own process
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_here(options: argparse.Namespace) -> int:
    """What a part's own process does."""
    from gpu_measures import Context
    from gpu_parts import PARTS

    context = Context(
        device=options.device,
        quick=options.quick,
        seconds=float(options.seconds),
        data_dir=options.data_dir,
        started=time.monotonic(),
    )
    signal.alarm(int(context.seconds) + 10)  # ends it where the program that should is gone
    try:
        PARTS[options.part](context, Record(Path(options.record)))
    except Skipped as reason:
        print(reason, file=sys.stderr)
        return SKIPPED
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, and fail if one fails or a bar is missed."""
    options = parse(arguments)
    if options.list:
        for name, seconds in limits(options.minutes).items():
            print(f"{name}: at most {seconds:.0f} s, and what those before it leave")
        return 0
    if options.part:
        return run_here(options)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    words = sys.argv[1:] if arguments is None else arguments
    about = {"command": " ".join(["python benchmarks/gpu.py", *words]), "commit": commit(), "date": date}
    stem = options.out.resolve() / f"gpu_{options.device.replace(':', '')}{'-quick' if options.quick else ''}_{date}"
    results = run_all(options, stem, about)
    broken = [part.name for part in results if not part.holds]
    print(json.dumps({part.name: part.status for part in results}))
    print(f"does not hold: {', '.join(broken)}" if broken else "all holds")
    return 1 if broken else 0


if __name__ == "__main__":
    end_parts_with_this()
    sys.exit(main())
