"""What a model's processor does to pictures and sounds, as constants that bring features here to the same numbers.

Features are standardised by the training split. Both are affine, so what a model was trained on is one product and
one sum away, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.frontends import ImageScale, RawWave, Standardiser
from distill.huggingface.source import PREFIX, Source, source_of
from distill.shapes import NumberShape
from mst_edge.core.errors import UserError

_FILE, _JOINT = "preprocessor_config.json", "processor_config.json"
_ROUNDING = 1e-5
LEAST_VARIANCE = 1e-7  # of a waveform in [-1, 1]; the library's
_BYTE = 255.0
# Steps of the library's processors that are done here, or that data and devices do in their own way.
_STEPS = (
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "do_flip_channel_order",
    "do_pad",
    "do_reduce_labels",
    "do_sample_frames",
)


def picture_input(source: Source, shape: tuple[int, ...]) -> dict[str, Any]:
    """How a ``PictureReader`` brings features ``(channels, ..., height, width)`` to the processor's numbers.

    Returns:
        ``scale`` and ``shift`` per channel (empty: none), and whether channels are ``reversed`` after it.

    Raises:
        UserError: no processor, one that does more than is done here, or pictures of another size than it makes.
        ValueError: nobody said how the features were standardised.
    """
    said = _processor(source, ("image_processor", "video_processor"))
    known = _known(shape)
    strange = sorted(step for step, on in said.items() if step.startswith("do_") and on and step not in _STEPS)
    if strange or said.get("rescale_offset"):
        raise _unfit(source, f"has the step {(strange or ['rescale_offset'])[0]}, which is not done here")
    _require_size(source, said, shape[-2:])
    factor = float(said.get("rescale_factor", 1 / _BYTE)) if said.get("do_rescale", True) else 1.0
    on = said.get("do_normalize", "image_mean" in said)
    mean = _per_channel(said["image_mean"] if on else 0.0, shape[0])
    std = _per_channel(said["image_std"] if on else 1.0, shape[0])
    # A recorded number up to ``full`` stands for a byte up to 255.
    wanted = [factor * _BYTE / known.full / deviation for deviation in std]
    scale = [to / done for to, done in zip(wanted, known.scale, strict=True)]
    shift = [
        -middle / deviation - moved * by
        for middle, deviation, moved, by in zip(mean, std, known.shift, scale, strict=True)
    ]
    return {**_affine(scale, shift), "reversed": bool(said.get("do_flip_channel_order"))}


def wave_input(source: Source, shape: tuple[int, ...]) -> dict[str, Any]:
    """How a ``WaveReader`` brings features ``(1, samples)`` to the processor's numbers.

    Returns:
        ``scale`` and ``shift`` (empty: none), and whether ``each`` wave is brought to mean 0 and deviation 1, with
        ``epsilon`` added to its variance.

    Raises:
        UserError: no processor, or sounds at another rate than it takes.
        ValueError: nobody said how the features were standardised, or at which rate they were recorded.
    """
    said = _processor(source, ("feature_extractor",))
    known = _known(shape)
    if "sampling_rate" not in said:
        raise _unfit(source, "names no sampling_rate")
    if known.rate_hz != said["sampling_rate"]:
        rate = "an unknown rate" if known.rate_hz is None else f"{known.rate_hz} Hz"
        raise UserError(
            f"sounds at {rate}, but {source.name} was trained at {said['sampling_rate']} Hz",
            fix=f"prepare the sounds at {said['sampling_rate']} Hz, or set processor: none",
        )
    ((scale,), (shift,)) = known.scale, known.shift
    if said.get("do_normalize", True):
        return {"scale": [], "shift": [], "each": True, "epsilon": LEAST_VARIANCE * scale**2}
    return {**_affine([1 / scale], [-shift / scale]), "each": False, "epsilon": 0.0}


def own_constants(
    frontend: Standardiser, network: str, options: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    """``scale`` and ``shift`` of a front end that gives the numbers of a network's own processor; None where the
    network has none, does not start from own weights, or reads neither pictures nor waveforms.

    Channels keep their order, and a waveform its loudness: those the network's reader changes.

    Args:
        network, options: as a recipe names them.
        where: the recipe's key of the network.

    Raises:
        UserError: as for ``picture_input`` and ``wave_input``.
    """
    own = all(options.get(key, "own") == "own" for key in ("weights", "processor")) and "config" not in options
    if not (own and network.startswith(PREFIX) and isinstance(frontend, ImageScale | RawWave)):
        return None
    channels = frontend.feature_shape[0]
    nothing = {"scale": [1.0] * channels, "shift": [0.0] * channels}
    source, shape = source_of(network, where), frontend.shape_under(**nothing)
    try:
        said = (wave_input if isinstance(frontend, RawWave) else picture_input)(source, shape)
    except UserError as error:
        raise UserError(error.problem, where=where, fix=error.fix) from error
    return {name: said[name] or values for name, values in nothing.items()}


def _affine(scale: Sequence[float], shift: Sequence[float]) -> dict[str, list[float]]:
    """Empty lists where nothing changes beyond the rounding of float32: two scalings in a row OpenVINO makes one,
    which is no longer marked to stay in f32."""
    changes = any(abs(by - 1) > _ROUNDING for by in scale) or any(abs(by) > _ROUNDING for by in shift)
    return {"scale": list(scale), "shift": list(shift)} if changes else {"scale": [], "shift": []}


def _processor(source: Source, parts: Sequence[str]) -> Mapping[str, Any]:
    said = source.json(_FILE)
    if said is not None:
        return said
    joint = source.json(_JOINT) or {}
    found = next((joint[part] for part in parts if isinstance(joint.get(part), dict)), None)
    if found is None:
        raise _unfit(source, "is missing", fix="write it with save_pretrained")
    return dict(found)


def _known(shape: tuple[int, ...]) -> NumberShape:
    if not isinstance(shape, NumberShape):
        raise ValueError("nobody said how its features were standardised")
    if len(shape.scale) != shape[0]:
        raise ValueError("a processor's numbers are those of pictures and waveforms; with processor: none it may do")
    return shape


def _per_channel(said: Any, channels: int) -> list[float]:
    values = [float(value) for value in (said if isinstance(said, list) else [said] * channels)]
    if len(values) != channels:
        raise ValueError(f"its processor normalises {len(values)} channels, not {channels}")
    return values


def _require_size(source: Source, said: Mapping[str, Any], sides: Sequence[int]) -> None:
    """Refuses pictures of another size than the processor makes. Who makes them is the data, and the device."""
    if said.get("do_center_crop"):
        made = said.get("crop_size")
    elif said.get("do_resize", True):
        made = said.get("size")
    else:
        return
    made = {"height": made, "width": made} if isinstance(made, int) else made or {}
    height, width = sides
    if "height" in made and "width" in made:
        fits, size = (made["height"], made["width"]) == (height, width), f"{made['height']} x {made['width']}"
    elif "shortest_edge" in made:
        fits, size = made["shortest_edge"] == min(sides), f"{made['shortest_edge']} along the shorter side"
    else:
        return
    if not fits:
        raise UserError(
            f"pictures of {height} x {width}, but {source.name} was trained on {size}",
            fix="prepare the pictures in that size, or set processor: none",
        )


def _unfit(source: Source, why: str, fix: str = "") -> UserError:
    also = "set processor: none, and the model reads features as they are standardised here"
    return UserError(f"the processor of {source.name} ({_FILE}) {why}", fix=f"{fix}, or {also}" if fix else also)
