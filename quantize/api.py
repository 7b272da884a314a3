"""Any model: an ``nn.Module`` or an ONNX file, with samples, to fp32 and quantized variants.

from quantize.api import export_module, prepare_model, make_variants

export_module(network, example, "net.onnx", dynamic_axes={1: "time"})
material = prepare_model("net.onnx", "out", calibration="samples").material()
made, skipped = make_variants(material, ["int8-static", "fp16"], "out/variants")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path
from mst_edge.core.rows import npy_rows
from mst_edge.core.scoring import Predictions, collect, scoring_of
from quantize.calibration import FOLDER, Calibration, save_calibration
from quantize.foreign import ForeignModel, Shapes, read_model
from quantize.ranges import CalibratorChoice
from quantize.samples import Samples, meaning, random_samples, read_samples, split_samples
from quantize.schemes.base import SCHEMES, Material, UnfitError
from quantize.variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quantize.mixed import Search

VARIANTS, EVALUATION = "variants", "evaluation"
# By default: the schemes of a recipe.
SCHEMES_BY_DEFAULT = ("int8-static", "int8-nncf")
_AT_ONCE = 64


@dataclass(frozen=True)
class PreparedModel:
    """A model of unknown origin, ready to be quantized and judged.

    Attributes:
        source: its fp32 variant.
        inputs: file of the samples that judge, ``(samples, *input)``; none of them calibrates.
        reference: what the model as it was given says of them, on ONNX Runtime.
        truth: ``(samples, ...)`` their targets; None where there are no labels.
        said: where the samples come from and how they were parted, for the record.
    """

    source: Variant
    calibration: Calibration
    inputs: Path
    reference: Predictions
    truth: NDArray[Any] | None
    said: dict[str, Any]

    def material(self, calibrator: CalibratorChoice = "auto", exclude: Sequence[str] = ()) -> Material:
        """What schemes work from."""
        return Material(self.source, self.calibration, calibrator, tuple(exclude))


def prepare_model(
    file: str | Path,
    folder: str | Path,
    *,
    calibration: str | Path | None = None,
    shapes: Shapes = MappingProxyType({}),
    allow_random: bool = False,
    seed: int = 0,
) -> PreparedModel:
    """Checks an ONNX file and its samples; writes ``folder/variants/fp32``, the calibration samples beside it, and
    what judges to ``folder/evaluation``.

    Args:
        calibration: folder of samples, see ``quantize.samples.read_samples``.
        shapes: input name to shape with the batch, for axes that the graph leaves free.
        allow_random: without a folder, take random samples; everything made of them is marked ``real: false``.

    Raises:
        UserError: whatever is wrong with model or samples, before anything is written.
    """
    model, place = read_model(Path(file), shapes), Path(folder)
    model.require_float()
    samples = _samples(model, calibration, seed, allow_random=allow_random)
    model = model.settled(samples.first(1))
    output, truth = meaning(samples, model.output_shape, model.file)
    calibrating, judging = split_samples(samples.count, truth, seed)
    few = calibrating[: min(8, len(calibrating))]
    if output.task == "regression":
        known = list(_answers(model, samples, calibrating)) if truth is None else [truth.values[calibrating]]
        output = replace(output, scale=_deviations(np.concatenate(known), output.names, samples.where))
    reference = collect(_answers(model, samples, judging), scoring_of(output))
    source = model.save(place / VARIANTS / "fp32", output, samples.read(few))
    kept = save_calibration(
        place / VARIANTS / FOLDER,
        len(calibrating),
        lambda portion: samples.read(calibrating[portion]),
        real=samples.real,
        target=None if truth is None else np.asarray(truth.values[calibrating]),
        about={"numbers": calibrating.tolist()},
    )
    targets = None if truth is None else np.asarray(truth.values[judging])
    _save_evaluation(place / EVALUATION, samples, judging, targets)
    said = {
        "file": model.file.name,
        "notes": list(model.notes),
        "samples": str(samples.where),
        "real": samples.real,
        "calibrating": len(calibrating),
        "judging": len(judging),
        "rule": f"half of the samples calibrate, 256 at most, drawn with seed {seed}; all others judge",
    }
    return PreparedModel(source, kept, place / EVALUATION / "inputs.npy", reference, targets, said)


def make_variants(
    material: Material,
    schemes: Iterable[str],
    folder: str | Path,
    searches: Mapping[str, Callable[[str], Search]] = MappingProxyType({}),
) -> tuple[list[Variant], list[dict[str, str]]]:
    """A variant per scheme in ``folder``, and per target where a scheme measures; schemes that do nothing for this
    model are skipped, with the reason.

    Args:
        searches: by target, what a search on it needs.

    Raises:
        UserError: an unknown scheme or layer, or a library that is missing.
    """
    made, skipped = [], []
    for name in schemes:
        scheme = SCHEMES.get(name, where="quantize.schemes")()
        if scheme.per_target and not searches:
            raise UserError(f"{name} measures on a target, which takes a run with its data", where="quantize.schemes")
        try:
            if scheme.per_target:
                made += [
                    scheme.make(replace(material, search=search(target)), Path(folder) / f"{scheme.folder}-{target}")
                    for target, search in searches.items()
                ]
            else:
                made.append(scheme.make(material, Path(folder) / scheme.folder))
        except UnfitError as error:
            skipped.append({"id": name, "reason": error.problem})
    return made, skipped


def export_module(
    module: nn.Module,
    example: torch.Tensor,
    file: str | Path,
    *,
    dynamic_axes: Mapping[int, str] = MappingProxyType({}),
    input_name: str = "input",
) -> Path:
    """Writes ``module``, in eval mode, as an ONNX file that ``prepare_model`` takes; its batch is free.

    Args:
        example: ``(batch, ...)`` an input.
        dynamic_axes: further axes of free size, by number (1 is the first after the batch) to name.

    Raises:
        UserError: an axis that the example does not have, or a module that torch cannot export.
    """
    import torch

    from quantize.export import OPSET
    from quantize.program import quiet

    for axis in dynamic_axes:
        if not 1 <= axis < example.ndim:
            raise UserError(f"the example {tuple(example.shape)} has no axis {axis}", where="dynamic_axes")
    axes = {0: "batch", **dynamic_axes}
    # torch.export takes an axis of one for a constant.
    example = torch.cat([example] * 2) if len(example) == 1 else example
    training = module.training
    try:
        with quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=["output"],
                dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        said = str(error.__cause__ or error).strip().splitlines()
        raise UserError(f"torch cannot export {type(module).__name__} ({said[0] if said else error!r})") from error
    finally:
        module.train(training)
    assert program is not None
    with atomic_path(Path(file)) as temporary:
        temporary.write_bytes(program.model_proto.SerializeToString())
    return Path(file)


def _samples(model: ForeignModel, folder: str | Path | None, seed: int, *, allow_random: bool) -> Samples:
    if folder is not None:
        return read_samples(Path(folder), model.input)
    if not allow_random:
        raise UserError(
            "needs samples to calibrate and judge with",
            where=model.file,
            fix="give a folder of them as --calibration, or --allow-random for a result that is not for accuracy",
        )
    return random_samples(model.input, seed)


def _deviations(values: NDArray[Any], names: Sequence[str], where: Path) -> tuple[float, ...]:
    """Of each number over the calibration samples: of their targets, without them of the model's answers."""
    scale = np.asarray(values, np.float64).std(axis=0)
    if not (scale > 0).all():
        name = names[int(np.argmin(scale))]
        raise UserError(f"{name} is the same for all calibration samples", where=where, fix="give more of them")
    return tuple(float(value) for value in scale)


def _answers(model: ForeignModel, samples: Samples, ids: NDArray[np.int64]) -> Iterable[NDArray[np.float32]]:
    session = model.session()
    for start in range(0, len(ids), _AT_ONCE):
        yield model.outputs(samples.read(ids[start : start + _AT_ONCE]), session)


def _save_evaluation(folder: Path, samples: Samples, ids: NDArray[np.int64], targets: NDArray[Any] | None) -> None:
    first = samples.read(ids[:1])
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        with npy_rows(temporary / "inputs.npy", (len(ids), *first.shape[1:]), first.dtype) as append:
            for start in range(0, len(ids), _AT_ONCE):
                append(samples.read(ids[start : start + _AT_ONCE]))
        if targets is not None:
            np.save(temporary / "target.npy", targets, allow_pickle=False)
