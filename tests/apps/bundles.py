"""Bundles of linear models, packed as a run packs them: one that hears, and one that reads and is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from apps.runtime.tokenizer import Tokenizer
from distill.tokens import learn_merges
from mst_edge.core.scoring import OutputSpec
from quantize.variant import InputSpec
from targets.pack import PackedBuild, pack
from targets.spec import Build


def text_bundle(folder: Path, texts: list[str], classes: list[str], *, vocabulary: int = 400, tokens: int = 24) -> Path:
    """A bundle of ``bayes``, trained on ``texts``."""
    tokenizer = Tokenizer(learn_merges(texts, vocabulary, lower_case=True), tokens, True)
    table, bias, names = bayes(tokenizer, texts, classes)
    nodes = [
        helper.make_node("Gather", ["table", "text"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["sums"], keepdims=0),
        helper.make_node("Add", ["sums", "bias"], ["logits"]),
    ]
    model = model_of(
        nodes, ("text", [tokens], TensorProto.INT32), len(names), table=table, bias=bias, axes=np.array([1])
    )
    spec = InputSpec("text", "text", (tokens,), "int32")
    few = tokenizer.encode_all(texts[:8])
    examples = {"one.txt": texts[0].encode()}
    return packed(folder / "cpu", model, spec, few, names, examples=examples, tokenizer=tokenizer)


MOODS = {"awful": -2.5, "poor": -1.0, "nice": 1.0, "great": 2.25}


def mood_bundle(folder: Path, ordinal: tuple[float, ...] = (-3, -2, -1, 0, 1, 2, 3)) -> Path:
    """A bundle of a number in stars: the sum of what words of ``MOODS`` mean; other words, and none, mean 0.5."""
    texts = [" ".join([word] * 9) for word in MOODS]
    tokenizer = Tokenizer(learn_merges(texts, 400, lower_case=True), 12, True)
    table = np.zeros((tokenizer.vocabulary, 1), np.float32)
    for word, value in MOODS.items():
        ids, _ = tokenizer.encode(word)
        assert (ids > 0).sum() == 1, "a token of its own"
        table[ids[0]] = value - 0.5
    nodes = [
        helper.make_node("Gather", ["table", "text"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["sums"], keepdims=0),
        helper.make_node("Add", ["sums", "bias"], ["logits"]),
    ]
    bias = np.full(1, 0.5, np.float32)
    model = model_of(nodes, ("text", [12], TensorProto.INT32), 1, table=table, bias=bias, axes=np.array([1]))
    output = OutputSpec("regression", ("sentiment",), ("stars",), scale=(1.5,), ordinal=ordinal)
    few = tokenizer.encode_all(texts)
    return packed(
        folder / "cpu", model, InputSpec("text", "text", (12,), "int32"), few, (), tokenizer=tokenizer, output=output
    )


def bayes(tokenizer: Tokenizer, texts: list[str], classes: list[str]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Naive Bayes on counts of tokens: ``(vocabulary, classes)`` log likelihoods, ``(classes,)`` log shares, names.

    Padding says nothing.
    """
    names = tuple(sorted(set(classes)))
    counts = np.ones((tokenizer.vocabulary, len(names)))
    for ids, name in zip(tokenizer.encode_all(texts), classes, strict=True):
        np.add.at(counts[:, names.index(name)], ids[ids > 0], 1)
    table = np.log(counts / counts.sum(axis=0))
    table -= table.mean(axis=1, keepdims=True)
    table[0] = 0
    bias = np.log([classes.count(name) / len(classes) for name in names])
    return table.astype(np.float32), bias.astype(np.float32), names


def sound_bundle(folder: Path, names: tuple[str, ...] = tuple("0123456789"), rate_hz: int = 8000) -> Path:
    """A bundle of a linear model of one second of sound: it hears, and is right by chance alone."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (rate_hz, len(names))).astype(np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["sound", "w"], ["logits"])],
        ("sound", [rate_hz], TensorProto.FLOAT),
        len(names),
        w=weights,
    )
    spec = InputSpec("sound", "audio", (rate_hz,), "float32", rate_hz)
    return packed(folder / "cpu", model, spec, rng.normal(0, 0.1, (8, rate_hz)).astype(np.float32), names)


def model_of(
    nodes: list[onnx.NodeProto], given: tuple[str, list[int], int], outputs: int, **tensors: np.ndarray
) -> onnx.ModelProto:
    """A graph of one input, ``given`` as name, shape without the batch, and type; the result is called ``logits``."""
    name, shape, kind = given
    graph = helper.make_graph(
        nodes,
        "on_paper",
        [helper.make_tensor_value_info(name, kind, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(array, key) for key, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def packed(
    bundle: Path,
    model: onnx.ModelProto,
    spec: InputSpec,
    inputs: np.ndarray,
    names: tuple[str, ...],
    *,
    builds: Mapping[str, str] = MappingProxyType({"onnxruntime-fp32": "fp32"}),
    examples: Mapping[str, bytes] = MappingProxyType({}),
    tokenizer: Tokenizer | None = None,
    output: OutputSpec | None = None,
    stream: Path | None = None,
) -> Path:
    """Packs ``model`` as every one of ``builds``, id by precision, and returns the bundle's folder.

    Args:
        output: what it answers with; classes called ``names`` by default.
    """
    made = bundle.with_name(f"{bundle.name}-made")
    made.mkdir(parents=True)
    onnx.save(model, made / "model.onnx")
    (made / "build.json").write_text("{}")
    if tokenizer is not None:
        (made / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {spec.name: inputs})[0]
    size = (made / "model.onnx").stat().st_size
    expected = {"metric": "accuracy", "accuracy": 0.9, "size_bytes": size, "latency": {"p90_ms": 0.1}}
    pack(
        bundle,
        name=f"{spec.kind}_on_paper",
        target="cpu",
        output=output or OutputSpec("classification", names),
        input_spec=spec,
        reference_inputs=inputs,
        fp32_outputs=outputs,
        builds=[
            PackedBuild(
                Build(name, "cpu", "onnxruntime", precision, precision, made, "model.onnx", {"threads": 1}),
                outputs,
                1e-3,
                expected,
            )
            for name, precision in builds.items()
        ],
        gate={"verdict": "passed", "goals": {}, "checks": []},
        provenance={"seed": 0},
        licence="CC0",
        readme="on paper\n",
        examples=examples,
        tokenizer=made / "tokenizer.json" if tokenizer is not None else None,
        stream=stream,
    )
    return bundle
