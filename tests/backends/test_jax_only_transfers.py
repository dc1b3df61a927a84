"""JAX alone: what reaches or leaves the device is sent or fetched on purpose, on every path of training and ranking."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest


def test_all_runs_on_a_second_device_without_a_transfer_that_nobody_asked_for():
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    settings = {"XLA_FLAGS": flags}
    run = subprocess.run(
        [sys.executable, "-m", "tests.backends.jax_guarded_run"],
        env={**os.environ, **settings, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_guard_refuses_what_is_not_sent():
    square = jax.jit(lambda values: values**2)
    square(np.ones(3))
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        square(np.ones(3))
