"""``mst-edge init``: looks at a folder of data and writes a working, commented recipe for it."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from distill.datasets.files import FilesOptions, list_files, open_any, settle
from distill.datasets.spec import Dataset, Kind, ModalitySpec
from distill.datasets.target import CLASSIFICATION
from distill.frontends import TokenizerOptions, frontend_options, make_frontend
from distill.mels import LogMelOptions
from distill.networks.auto import auto_dense_network, auto_network
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.files import write_text
from mst_edge.core.scoring import SCORINGS

_GUESSED_RATE_HZ = 16000
_TEXTS_LOOKED_AT = 10_000


def write_recipe(data: Path, student: str | None, out: Path, *, force: bool, say: Callable[[str], None]) -> None:
    """Writes a recipe for ``data`` to ``out``.

    Raises:
        UserError: the data is not readable as a dataset, or the student's modality is not known.
    """
    if out.exists() and not force:
        raise UserError("exists already", where=out, fix="give another --out, or --force")
    options = FilesOptions()
    if not (data / "target.npy").exists():
        options = settle(list_files(data), FilesOptions())
    dataset = open_any(data, options)
    for line in _describe(dataset):
        say(line)
    modality = _student(dataset, student)
    text = _recipe(dataset, data, out, options, modality)
    write_text(out, text)
    say(f"wrote {out}; next: mst-edge run {out} --dry-run")


def _student(dataset: Dataset, said: str | None) -> str:
    names = list(dataset.modalities)
    if said is not None:
        if said not in names:
            raise unknown_name("modality", said, names, where="--student")
        return said
    if len(names) == 1:
        return names[0]
    if not sys.stdin.isatty():
        raise UserError(
            "which modality will the device have?", where="--student", fix=f"give --student, one of: {', '.join(names)}"
        )
    import typer

    answer: str = typer.prompt(f"Which modality will the device have? ({', '.join(names)})")
    return _student(dataset, answer.strip())


def _describe(dataset: Dataset) -> list[str]:
    what = f"{len(dataset.classes)} classes" if dataset.classes else f"{len(dataset.truth.names)} numbers to predict"
    lines = [f"{dataset.root}: {len(dataset)} samples, {what} ({dataset.task})"]
    for spec in dataset.modalities.values():
        lines.append(f"  {spec.name}: {spec.kind.value} {spec.layout}")
    lines += _describe_classes(dataset) if dataset.classes else _describe_numbers(dataset)
    lines += [f"  note: {note}" for note in dataset.notes]
    for name, groups in dataset.groups.items():
        lines.append(f"  grouped by {name}: {len(set(groups.tolist()))} groups, never parted by the split")
    return lines


def _describe_classes(dataset: Dataset) -> list[str]:
    ignored = dataset.truth.ignore_label
    counted = [k for k in range(len(dataset.classes)) if k != ignored]
    counts = dataset.class_counts(slice(None))[counted]
    least, most = (dataset.classes[counted[int(place)]] for place in (counts.argmin(), counts.argmax()))
    of = "samples" if dataset.truth.class_pixels is None else "pixels"
    ratio = counts.max() / max(1, counts.min())
    said = f"  classes: {counts.min()} ({least}) to {counts.max()} ({most}) {of}, ratio {ratio:.1f}"
    return [said, *([] if ignored is None else [f"  label {ignored} counts as none"])]


def _describe_numbers(dataset: Dataset) -> list[str]:
    mean, deviation = dataset.target_statistics(np.arange(len(dataset)))
    rows = zip(dataset.truth.names, dataset.truth.units, mean, deviation, strict=True)
    return [f"  {name}: {centre:.4g} +- {spread:.4g} {unit}".rstrip() for name, unit, centre, spread in rows]


def _recipe(dataset: Dataset, data: Path, out: Path, options: FilesOptions, student: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", dataset.name).strip("._-") or "my_data"
    scoring = SCORINGS[dataset.task]
    drop = 1.0 if scoring.higher_is_better else 5.0  # of an error, which is small
    path = os.path.relpath(data.resolve(), out.resolve().parent)
    said = {key: value for key, value in asdict(options).items() if value}
    dense = _is_dense(dataset)
    parts = [
        f"# Written by `mst-edge init {data}`. All keys: docs/recipe.md.",
        f"name: {name}",
        "seed: 0                    # initialisation; the split has its own",
        "",
        "dataset:",
        f"  path: {_scalar(path)}",
        *([f"  options: {_flow(said)}   # how files become arrays of one shape"] if said else []),
        *_split_lines(dataset),
        "",
        *_modality_lines(dataset),
        "student:",
        f"  modality: {student}      # the one input that the device has",
        f"  network: {_network(dataset.modalities[student], dense=dense)}      # chosen by the shape of its features",
        "  options: {width: 1.0}    # narrower is faster and smaller",
        "",
        *_teacher_lines(dataset, student),
        *_distill_lines(dataset),
        "quantize:",
        "  schemes: [int8-static, int8-nncf]",
        "  calibration: {samples: 256}   # real training samples",
        "",
        "targets: [cpu]",
        "",
        "goals:",
        f"  accuracy: {{max_relative_drop_percent: {drop}}}   # of {scoring.label}, against the fp32 student",
        "  # latency: {p90_ms: 5.0}                     # set your budget",
        "",
        "measure: {protocol: quick, threads: 1}",
        "",
    ]
    return "\n".join(parts)


def _split_lines(dataset: Dataset) -> list[str]:
    if dataset.explicit_split is not None:
        return ["  # the data comes with its own split"]
    if dataset.groups:
        by = next(iter(dataset.groups))
        return [f"  split: {{seed: 0, fractions: [0.6, 0.2, 0.2], by: {by}}}   # no group in two splits"]
    return ["  split: {seed: 0, fractions: [0.6, 0.2, 0.2]}   # give groups.npy where samples belong together"]


def _modality_lines(dataset: Dataset) -> list[str]:
    lines = []
    for spec in dataset.modalities.values():
        if spec.kind is Kind.AUDIO:
            if spec.sample_rate_hz is None:
                raise UserError(
                    f"{spec.name} looks like sound, but its sample rate is not known",
                    where=dataset.root / "dataset.yaml",
                    fix="write there, with your rate: "
                    f"modalities: {{{spec.name}: {{kind: audio, sample_rate_hz: {_GUESSED_RATE_HZ}}}}} "
                    f"(or kind: vector)",
                )
            lines.append(f"  {spec.name}: {_flow(asdict(log_mel_for(spec)))}   # log-mel, inside the exported graph")
        if spec.kind is Kind.TEXT:
            options = _flow(asdict(tokenizer_for(dataset, spec.name)))
            lines.append(f"  {spec.name}: {options}   # tokenizer, fitted on training texts")
    return ["modalities:", *lines, ""] if lines else []


def log_mel_for(spec: ModalitySpec) -> LogMelOptions:
    """32 ms windows every 16 ms, on the next power of two; 40 bands; fewer samples per hop for short clips."""
    assert spec.sample_rate_hz is not None
    window = 1 << max(4, round(spec.sample_rate_hz * 0.032).bit_length() - 1)
    while window * 4 > spec.shape[0] and window > 16:
        window //= 2
    return LogMelOptions(window=window, hop=window // 2, n_fft=max(window, 256), mels=40 if window >= 256 else 20)


def tokenizer_for(dataset: Dataset, modality: str) -> TokenizerOptions:
    """As many tokens as 95 % of the first texts need, taking three characters for one token; at most 256."""
    lengths = np.char.str_len(dataset.read(modality, slice(_TEXTS_LOOKED_AT)))
    tokens = math.ceil(float(np.percentile(lengths, 95)) / 3)
    return TokenizerOptions(max_tokens=min(256, max(8, math.ceil(tokens / 8) * 8)))


def _network(spec: ModalitySpec, *, dense: bool) -> str:
    options = log_mel_for(spec) if spec.kind is Kind.AUDIO else frontend_options(spec.kind)()
    shapes = {spec.name: make_frontend(spec, options).feature_shape}
    return auto_dense_network(shapes, where=f"modality {spec.name}") if dense else auto_network(shapes)


def _teacher_lines(dataset: Dataset, student: str) -> list[str]:
    if len(dataset.modalities) == 1:
        return []
    others = [name for name in dataset.modalities if name != student]
    networks = {name: _network(dataset.modalities[name], dense=_is_dense(dataset)) for name in others}
    inner = ", ".join(f"{name}: {{network: {network}}}" for name, network in networks.items())
    fusion = "map_fusion" if _is_dense(dataset) else "fusion"
    return [
        "teachers:",
        f"  multimodal: {{network: {fusion}}}   # reads {', '.join(dataset.modalities)}",
        f"  cross_modal: {{{inner}}}",
        "",
    ]


def _distill_lines(dataset: Dataset) -> list[str]:
    # About 60 000 sample visits for the student: enough for small networks, minutes on two cores.
    epochs = min(60, max(12, round(60_000 / max(1, len(dataset)))))
    first = max(1, round(epochs * 0.4))
    if len(dataset.modalities) == 1:
        return [
            "distill:",
            "  method: lone             # one modality; or kd, with a larger network as teachers: {unimodal: ...}",
            "  compare: []",
            f"  epochs: {{collaborate: {first}, distill: {epochs - first}}}   # the student gets their sum",
            "",
        ]
    return [
        "distill:",
        "  method: mst              # MST-Distill",
        "  preset: improved         # or: paper",
        "  compare: [lone, kd]      # trained in the same run, for comparison",
        f"  epochs: {{collaborate: {first}, masks: {max(1, first // 2)}, distill: {epochs - first}}}",
        *(
            ["  class_balance: auto      # weighs classes where the largest is 3 times the smallest"]
            if dataset.task == CLASSIFICATION
            else []
        ),
        *(["  batch_size: 16           # label maps take memory"] if _is_dense(dataset) else []),
        "",
    ]


def _is_dense(dataset: Dataset) -> bool:
    return dataset.truth.class_pixels is not None


def _flow(value: object) -> str:
    return yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _scalar(text: str) -> str:
    return yaml.safe_dump(text, width=10_000).splitlines()[0]
