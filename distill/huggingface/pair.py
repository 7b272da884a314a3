"""Both towers of CLIP or X-CLIP as one network: a picture or a video, and a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from distill.huggingface.body import has_towers, open_body
from distill.huggingface.choices import Origin, compute_again, keep_weights, require_one_of
from distill.huggingface.inputs import PICTURE, TEXT, TextReader, input_facts, reader_of, require_own_tokenizer
from distill.huggingface.source import Source
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError


class HuggingFacePair(nn.Module):
    """What is seen and what is said, each through its tower of CLIP (Radford and others, arXiv 2103.00020) or X-CLIP
    (Ni and others, arXiv 2208.02816), side by side as the model projects them, and a head of two layers.

    X-CLIP's text is changed by prompts that look at the frames of the sample that it belongs to.

    Args:
        model, config, weights, dropout, frozen, checkpointing, licence, processor: as of ``HuggingFace``.
        hidden: features of the head's first layer.
        prepared: what the processor does to pictures; where given, it is not asked.

    Raises:
        UserError: as ``HuggingFace``, and for a model that reads something else than the modalities.
    """

    multimodal = True
    reads_tokens = None
    maskable = ("seen", "said", "fused")

    def __init__(
        self,
        input_shapes: Mapping[str, tuple[int, ...]],
        num_outputs: int,
        model: str = "",
        config: Mapping[str, Any] | None = None,
        weights: Origin = "own",
        hidden: int = 128,
        dropout: float = 0.1,
        frozen: Sequence[str] = (),
        checkpointing: bool = False,
        licence: str = "",
        processor: Origin = "own",
        prepared: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require_one_of("weights", weights, get_args(Origin))
        require_one_of("processor", processor, get_args(Origin))
        self._text, self._sight = _modalities(input_shapes)
        text, sight = input_shapes[self._text], input_shapes[self._sight]
        assert isinstance(text, TokenShape)
        source, loads = Source(model), config is None and weights == "own"
        opened = open_body(source, [text, sight], config, licence, loads=loads)
        self.trunk = opened.body
        kind = "video" if hasattr(self.trunk, "mit") else "picture"
        if not has_towers(self.trunk) or (kind == "video") != (len(sight) == 4):
            reads = f"a text and a {kind}" if has_towers(self.trunk) else "one modality"
            raise ValueError(f"{self.trunk.config.model_type} reads {reads}")
        self.text_reader = reader_of(TEXT, self.trunk.text_model, text, causal=True)
        self.sight_reader = reader_of(PICTURE, self.trunk.vision_model, sight)
        if loads:
            require_own_tokenizer(source, text)
            if processor == "own" and prepared is None:
                prepared = input_facts(PICTURE, source, sight)
        if prepared:
            self.sight_reader.follow(prepared)
        self.pretrained = ("trunk",) if loads else ()
        # Only a model's own tokenizer writes a token at the end of every text.
        self._ends = bool(text.identity)
        self.seen, self.said, self.fused = nn.Identity(), nn.Identity(), nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(2 * self.trunk.projection_dim, hidden)
        self.head = nn.Linear(hidden, num_outputs)
        keep_weights(self, frozen)
        if checkpointing:
            compute_again(self.trunk)
        self.rebuilt_by = {
            "config": dict(opened.config),
            "hidden": hidden,
            "dropout": dropout,
            "frozen": list(frozen),
            "checkpointing": checkpointing,
            "licence": opened.licence,
            "prepared": dict(prepared or {}),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        seen, patches = self._see(inputs[self._sight])
        said = self.said(self._read(inputs[self._text], patches))
        fused = self.dropout(self.fused(torch.cat([self.seen(seen), said], dim=1)))
        return self.head(torch.relu(self.hidden(fused)))

    def _see(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(batch, projection)`` of what is seen, and of a video its patches ``(batch, patches, projection)``."""
        trunk, samples = self.trunk, len(x)
        out = trunk.vision_model(**self.sight_reader(x), return_dict=True)
        seen = trunk.visual_projection(out.pooler_output)
        if x.ndim == 4:
            return seen, None
        frames, width = x.shape[2], seen.shape[1]
        seen = trunk.mit(seen.reshape(samples, frames, width)).pooler_output
        patches = trunk.prompts_visual_layernorm(out.last_hidden_state[:, 1:]) @ trunk.prompts_visual_projection
        return seen, patches.reshape(samples, frames, -1, width).mean(dim=1)

    def _read(self, x: Tensor, patches: Tensor | None) -> Tensor:
        """``(batch, projection)`` of a text."""
        trunk, reader = self.trunk, self.text_reader
        assert isinstance(reader, TextReader)
        tokens = trunk.text_model(**reader(x), return_dict=True).last_hidden_state.transpose(1, 2)
        said: Tensor = trunk.text_projection((reader.end if self._ends else reader.mean)(tokens, x))
        if patches is None:
            return said
        return said + trunk.prompts_generator(said[:, None], patches)[:, 0]


def _modalities(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """Names of the text and of what is seen."""
    texts = [name for name, shape in shapes.items() if isinstance(shape, TokenShape)]
    sights = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    if len(shapes) != 2 or len(texts) != 1 or len(sights) != 1:
        raise UserError(
            f"two towers read one text and one picture or video, not {', '.join(shapes)}",
            fix="use fusion, whose encoders may be hf:..., one per modality",
        )
    return texts[0], sights[0]
