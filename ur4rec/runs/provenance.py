"""What a reader needs to run something again: data, split, versions, machine, source."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ur4rec.runs.prepared import PreparedData
from ur4rec.training.backend import BACKENDS


def run_facts(prepared: PreparedData, backend: str) -> dict[str, Any]:
    """Data, split and versions of a run."""
    interactions, split = prepared.interactions, prepared.split
    users_UT = prepared.user_text_vectors_UT
    leakage = {test.targets: {**test._asdict(), "leaks": test.leaks} for test in prepared.leakage}
    texts = {} if users_UT is None else {"user_texts": {"num_users": int(users_UT.any(1).sum()), "leakage": leakage}}
    return {
        "dataset": interactions.name,
        "source": interactions.source,
        "interactions_hash": interactions.hash,
        "split": split.name,
        "split_hash": split.hash,
        "num_users": interactions.num_users,
        "num_items": interactions.num_items,
        "num_interactions": len(interactions),
        **texts,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {
            package: metadata.version(package) for package in ("adaptive-alternator", "numpy", *BACKENDS[backend][1])
        },
    }


def machine_facts() -> dict[str, Any]:
    """The processor, and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def source_commit() -> str | None:
    """The git commit that this code was checked out at, with ``+`` if files have changed since; None elsewhere."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _processor() -> str:
    """The processor's name as the system has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
