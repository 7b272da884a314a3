"""int8 by Neural Compressor's tuning in torch: several ways to find ranges, judged by the student's own answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantize.in_torch import Features, InTorch, exported, fold_weights
from quantize.qdq import needs_reduced_range
from quantize.schemes.base import SCHEMES, UnfitError
from quantize.variant import X86

if TYPE_CHECKING:
    from torch import nn


_LEAST = 1e-20  # of the signal: noise of the float network against itself


@SCHEMES.register("int8-neural-compressor")
class Int8NeuralCompressor(InTorch):
    """What int8-pt2e quantizes, with the ranges among Neural Compressor's that keep the network's answers best.

    Tried are minmax and histograms, symmetric and not. A trial's score is the signal-to-noise ratio of the network's
    outputs on the calibration samples, so that no labels are needed.
    """

    name = "int8-neural-compressor"
    folder = "int8-nc"  # builds are called after it
    backend = "neural-compressor"
    modules = ("neural_compressor", "torchao")
    program = X86
    summary = "as int8-pt2e, the best of four ways to find ranges by what it does to the student's outputs"

    def _rounded(
        self, network: nn.Module, features: Features, exclude: Sequence[str]
    ) -> tuple[nn.Module, dict[str, Any]]:
        import torch
        from neural_compressor.torch.quantization import StaticQuantConfig, TuningConfig, autotune

        if needs_reduced_range():
            raise UnfitError("this CPU needs 7-bit values, which Neural Compressor does not make")
        network.eval()
        scores: list[float] = []

        def calibrate(model: nn.Module) -> None:
            with torch.no_grad():
                for batch in features:
                    model(batch)

        def score(model: nn.Module) -> float:
            signal = noise = 0.0
            with torch.no_grad():
                for batch in features:
                    wanted = network(batch)
                    signal += wanted.square().sum().item()
                    noise += (model(batch) - wanted).square().sum().item()
            scores.append(10 * math.log10(signal / max(noise, _LEAST * signal)))
            return scores[-1]

        ways = StaticQuantConfig(act_sym=[False, True], act_algo=["kl", "minmax"])
        for path in exclude:
            ways.set_local(path, StaticQuantConfig(w_dtype="fp32", act_dtype="fp32"))
        # No trial reaches the float network: all are made, and the best is made again.
        tuning = TuningConfig(config_set=[ways], tolerable_loss=0.0, max_trials=4)
        graph = exported(network, features.example)
        graph._exported = True  # type: ignore[assignment]  # which its own export() would note
        best = autotune(graph, tuning, score, run_fn=calibrate, example_inputs=(features.example,))
        return fold_weights(best), {"sqnr_db": scores[1:]}
