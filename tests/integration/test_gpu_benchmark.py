"""The benchmark of accelerators, on the CPU: what its parts measure, and that no part stops the rest."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ur4rec.errors import SourceError

MODULES = ("gpu", "gpu_results", "gpu_measures", "gpu_parts", "gpu_torch", "gpu_jax", "gpu_training", "random_data")
LATER = "import sys; sys.path.insert(0, 'benchmarks'); from pathlib import Path; from gpu_results import Record; "
HANGS = LATER + "r = Record(Path({record!r})); r.figure('found before', 3.0, unit='ms'); import time; time.sleep(600)"
RAISES = LATER + "r = Record(Path({record!r})); r.fact('seen', 'before'); raise ValueError('this part is broken')"
SKIPS = "import sys; print('nothing to do here', file=sys.stderr); sys.exit(77)"
WORKS = LATER + "r = Record(Path({record!r})); r.figure('waits', 0.0, bar=0)"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})


@pytest.fixture
def context(benchmark):
    return benchmark.gpu_measures.Context(
        device="cpu", quick=True, seconds=600, data_dir=None, started=time.monotonic()
    )


@pytest.fixture
def read(benchmark, context, tmp_path):
    """What a part records."""

    def run(name):
        path = tmp_path / "record.json"
        benchmark.gpu_parts.PARTS[name](context, benchmark.gpu_results.Record(path))
        return benchmark.gpu_results.read_record(path)

    return run


def run(benchmark, code, tmp_path, seconds=60.0):
    """A part whose process runs some code."""
    command = [sys.executable, "-c", code.format(record=str(tmp_path / "part.json"))]
    return benchmark.gpu.run_part("part", command, seconds, tmp_path, dict(os.environ))


# --- whatever a part does ---------------------------------------------------------------------------------------------


def test_a_part_that_hangs_is_killed_with_what_it_started_and_keeps_what_it_found(benchmark, tmp_path):
    child = tmp_path / "child"
    code = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(child)!r}, 'w').write(str(p.pid)); "
    found = run(benchmark, code + HANGS, tmp_path, seconds=8)
    assert found.status == "killed"
    assert found.message == "killed after 8 s"
    assert 8 <= found.seconds < 300
    assert [(figure.name, figure.value) for figure in found.figures] == [("found before", 3.0)]
    assert not found.holds
    for _ in range(600):  # a signal takes its time to arrive where the machine is busy
        if has_ended(child.read_text()):
            break
        time.sleep(0.1)
    assert has_ended(child.read_text())


def has_ended(pid):
    """Whether a process is gone, or has ended and nobody has asked after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_part_that_raises_is_reported_with_its_traceback(benchmark, tmp_path):
    found = run(benchmark, RAISES, tmp_path)
    assert found.status == "failed"
    assert "Traceback" in found.message
    assert found.message.endswith("ValueError: this part is broken")
    assert found.facts == {"seen": "before"}


def test_a_part_that_dies_without_a_word_is_reported_too(benchmark, tmp_path):
    found = run(benchmark, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", tmp_path)
    assert (found.status, found.message) == ("failed", "ended with -11")


def test_a_part_ends_with_the_program_that_started_it(tmp_path):
    begun = tmp_path / "begun"
    part = f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = "import sys, os; from pathlib import Path; sys.path.insert(0, 'benchmarks'); import gpu; "
    code += "gpu.end_parts_with_this(); "
    code += f"gpu.run_part('part', [sys.executable, '-c', {part!r}], 600, Path({str(tmp_path)!r}), dict(os.environ))"
    program = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    while not (begun.exists() and begun.read_text()):
        assert program.poll() is None
        time.sleep(0.1)
    program.terminate()
    assert program.wait(60) == 1
    assert not Path(f"/proc/{begun.read_text()}").exists()


def test_the_rest_goes_on_and_results_are_written_after_each_part(benchmark, tmp_path, monkeypatch, capsys):
    codes = {"environment": HANGS, "contract-torch": RAISES, "waits-torch": SKIPS, "memory": WORKS}

    def command_of(name, options, seconds, folder):
        written.append([part["status"] for part in read_parts(tmp_path)])
        return [sys.executable, "-c", codes[name].format(record=str(folder / f"{name}.json"))]

    written = []
    monkeypatch.setattr(benchmark.gpu, "command_of", command_of)
    monkeypatch.setitem(benchmark.gpu.LIMITS, "environment", 2.0)
    arguments = ["--device", "cpu", "--quick", "--minutes", "20", "--only", *codes, "--out", str(tmp_path)]
    assert benchmark.gpu.main(arguments) == 1
    assert written == [
        [],
        ["killed", "not run", "not run", "not run"],
        ["killed", "failed", "not run", "not run"],
        ["killed", "failed", "skipped", "not run"],
    ]
    parts = read_parts(tmp_path)
    assert [(part["name"], part["status"]) for part in parts] == [
        ("environment", "killed"),
        ("contract-torch", "failed"),
        ("waits-torch", "skipped"),
        ("memory", "done"),
    ]
    assert parts[3]["figures"][0]["passes"] is True
    text = next(tmp_path.glob("gpu_cpu-quick_*.md")).read_text()
    assert "ValueError: this part is broken" in text
    assert "| waits | 0 |  | ≤ 0 | yes |" in text
    assert "does not hold: environment, contract-torch" in capsys.readouterr().out


def read_parts(folder):
    return [part for file in folder.glob("gpu_*.json") for part in json.loads(file.read_text())["parts"]]


def test_when_the_time_is_over_no_part_is_begun(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.gpu, "command_of", lambda *_: pytest.fail("a part was begun"))
    started = time.monotonic()
    assert benchmark.gpu.main(["--device", "cpu", "--minutes", "0.05", "--out", str(tmp_path)]) == 1
    assert time.monotonic() - started < 10
    assert {part["status"] for part in read_parts(tmp_path)} == {"not run"}
    assert read_parts(tmp_path)[0]["message"] == "no time was left"


def test_limits_add_up_and_every_part_has_one(benchmark):
    limits = benchmark.gpu.limits(10)
    assert sum(limits.values()) + benchmark.gpu.SPARE <= 600
    assert list(limits) == list(benchmark.gpu_parts.PARTS)
    assert benchmark.gpu.limits(5)["quality"] == limits["quality"] / 2


def test_a_part_runs_in_a_process_of_its_own_without_installation(benchmark, tmp_path):
    arguments = ["--device", "cpu", "--quick", "--minutes", "60", "--only", "environment", "waits-jax"]
    assert benchmark.gpu.main([*arguments, "--out", str(tmp_path)]) == 0
    environment, waits = read_parts(tmp_path)
    assert environment["facts"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "cpu" in environment["facts"]["JAX sees"].lower()
    (figure,) = waits["figures"]
    assert figure["name"] == "transfers that nobody asked for, joint_finetune by a rule that switches"
    assert figure["value"] == 0


# --- what parts measure -----------------------------------------------------------------------------------------------

EXPECTED = {
    "contract-torch": ("arrays of the frozen sasrec", "arrays that offloading changed", "weights of dropped blocks"),
    "waits-torch": ("waits of the host, pretrain_sasrec", "waits of the host, joint_finetune by a rule"),
    "contract-jax": ("arrays of the frozen sasrec", "arrays that offloading changed", "arrays away that are not in"),
    "roofline-torch": ("products of bfloat16", "quick, end_to_end: roofline"),
    "roofline-jax": ("copy, read and written", "quick, pretrain_sasrec: roofline", "quick, pretrain_sasrec, bf16"),
    "bf16": ("torch, quick, end_to_end, bf16: times faster",),
    "memory": ("quick, pretrain_sasrec: peak of a plain loop", "moments of blocks on the device at most, drop"),
    "epochs": ("quick, end_to_end, sampled, 1 reader",),
    "quality": ("test ndcg@10, unseen items", "test hit@10, unseen items"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_part_finds_what_it_should_and_all_holds(read, name):
    found = read(name)
    figures = found["figures"]
    for expected in EXPECTED[name]:
        assert any(figure.name.startswith(expected) for figure in figures), expected
    assert [figure.name for figure in figures if not figure.passes] == []
    assert all(figure.value > 0 for figure in figures if figure.unit in ("ms", "MiB", "%", "TFLOP/s", "GB/s"))
    if name == "quality":
        curve = found["facts"]["validation"]
        assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
        assert max(point["ndcg@10"] for point in curve) > 0


def test_compiling_is_left_out_of_a_look(read, benchmark):
    with pytest.raises(benchmark.gpu_results.Skipped, match="takes a minute"):
        read("compile")


def test_without_its_data_quality_says_where_to_put_them(benchmark, context, tmp_path, monkeypatch):
    def load(*_, **__):
        raise SourceError("nowhere")

    monkeypatch.setattr(benchmark.gpu_training, "load_dataset", load)
    real = benchmark.gpu_measures.Context(**{**vars(context), "quick": False})
    with pytest.raises(benchmark.gpu_results.Skipped, match="--data-dir"):
        benchmark.gpu_training.quality(real, benchmark.gpu_results.Record(tmp_path / "record.json"))


@pytest.mark.parametrize("part", ["contract-torch", "contract-jax"])
def test_a_frozen_module_that_moves_does_not_hold(read, benchmark, monkeypatch, part):
    counter = iter(range(1000))
    module = benchmark.gpu_torch if part == "contract-torch" else benchmark.gpu_jax
    monkeypatch.setattr(module, "module_bits", lambda trainer, name: [b"same", str(next(counter)).encode()])
    monkeypatch.setattr(module, "blocks", lambda context, record: None)
    figures = [figure for figure in read(part)["figures"] if figure.name.startswith("arrays of the frozen")]
    assert figures
    assert {(figure.value, figure.passes) for figure in figures} == {(1.0, False)}


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 1], lambda x: x.nonzero()])
def test_what_would_wait_for_an_accelerator_is_found(benchmark, context, wait):
    assert "would make the host wait" in benchmark.gpu_torch.first_wait(context, lambda: wait(torch.arange(4)))
    assert benchmark.gpu_torch.first_wait(context, lambda: torch.arange(4) + 1) == ""


def test_an_accelerators_debug_mode_is_set_and_reset(benchmark, context, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    real = benchmark.gpu_measures.Context(**{**vars(context), "device": "cuda"})

    def step():
        raise RuntimeError("called a synchronizing CUDA operation\nmore")

    assert benchmark.gpu_torch.first_wait(real, step, warm_up=0) == "called a synchronizing CUDA operation"
    assert modes == ["error", "default"]

    def fail():
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):  # which is no wait
        benchmark.gpu_torch.first_wait(real, fail, warm_up=0)


def test_offloading_that_does_not_bring_states_back_is_found(benchmark, context, tmp_path, monkeypatch):
    module = benchmark.gpu_torch
    monkeypatch.setattr(module.HostBesideItself, "send", lambda host, tensor, device: torch.zeros_like(tensor))
    path = tmp_path / "record.json"
    module.blocks(context, benchmark.gpu_results.Record(path))
    figures = {figure.name: figure for figure in benchmark.gpu_results.read_record(path)["figures"]}
    assert not figures["arrays that offloading changed in 13 steps"].passes
