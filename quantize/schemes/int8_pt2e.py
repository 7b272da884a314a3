"""int8 by torchao's PT2E: ranges from histograms, batch norms folded, in the form that x86 kernels want."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantize.in_torch import Features, InTorch, exported
from quantize.qdq import needs_reduced_range
from quantize.schemes.base import SCHEMES
from quantize.variant import X86

if TYPE_CHECKING:
    from torch import nn


@SCHEMES.register("int8-pt2e")
class Int8Pt2e(InTorch):
    """Convolutions over two axes and linear layers; weights signed per channel, activations unsigned per tensor.

    Sums, attention's products, convolutions over one axis or three, and embeddings stay in float.
    """

    name = "int8-pt2e"
    backend = "torchao"
    modules = ("torchao",)
    program = X86
    summary = "2-D convolutions and linear layers in int8, ranges from histograms; sums stay in float"

    def _rounded(
        self, network: nn.Module, features: Features, exclude: Sequence[str]
    ) -> tuple[nn.Module, dict[str, Any]]:
        import torch
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        reduce_range = needs_reduced_range()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range))
        for path in exclude:
            quantizer.set_module_name_qconfig(path, None)
        prepared = prepare_pt2e(exported(network, features.example), quantizer)
        with torch.no_grad():
            for batch in features:
                prepared(batch)
        return convert_pt2e(prepared), {"reduce_range": reduce_range}
