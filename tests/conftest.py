"""Settings of the whole suite: JAX compiles quickly rather than well, and on the CPU unless told otherwise.

XLA reads its flags when JAX is first used, and ends the process at one that it does not know: so they are set here, and
only for releases that know them. Tests that need the optimising compiler start a process of their own. One piece of
machine code per program: small programs are compiled faster whole than in up to 32 pieces.

No test may depend on how busy the machine is: examples of hypothesis have no deadline, nor has drawing them.

Runs write many small files, and wait until each is on the disk. In memory that takes no time, so tests have their
folders there, if there is room; ``TMPDIR`` names another place.
"""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version

from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def jaxlib_version() -> str:
    try:
        return version("jaxlib")
    except PackageNotFoundError:
        return ""


IN_MEMORY, ROOM = "/dev/shm", 2**32


def has_room(folder: str) -> bool:
    try:
        return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= ROOM
    except OSError:
        return False


if "TMPDIR" not in os.environ and has_room(IN_MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = IN_MEMORY  # of processes that tests start, and of this one
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if jaxlib_version().startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_TO_COMPILE))
