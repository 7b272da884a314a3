"""int8 by torchao's PT2E in the form that XNNPACK's kernels want: signed activations, weights per channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantize.in_torch import Features, InTorch, exported
from quantize.schemes.base import SCHEMES
from quantize.variant import XNNPACK

if TYPE_CHECKING:
    from torch import nn


@SCHEMES.register("int8-xnnpack")
class Int8Xnnpack(InTorch):
    """Convolutions, linear layers, sums, products and means, as ExecuTorch's quantizer finds them."""

    name = "int8-xnnpack"
    backend = "executorch"
    modules = ("executorch", "torchao")
    program = XNNPACK
    summary = "what XNNPACK has int8 kernels for, signed; ranges by moving averages of extremes. For ExecuTorch"

    def _rounded(
        self, network: nn.Module, features: Features, exclude: Sequence[str]
    ) -> tuple[nn.Module, dict[str, Any]]:
        import torch
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = xnnpack.XNNPACKQuantizer()
        quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
        excluded = [xnnpack.get_module_name_filter(path) for path in exclude]
        quantizer.set_filter_function(lambda node: not any(matches(node) for matches in excluded))
        prepared = prepare_pt2e(exported(network, features.example), quantizer)
        with torch.no_grad():
            for batch in features:
                prepared(batch)
        return convert_pt2e(prepared), {}
