"""The parts of `gpu.py` by name.

Each imports its framework when it runs, so that one that is broken takes no other along.
"""

import platform
import subprocess
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec

from gpu_measures import Context
from gpu_results import Record

Part = Callable[[Context, Record], None]


def environment(context: Context, record: Record) -> None:
    """What there is: versions, devices, and whether PyTorch and JAX see them."""
    record.fact("python", f"{platform.python_version()} on {platform.platform()}")
    for name in ("torch", "jax", "jaxlib", "flax", "optax", "numpy", "triton"):
        if find_spec(name):
            record.fact(name, metadata.version(name))
    if context.is_accelerator:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
        record.fact("nvidia-smi", subprocess.run(query, capture_output=True, text=True).stdout.strip())
    torch = import_module("torch")
    record.fact("torch sees", f"{torch.cuda.device_count()} CUDA devices, CUDA {torch.version.cuda}")
    record.figure(
        "CUDA devices that PyTorch sees", torch.cuda.device_count(), bar=int(context.is_accelerator), at_least=True
    )
    if context.is_accelerator:
        properties = torch.cuda.get_device_properties(0)
        record.fact(
            "device",
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.major}.{properties.minor}",
        )
        record.fact("TF32", f"products {torch.backends.cuda.matmul.allow_tf32}, {torch.get_float32_matmul_precision()}")
    jax = import_module("jax")
    record.fact("JAX sees", ", ".join(map(str, jax.devices())))


def _part(module: str, function: str) -> Part:
    return lambda context, record: getattr(import_module(module), function)(context, record)


PARTS: dict[str, Part] = {
    "environment": environment,
    "contract-torch": _part("gpu_torch", "contract"),
    "waits-torch": _part("gpu_torch", "waits"),
    "contract-jax": _part("gpu_jax", "contract"),
    "waits-jax": _part("gpu_jax", "waits"),
    "roofline-torch": _part("gpu_torch", "roofline"),
    "roofline-jax": _part("gpu_jax", "roofline"),
    "bf16": _part("gpu_torch", "bf16"),
    "memory": _part("gpu_torch", "memory"),
    "epochs": _part("gpu_training", "epochs"),
    "compile": _part("gpu_torch", "compile_modules"),
    "quality": _part("gpu_training", "quality"),
}
"""In the order of `gpu.LIMITS`."""
