"""Does MST-Distill beat the lone student? Trains a recipe's methods on several seeds and prints mean and spread.

Each seed is a new split of the data and a new initialisation; within a seed all methods share both, and
all students get the same number of epochs. Every seed runs as ``mst-edge distill`` in a process of its
own, and continues where an earlier call stopped.

    python benchmarks/distill_seeds.py av_digits --set dataset.options.pairs=6000
    python benchmarks/distill_seeds.py avmnist --data-root DATA
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

METRIC = "accuracy"


def main() -> None:
    """Trains every seed, prints the table and writes it as JSON beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="av_digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/distill_seeds"))
    said = parser.parse_args()
    results = [train(said, seed) for seed in said.seeds]
    table = summarise(results)
    print_table(said.recipe, said.seeds, table)
    path = said.out / f"{Path(said.recipe).stem}.json"
    record = {"recipe": said.recipe, "overrides": said.overrides, "seeds": said.seeds, "methods": table}
    path.write_text(json.dumps(record | {"provenance": results[0]["provenance"]}, indent=2) + "\n")
    print(f"written to {path}")


def train(said: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The result of one seed's run.

    Raises:
        SystemExit: the run failed; its own message is on stderr.
    """
    command = [sys.executable, "-m", "mst_edge", "distill", said.recipe, "--json", "--resume"]
    command += ["--out", str(said.out / f"{Path(said.recipe).stem}-{seed}")]
    for override in [*said.overrides, f"seed={seed}", f"dataset.split.seed={seed}"]:
        command += ["--set", override]
    if said.data_root:
        command += ["--data-root", said.data_root]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per model: test accuracy of every seed, mean, standard deviation, and the gain over the lone student."""
    by_seed = [{row["method"]: row for row in result["distill"]["models"]} for result in results]
    table = []
    for method in by_seed[0]:
        values = [models[method]["test"][METRIC] for models in by_seed]
        gains = [models[method]["test"][METRIC] - models["lone"]["test"][METRIC] for models in by_seed]
        table.append(
            {
                "method": method,
                "accuracy": values,
                "mean": statistics.mean(values),
                "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "gain_over_lone": gains,
                "mean_gain": statistics.mean(gains),
            }
        )
    return table


def print_table(recipe: str, seeds: list[int], table: list[dict[str, Any]]) -> None:
    """Accuracies in percent, gains in points."""
    print(f"{recipe}: test accuracy in %, one column per seed")
    print(f"{'':>10}" + "".join(f"{seed:>8}" for seed in seeds) + f"{'mean':>8}{'std':>7}   gain over lone (points)")
    for row in table:
        cells = "".join(f"{100 * value:8.2f}" for value in row["accuracy"])
        gains = " ".join(f"{100 * gain:+.2f}" for gain in row["gain_over_lone"])
        spread = f"{100 * row['mean']:8.2f}{100 * row['std']:7.2f}"
        print(f"{row['method']:>10}{cells}{spread}   {100 * row['mean_gain']:+.2f} ({gains})")


if __name__ == "__main__":
    main()
