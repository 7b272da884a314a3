"""The front end of text: token ids, made on the device's CPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

import apps.runtime.tokenizer as tokenizer_module
import apps.runtime.tokenizer_json as tokenizer_json_module
from apps.runtime.tokenizer import FIRST_MERGE, TOKENIZER, AnyTokenizer, Tokenizer, parse_tokenizer, read_tokenizer
from apps.runtime.tokenizer_json import JsonTokenizer
from distill import tokens as tokens_module
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends.base import BASE, Frontend
from distill.tokens import TokenShape, learn_merges
from mst_edge.core.errors import UserError
from mst_edge.core.files import write_text

_MOST_TOKENS = 4096


@dataclass(frozen=True)
class TokenizerOptions:
    """How texts become token ids.

    Attributes:
        vocabulary: most token ids; the tokenizer has fewer where the training texts hold fewer patterns.
        max_tokens: ids per sample: shorter texts are padded, longer ones lose their end.
        lower_case: whether case is ignored.
        tokenizer: ``hf:path-or-name`` takes that model's own; ``vocabulary`` and ``lower_case`` are its matter then.
    """

    vocabulary: int = 2000
    max_tokens: int = 64
    lower_case: bool = True
    tokenizer: str = ""


class TokenIds(Frontend):
    """Texts to token ids ``(B, max_tokens)`` int32, by a tokenizer fitted on training texts, or by a language model's
    own, which is pinned; all on the host."""

    kind = Kind.TEXT
    Options = TokenizerOptions
    code = (
        BASE,
        Path(__file__),
        Path(tokens_module.__file__),
        Path(tokenizer_module.__file__),
        Path(tokenizer_json_module.__file__),
    )
    feature_dtype = "int32"
    graph_dtype = "int32"

    def __init__(self, spec: ModalitySpec, options: TokenizerOptions) -> None:
        super().__init__()
        where = f"modalities.{spec.name}"
        if options.vocabulary < FIRST_MERGE:
            raise UserError(
                f"vocabulary must be at least {FIRST_MERGE}: bytes and special tokens, received {options.vocabulary}",
                where=where,
            )
        if not 1 <= options.max_tokens <= _MOST_TOKENS:
            raise UserError(f"max_tokens must be 1 to {_MOST_TOKENS}, received {options.max_tokens}", where=where)
        self._options = options
        self.graph_shape = (options.max_tokens,)
        self.feature_shape = TokenShape(options.max_tokens, options.vocabulary)

    def use(self, tokenizer: AnyTokenizer) -> None:
        """Takes a fitted tokenizer; ids are below its vocabulary from then on."""
        self.tokenizer = tokenizer
        own = (tokenizer.padding, tokenizer.identity) if isinstance(tokenizer, JsonTokenizer) else ()
        self.feature_shape = TokenShape(tokenizer.max_tokens, tokenizer.vocabulary, *own)

    def fit(self, blocks: Iterable[Any]) -> None:
        if self.pinned:
            return
        options = self._options
        assert not options.tokenizer, "a model's own tokenizer is pinned first"
        texts = (str(text) for block in blocks for text in block)
        merges = learn_merges(texts, options.vocabulary, lower_case=options.lower_case)
        self.use(Tokenizer(merges, options.max_tokens, options.lower_case))

    def learned(self) -> dict[str, Any]:
        assert self.tokenizer is not None, "fit comes first"
        return {"tokenizer": self.tokenizer.to_json()}

    def pin(self, learned: Mapping[str, Any]) -> bool:
        theirs = parse_tokenizer(json.loads(learned["tokenizer"]))
        same = not self.pinned or self.tokenizer == theirs
        if not self.pinned:
            self.use(theirs)
            self.pinned = True
        return same

    def save(self, folder: Path) -> None:
        assert self.tokenizer is not None, "fit comes first"
        write_text(folder / TOKENIZER, self.tokenizer.to_json())

    def load(self, folder: Path) -> None:
        self.use(read_tokenizer(folder / TOKENIZER))

    def key(self) -> list[object]:
        return [*super().key(), asdict(self._options), self.learned() if self.pinned else None]

    def host(self, raw: NDArray[Any]) -> NDArray[Any]:
        assert self.tokenizer is not None, "fit comes first"
        return self.tokenizer.encode_all(raw)

    def forward(self, raw: Tensor) -> Tensor:
        return raw
