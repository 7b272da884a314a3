"""Reads features inside a network while it computes its logits: what feature-based distillation compares."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from distill.frozen import Answers, Frozen
from distill.lab import Lab
from distill.networks.registry import Model, blank_features, find_layer
from mst_edge.core.errors import UserError

EMBED = "embed"


class Tap:
    """A model that returns the outputs of some of its layers beside its logits, from one forward pass.

    Args:
        layers: dotted paths, or ``embed`` for what the network's ``embed`` method returns.
        shapes: feature shape of every modality.
        where: the recipe's key that chose the layers, for errors.

    Attributes:
        feature_shapes: shape of every layer's output without the batch axis: ``(C,)`` or ``(C, ...)``.

    Raises:
        UserError: a layer does not exist, does not run exactly once, or gives no ``(batch, C, ...)``.
    """

    def __init__(
        self, model: Model, layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]], *, where: str
    ) -> None:
        self.model, self.layers, self._where = model, tuple(layers), where
        self.feature_shapes = self._measure(shapes)

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``(B, outputs)`` logits, and each layer's output ``(B, C, ...)``."""
        with contextlib.ExitStack() as stack:
            seen = [stack.enter_context(_recorded(self.model, layer, self._where)) for layer in self.layers]
            logits = self.model(inputs)
        for layer, outputs in zip(self.layers, seen, strict=True):
            if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].ndim < 2:
                raise UserError(
                    f"layer {layer!r} of {self.model.name} does not give one (batch, channels, ...) output per pass",
                    where=self._where,
                    fix=_choices(self.model),
                )
        return logits, tuple(outputs[0] for outputs in seen)

    def features(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Each layer's output, averaged over positions: ``(B, C)``."""
        return tuple(pooled(output) for output in self(inputs)[1])

    @property
    def widths(self) -> list[int]:
        """Channels of every layer's output."""
        return [shape[0] for shape in self.feature_shapes]

    @torch.no_grad()
    def _measure(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
        module = self.model.module
        was_training, device = module.training, next(module.parameters()).device
        module.eval()
        _, outputs = self(blank_features({name: shapes[name] for name in self.model.reads}, device))
        module.train(was_training)
        return [tuple(output.shape[1:]) for output in outputs]


def pooled(feature: Tensor) -> Tensor:
    """``(B, C)`` from ``(B, C)`` or ``(B, C, ...)``: the mean over positions, in float32.

    Two modalities share no grid of positions, so what is compared between them are channels.
    """
    return feature.float().flatten(2).mean(dim=2) if feature.ndim > 2 else feature.float()


def embedding_layer(model: Model, said: str, *, where: str) -> str:
    """The layer ``said``, or where empty: ``embed``, else the last maskable layer, the one nearest the logits.

    Raises:
        UserError: the network has neither.
    """
    if said:
        return said
    if hasattr(model.module, EMBED):
        return EMBED
    return maskable_layers(model, where=where)[-1]


def maskable_layers(model: Model, *, where: str) -> tuple[str, ...]:
    """Dotted paths of the layers that the network offers, from its input upward.

    Raises:
        UserError: it offers none.
    """
    if not model.maskable:
        raise UserError(
            f"network {model.network!r} of {model.name} names no maskable layers",
            where=where,
            fix="name the layers here by dotted path, or list them in the network's `maskable`",
        )
    return model.maskable


def embedding_tap(lab: Lab, model: Model, said: str, *, where: str) -> Tap:
    """A tap on the model's embedding, or on the layer ``said`` where the recipe names one."""
    return Tap(model, [embedding_layer(model, said, where=where)], lab.store.shapes, where=where)


def frozen_features(lab: Lab, tap: Tap) -> Answers:
    """Each layer's feature ``(B, C)`` of a frozen teacher, for batches of training or validation samples."""
    return lab.keeper.answers(
        Frozen(
            what=f"features of {tap.model.name} at {', '.join(tap.layers)}",
            compute=tap.features,
            reads=tap.model.reads,
            networks=[tap.model.module],
            facts={"layers": list(tap.layers)},
        )
    )


def recomputes(lab: Lab, tap: Tap) -> bool:
    """Whether a frozen teacher runs forward in every epoch for its features."""
    return not lab.keeper.keeps(4 * sum(tap.widths), tap.model.reads)


def frozen_outputs(lab: Lab, tap: Tap) -> Answers:
    """Each layer's whole output ``(B, C, ...)`` of a frozen teacher, in float16 as label maps' logits are kept."""
    return lab.keeper.answers(
        Frozen(
            what=f"outputs of {tap.model.name} at {', '.join(tap.layers)}",
            compute=lambda inputs: tuple(output.half() for output in tap(inputs)[1]),
            reads=tap.model.reads,
            networks=[tap.model.module],
            facts={"outputs": list(tap.layers)},
        )
    )


def recomputes_outputs(lab: Lab, tap: Tap) -> bool:
    """Whether a frozen teacher runs forward in every epoch for whole outputs of its layers."""
    return not lab.keeper.keeps(2 * sum(map(math.prod, tap.feature_shapes)), tap.model.reads)


@contextlib.contextmanager
def _recorded(model: Model, layer: str, where: str) -> Iterator[list[Tensor]]:
    """While open, outputs of ``layer`` are added to the list."""
    seen: list[Tensor] = []
    module = model.module
    if layer != EMBED:
        handle = find_layer(module, layer, where=where).register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            yield seen
        finally:
            handle.remove()
        return
    if not hasattr(module, EMBED):
        raise UserError(f"network {model.network!r} of {model.name} has no embed()", where=where, fix=_choices(model))

    plain = getattr(module, EMBED)

    def embed(*inputs: Tensor) -> Tensor:
        seen.append(plain(*inputs))
        return seen[-1]

    # An attribute of the instance hides the class's method, for this one network and this one pass.
    module.__dict__[EMBED] = embed
    try:
        yield seen
    finally:
        del module.__dict__[EMBED]


def _choices(model: Model) -> str:
    names = [*([EMBED] if hasattr(model.module, EMBED) else []), *model.maskable]
    return f"choose a layer by its dotted path, for example {', '.join(names)}" if names else "choose another layer"
