"""Where a model of Hugging Face lies, a folder or a name on the hub, and what its files say."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.runtime.tokenizer_json import JsonTokenizer
from mst_edge.core.errors import UserError
from mst_edge.core.extras import import_extra
from mst_edge.core.files import sha256_file, sha256_json

PREFIX = "hf:"
CONFIG, TOKENIZER, CARD, WEIGHTS = "config.json", "tokenizer.json", "README.md", "model.safetensors"
_LICENCE = re.compile(r"\A---\n.*?^license:\s*(\S+)\s*$.*?^---", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A model's files.

    Attributes:
        name: a folder's path, or ``owner/name`` (or ``name``) on the hub.
        where: the recipe's key that names it, for errors.
    """

    name: str
    where: str = ""

    def file(self, name: str) -> Path | None:
        """The file, fetched from the hub where it is not here yet; None where the model has none of this name.

        Raises:
            UserError: no such folder or model, or a hub that cannot be reached.
        """
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        if self.name.startswith(("/", ".", "~")):
            raise UserError(f"no such folder: {self.name}", where=self.where)
        return self._fetched(name)

    def _fetched(self, name: str) -> Path | None:
        hub = import_extra("huggingface_hub")
        hub.utils.logging.set_verbosity_error()  # it tells every attempt to reach a hub that is not there
        errors = importlib.import_module("huggingface_hub.errors")
        try:
            return Path(hub.hf_hub_download(self.name, name))
        except errors.HFValidationError:
            raise UserError(f"{self.name!r} is neither a folder nor a name on the hub", where=self.where) from None
        except errors.RemoteEntryNotFoundError:
            return None
        except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
            raise UserError(
                f"the hub of Hugging Face has no model {self.name} for you ({type(error).__name__})",
                where=self.where,
                fix="check its name, or log in with `hf auth login`",
            ) from None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError):
            raise UserError(
                f"{self.name} is no folder, and the hub of Hugging Face cannot be reached",
                where=self.where,
                fix="go online, unset HF_HUB_OFFLINE, or name a folder as save_pretrained writes it",
            ) from None

    def json(self, name: str) -> dict[str, Any] | None:
        """What a JSON file of the model says; None where there is none.

        Raises:
            UserError: it is not a JSON object.
        """
        file = self.file(name)
        if file is None:
            return None
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is not JSON ({error})", where=self.where) from None
        if not isinstance(said, dict):
            raise UserError(f"{file} is no JSON object", where=self.where)
        return said

    def config(self) -> dict[str, Any]:
        """``config.json``.

        Raises:
            UserError: the model has none.
        """
        said = self.json(CONFIG)
        if said is None:
            raise UserError(
                f"{self.name} has no {CONFIG}", where=self.where, fix="name a folder as save_pretrained writes it"
            )
        return said

    def weights_sha256(self) -> str:
        """Hash over the files of its weights, one or several.

        Raises:
            UserError: it has none as safetensors.
        """
        index = self.json(f"{WEIGHTS}.index.json")
        names = sorted(set(index["weight_map"].values())) if index else [WEIGHTS]
        files = [self.file(name) for name in names]
        found = [sha256_file(file) for file in files if file is not None]
        if len(found) < len(names):
            raise UserError(f"{self.name} has no {WEIGHTS}", where=self.where, fix="write it with save_pretrained")
        return found[0] if len(found) == 1 else sha256_json(found)

    def licence(self) -> str:
        """What the model's card says of its licence; empty where it says nothing."""
        card = self.file(CARD)
        found = _LICENCE.search(card.read_text(encoding="utf-8")) if card is not None else None
        return found[1] if found else ""

    def tokenizer(self, max_tokens: int) -> JsonTokenizer:
        """The model's own tokenizer.

        Raises:
            UserError: it has none, or one that the device's code does not do.
        """
        record = self.json(TOKENIZER)
        if record is None:
            raise UserError(
                f"{self.name} has no {TOKENIZER}",
                where=self.where,
                fix="write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            )
        try:
            return JsonTokenizer(record, self._padding(record), max_tokens)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the tokenizer of {self.name}: {_said(error)}", where=self.where) from None

    def _padding(self, record: Mapping[str, Any]) -> int:
        """The id of the token that fills up."""
        token = (self.json("tokenizer_config.json") or {}).get("pad_token")
        token = token["content"] if isinstance(token, dict) else token
        added = {each["content"]: each["id"] for each in record.get("added_tokens") or []}
        vocabulary = record["model"]["vocab"]
        if token is not None:
            known = {**vocabulary, **added} if isinstance(vocabulary, dict) else added
            if token not in known:
                raise ValueError(f"its vocabulary lacks the special token {token}")
            return int(known[token])
        padding = (self.json(CONFIG) or {}).get("pad_token_id")
        if padding is None:
            raise ValueError("it names no token that fills up (pad_token in tokenizer_config.json)")
        return int(padding)


def _said(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def source_of(said: str, where: str) -> Source:
    """The source in ``hf:path-or-name``.

    Raises:
        UserError: it is something else.
    """
    if not said.startswith(PREFIX) or said == PREFIX:
        raise UserError(f"expected {PREFIX}path-or-name, received {said!r}", where=where)
    return Source(said.removeprefix(PREFIX), where)


@functools.cache
def transformers() -> Any:
    """The library, silent.

    Raises:
        UserError: it is not installed.
    """
    library = import_extra("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library
