"""Six students in every scheme: accuracy, size, latency on each CPU runtime. Prints tables of docs/quantization.md.

    python -m benchmarks.quantization --data-root DIR --out FOLDER [--students lenet5,ds_cnn,...] [--set KEY=VALUE]

AV-MNIST students that look or listen, and one that reads CrisisMMD's tweets; all are distilled by ``kd`` from a larger
teacher. Each student is a run of its own in ``FOLDER/NAME``, with its report; a run that was interrupted goes on. All
builds of a student are measured in turns, in one go, on the whole test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.datasets.builder import find_data_root
from mst_edge.cli.console import ConsoleWatcher
from mst_edge.pipeline import RunOptions, run_recipe
from mst_edge.recipe import Recipe, find_recipe, load_recipe
from mst_edge.run_folder import open_run

SCHEMES = "[fp16, int8-dynamic, int8-static, int8-nncf, int8-mixed, int8-qad, int8-weights, int4-weights]"
_COMMON = (f"quantize.schemes={SCHEMES}", "quantize.mixed={trials: 30, minutes: 3}", "quantize.qat={epochs: 4}")
_AVMNIST = (
    "dataset.options.pairs=10000",
    "modalities={}",
    "distill={method: kd, compare: [], epochs: {collaborate: 4, distill: 6}}",
    "teachers={multimodal: {network: fusion}}",
)
# They learn slowly, and from the teacher that the first student was taught by.
_LISTENS = (
    *_AVMNIST,
    "distill.epochs={collaborate: 8, distill: 16}",
    "distill.optimizer={name: adam, lr: 0.003}",
    "teachers.multimodal.weights={out}/lenet5/distill/teachers/multimodal.safetensors",
)
_TWEETS = ("distill.compare=[]", "student.network=text_transformer")


@dataclass(frozen=True)
class Contender:
    """A student: a shipped recipe and what differs from it."""

    title: str
    recipe: str
    settings: tuple[str, ...] = field(default=())


STUDENTS: Mapping[str, Contender] = {
    "lenet5": Contender("LeNet-5, AV-MNIST image", "avmnist_image", _AVMNIST),
    "ds_cnn": Contender("DS-CNN, AV-MNIST audio", "avmnist", (*_LISTENS, "student={modality: audio, network: ds_cnn}")),
    "mobilenet_v3_small": Contender(
        "MobileNetV3-small, AV-MNIST audio",
        "avmnist",
        (*_LISTENS, "student={modality: audio, network: mobilenet_v3_small}"),
    ),
    "resnet18": Contender(
        "ResNet-18, AV-MNIST image",
        "avmnist_image",
        (*_AVMNIST, "student={modality: image, network: resnet18}", "distill.precision=bf16"),
    ),
    "vit": Contender("small ViT, AV-MNIST audio", "avmnist", (*_LISTENS, "student={modality: audio, network: vit}")),
    "text_transformer": Contender("tiny transformer, CrisisMMD text", "crisismmd_text", _TWEETS),
}


def main(arguments: list[str] | None = None) -> None:
    """Trains, quantizes, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="keeps the runs; one that ended is not repeated")
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every recipe")
    said = parser.parse_args(arguments)
    summary = []
    for name in said.students.split(","):
        contender = STUDENTS[name]
        settings = [setting.replace("{out}", str(said.out.resolve())) for setting in contender.settings]
        recipe = load_recipe(find_recipe(contender.recipe), [*settings, *_COMMON, *said.set])
        result = run(recipe, said.data_root, said.out / name)
        print("\n".join(table(contender.title, result)), end="\n\n", flush=True)
        summary.append(chosen_row(contender.title, result))
    print("\n".join([*_SUMMARY_HEAD, *summary]))


def run(recipe: Recipe, data_root: Path | None, folder: Path) -> dict[str, Any]:
    """The result of a run in ``folder``, continued where it stopped."""
    with ConsoleWatcher(None) as watcher:
        store = open_run(folder, recipe, resume=(folder / "recipe.yaml").is_file())
        return run_recipe(recipe, store, RunOptions(find_data_root(data_root), "cpu"), watcher)


def table(title: str, result: Mapping[str, Any]) -> Iterator[str]:
    """A row per build: what it is right in, how large and how fast it is."""
    target = result["targets"][0]
    label = target["scoring"]["label"]
    yield f"**{title}**: {label} {target['fp32_accuracy']:.2%} in torch; {target['gate']} with `{target['chosen']}`"
    yield ""
    yield f"| build | {label} | drop, points (95 % interval) | MB | p50 ms | p90 ms | p50 over the fastest fp32 |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    base = min(_p50(row) for row in target["builds"] if row["precision"] == "fp32")
    for row in target["builds"]:
        name = f"**`{row['id']}`**" if row["id"] == target["chosen"] else f"`{row['id']}`"
        latency = row["measurement"]["latency"]
        yield (
            f"| {name} | {row['accuracy']['value']:.2%} | {_interval(row['accuracy']['drop'])} "
            f"| {row['measurement']['size_bytes'] / 1e6:.2f} | {latency['p50_ms']:.3f} | {latency['p90_ms']:.3f} "
            f"| {_p50(row) / base:.2f} |"
        )
    for entry in [*result["skipped_schemes"], *target["skipped"]]:
        yield f"| `{entry['id']}` | not made: {entry['reason']} | | | | | |"


_SUMMARY_HEAD = (
    "| student | chosen build | of fp32 accuracy | speed over the fastest fp32 | best int8-qad, of fp32 accuracy |",
    "|---|---|---:|---:|---:|",
)


def chosen_row(title: str, result: Mapping[str, Any]) -> str:
    """What the chosen build, and the best one of quantization-aware distillation, keep of the fp32 student's metric."""
    target = result["targets"][0]
    rows = {row["id"]: row for row in target["builds"]}
    chosen = rows[target["chosen"]]
    taught = [row["accuracy"]["value"] for row in rows.values() if row["variant"] == "int8-qad"]
    base = min(_p50(row) for row in rows.values() if row["precision"] == "fp32")
    held, recovered = (
        f"{max(values) / target['fp32_accuracy']:.2%}" if values else "-"
        for values in ([chosen["accuracy"]["value"]], taught)
    )
    return f"| {title} | `{chosen['id']}` | {held} | {base / _p50(chosen):.2f} | {recovered} |"


def _p50(row: Mapping[str, Any]) -> float:
    value: float = row["measurement"]["latency"]["p50_ms"]
    return value


def _interval(drop: Mapping[str, float]) -> str:
    return f"{100 * drop['estimate']:+.2f} ({100 * drop['low']:+.2f} {100 * drop['high']:+.2f})"


if __name__ == "__main__":
    main()
