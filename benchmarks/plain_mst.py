"""MST-Distill as its paper's authors run it, rendered plainly: what ``distill_speed.py`` compares ours with.

Same networks, same formulas, same batches. What is not done here, because the published code does not do it:
nothing frozen is kept, every teacher runs whole for every batch and every mask, with autograd on and gradients
down to its weights; masks embed every feature by a linear map d -> d * e and ask attention for its weights, which
rules fused kernels out. What the published code does by mistake and for nothing is left out: masks of a group that
stay in place together, losses that are only logged, hooks that pile up.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from distill.masks import FullMask, SpecialisedTeacher, probe_layer
from distill.networks.registry import NETWORKS, Model
from distill.router import LinearRouter, balance_loss

TEMPERATURE, RATE = 4.0, 1e-4


class PlainMask(FullMask):
    """The published mask network, attention weights and all."""

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.embed(self.reduce(h)).reshape(-1, self.features, self.width)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=True)
        return torch.sigmoid(self.score(attended).squeeze(2))


def kd(learner: Tensor, target: Tensor) -> Tensor:
    """tau^2 KL(softmax(target / tau) || softmax(learner / tau)), mean over the batch."""
    divergence = functional.kl_div(
        functional.log_softmax(learner / TEMPERATURE, dim=1),
        functional.softmax(target / TEMPERATURE, dim=1),
        reduction="batchmean",
    )
    return TEMPERATURE**2 * divergence


class PlainMst:
    """One training step per stage, on a batch of features by modality and its classes.

    Args:
        shapes: feature shape by modality.
        networks: name (``student``, or a teacher's) to modalities and network.
        stage: 1 to 3; what only later stages need is not made.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: int,
        networks: Mapping[str, tuple[Sequence[str], str]],
        stage: int = 3,
    ) -> None:
        self.models = {
            name: _model(name, reads, network, shapes, outputs) for name, (reads, network) in networks.items()
        }
        self.student = self.models["student"]
        self._together = torch.optim.Adam(
            itertools.chain(*(model.module.parameters() for model in self.models.values())), lr=RATE
        )
        self.specialised: list[SpecialisedTeacher] = []
        if stage > 1:
            teachers = [model for name, model in self.models.items() if name != "student"]
            self.specialised = [_specialised(model, layer, shapes) for model in teachers for layer in model.maskable]
            self._per_mask = [torch.optim.Adam(special.mask.parameters(), lr=RATE) for special in self.specialised]
        if stage > 2:
            self.router = LinearRouter(outputs, len(self.specialised))
            learning = itertools.chain(self.student.module.parameters(), self.router.parameters())
            self._last = torch.optim.Adam(learning, lr=RATE)

    def step(self, stage: int, inputs: Mapping[str, Tensor], target: Tensor) -> dict[str, float]:
        """One step of a stage (1 to 3); its losses by name."""
        return {1: self.collaborate, 2: self.learn_masks, 3: self.distil}[stage](inputs, target)

    def collaborate(self, inputs: Mapping[str, Tensor], target: Tensor) -> dict[str, float]:
        """Stage 1: everybody learns from the labels and from everybody else; neither side is detached."""
        for model in self.models.values():
            model.module.train()
        logits = {name: model(inputs) for name, model in self.models.items()}
        task = torch.stack([functional.cross_entropy(z, target) for z in logits.values()]).sum()
        mutual = sum((kd(a, b) for a, b in itertools.permutations(logits.values(), 2)), torch.zeros(()))
        _descend(task + mutual, [self._together])
        return _told(loss=task + mutual, mutual=mutual)

    def learn_masks(self, inputs: Mapping[str, Tensor], target: Tensor) -> dict[str, float]:
        """Stage 2: each masked teacher moves toward the student."""
        for model in self.models.values():
            model.module.eval()
        z = self.student(inputs).detach()
        losses = {special.name: kd(special(inputs), z) for special in self.specialised}
        _descend(torch.stack(list(losses.values())).sum(), self._per_mask)
        return _told(**losses)

    def distil(self, inputs: Mapping[str, Tensor], target: Tensor) -> dict[str, float]:
        """Stage 3: per sample, the student learns from the teacher that the router selects.

        Gradients run down the teachers too, to no use: only so does this stage take as long as the published one.
        """
        self.student.module.train()
        z = self.student(inputs)
        teachers = torch.stack([special(inputs) for special in self.specialised], dim=1)
        weights = self.router(z, teachers)
        chosen = weights.argmax(dim=1)
        selected = teachers[torch.arange(len(z)), chosen]
        task, routed, balance = functional.cross_entropy(z, target), kd(z, selected), balance_loss(weights)
        _descend(task + routed + balance, [self._last])
        return _told(loss=task + routed + balance, task=task, kd=routed)


def _told(**losses: Tensor) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


def _descend(loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


def _model(name: str, reads: Sequence[str], network: str, shapes: Mapping[str, tuple[int, ...]], outputs: int) -> Model:
    """In torch's default memory format, where our own models are laid out channels last."""
    cls = NETWORKS.get(network)
    multimodal = bool(getattr(cls, "multimodal", False))
    first = {modality: shapes[modality] for modality in reads}
    module = cls(first if multimodal else shapes[reads[0]], outputs)
    return Model(name, network, module, tuple(reads), multimodal)


def _specialised(teacher: Model, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> SpecialisedTeacher:
    output = probe_layer(teacher, layer, shapes, "layers")
    spatial = output.ndim > 2 and output.shape[2:].numel() > 1
    return SpecialisedTeacher(f"{teacher.name}:{layer}", teacher, layer, PlainMask(output.shape[1], spatial))
