"""What does the optimizer state of frozen blocks take on the device, and what does a switch cost, kept or not?

`python benchmarks/frozen_state.py [--blocks 10] [--width 1024] [--tenure 8] [--rounds 3]` trains blocks in turns under
AdamW with each `frozen_state`, tenure by tenure side by side in one run, on CUDA if it is there. A row has the bytes of
moments on the device (the most at any end of a step or at the beginning of an update) as part of those that "keep" has,
the time of a step within a tenure, and what the two steps around a switch take longer than such steps. Medians; steps
of "drop" within a tenure include none in which moments are made.

Without CUDA the device is the host's memory, and "offload" copies within it: its switches cost what such copies do.
"""

import argparse
import time
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from adapters.contract import FrozenState
from adapters.torch import AlternatingOptimizer
from adapters.torch.host import Host
from alternator import Alternator, Cycle

CHOICES: tuple[FrozenState, ...] = ("keep", "offload", "drop")


class HostBesideItself(Host):
    """Part of the host's memory that stands for the host, where the rest of it stands for a device."""

    def has(self, tensor: Tensor) -> bool:
        """Whether it has been fetched, or is a count."""
        return tensor.dim() == 0 or hasattr(tensor, "is_on_host")

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy."""
        copied: Any = tensor.clone()
        copied.is_on_host = True
        return copied  # type: ignore[no-any-return]

    def send(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy."""
        return tensor.clone()


class Run:
    """Blocks in a row that train in turns with one choice."""

    def __init__(self, choice: FrozenState, device: torch.device, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.width = device, options.width
        blocks = {f"block{n}": nn.Linear(options.width, options.width, device=device) for n in range(options.blocks)}
        self.model = nn.Sequential(*blocks.values())
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.host = Host() if device.type == "cuda" else HostBesideItself()
        with patch("adapters.torch.parked.Host", lambda: self.host):
            self.alternating = AlternatingOptimizer(
                Alternator(blocks, rule=Cycle(options.tenure)), blocks, self.optimizer, frozen_state=choice
            )
        self.optimizer.register_step_pre_hook(lambda *_: self.note())
        self.most, self.within, self.around = 0, list[float](), list[list[float]]()
        self.x_BD = torch.randn(64, options.width, device=device)

    def tenure(self, num_steps: int) -> None:
        """A tenure, which begins and ends with a switch."""
        times = []
        for _ in range(num_steps):
            self.wait()
            start = time.perf_counter()
            self.alternating.step((self.model(self.x_BD) - 1).square().mean())
            self.wait()
            times.append(1e3 * (time.perf_counter() - start))
            self.note()
        self.within += times[1:-1]
        self.around.append([times[0], times[-1]])

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def note(self) -> None:
        """The bytes of moments that are on the device now."""
        values = [each for state in self.optimizer.state.values() for each in state.values()]
        self.most = max(self.most, sum(each.nbytes for each in values if not self.host.has(each)))

    def row(self, whole: int, choice: str) -> str:
        """What has been measured, the first tenure of each block aside: there moments are made."""
        step = median(self.within)
        switch = median(first for first, _ in self.around) + median(last for _, last in self.around) - 2 * step
        return f"| `{choice}` | {self.most / 2**20:.1f} MiB, {self.most / whole:.0%} | {step:.2f} | {switch:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tenure", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = {choice: Run(choice, device, options) for choice in CHOICES}
    for number in range(options.blocks * options.rounds):
        if number == options.blocks:
            for run in runs.values():
                run.within, run.around = [], []
        for run in runs.values():
            run.tenure(options.tenure)
    print(f"{options.blocks} blocks of width {options.width}, {device.type}, torch {torch.__version__}\n")
    print("| `frozen_state` | moments on the device at most | ms per step | ms per switch |\n|---|---|---|---|")
    for choice, run in runs.items():
        print(run.row(runs["keep"].most, choice))


if __name__ == "__main__":
    main()
