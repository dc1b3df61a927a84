"""What does inference mode do to the frozen player of a GAN with BatchNorm, and is batch mode the loop by hand?

`python benchmarks/frozen_modes.py [--num-steps 1000] [--seeds 3]` trains examples/recipes/dcgan three times per seed:
by hand, with frozen_mode="batch" and with "inference". A row has the Fréchet distance of generated to real digits
(generator normalising by the batch / by its running statistics), whether the weights are those by hand to the bit, and
the mean probability of being real that the discriminator gives to generated digits, by the batch / by its statistics.
"""

import argparse
import runpy
from pathlib import Path
from typing import Any

import torch
from torch import nn

RECIPE = Path(__file__).parents[1] / "examples" / "recipes" / "dcgan"
MODES = {"by hand": None, "`batch`": "batch", "`inference`": "inference"}


def run(num_steps: int, seed: int) -> list[dict[str, Any]]:
    """A row per mode."""
    by_hand, ours = (runpy.run_path(str(RECIPE / f"{name}.py")) for name in ("before", "after"))
    rows = []
    reference = by_hand["train"](num_steps, seed)
    for name, mode in MODES.items():
        trained = reference if mode is None else ours["train"](num_steps, seed, mode)
        equal = all(
            torch.equal(one, two)
            for key, module in reference.items()
            for one, two in zip(module.parameters(), trained[key].parameters(), strict=True)
        )
        generator = trained["generator"]
        running = by_hand["frechet_distance"](generator.eval())
        batch = by_hand["frechet_distance"](generator.train())  # last: it moves the statistics
        rows.append({"mode": name, "batch": batch, "running": running, "equal": equal, "rates": rate(trained, seed)})
    return rows


@torch.no_grad()
def rate(trained: dict[str, nn.Module], seed: int) -> tuple[float, float]:
    """The mean probability given to generated digits, by the batch's and by running statistics."""
    torch.manual_seed(seed)
    noise = torch.randn(64, trained["generator"][0].in_channels, 1, 1)  # type: ignore[index]
    fake = trained["generator"].train()(noise)
    discriminator = trained["discriminator"]
    by_running = discriminator.eval()(fake).sigmoid().mean().item()
    return discriminator.train()(fake).sigmoid().mean().item(), by_running


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed | frozen players | Fréchet distance, by batch / running | weights by hand | D of fakes, likewise |")
    print("|---|---|---|---|---|")
    for seed in range(options.seeds):
        for row in run(options.num_steps, seed):
            rates = " / ".join(f"{value:.4f}" for value in row["rates"])
            distances = f"{row['batch']:.2f} / {row['running']:.2f}"
            print(f"| {seed} | {row['mode']} | {distances} | {'=' if row['equal'] else '≠'} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
