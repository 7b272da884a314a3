"""Candidates that are really trained, by the ordinary distillation, to see what their scores are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.methods.base import METHODS
from mst_edge.compare.comparison import TrialError, run_apart
from mst_edge.compare.contenders import LONE, Contender, contender_of, teacher
from mst_edge.compare.trial import Request, Trial
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_json
from mst_edge.recipe import ProveSection, Recipe
from mst_edge.search.space import Candidate, settled

_WHERE = "search.prove.method"


@dataclass(frozen=True)
class Prover:
    """Trains candidates in ``folder``, each in a process of its own; what is finished is not trained again.

    Teachers are trained once for each size of the student's input, for the recipe's own epochs.

    Attributes:
        teacher: the main one's name.
    """

    recipe: Recipe
    said: ProveSection
    teacher: str
    folder: Path
    data_root: Path | None
    device: str
    quiet: bool
    say: Callable[[str], None]

    def check(self) -> None:
        """Makes sure that the method distils.

        Raises:
            UserError: an unknown method, or one that learns from no teacher.
        """
        METHODS.get(self.said.method, where=_WHERE)
        if self.said.method == LONE:
            raise UserError("lone distils nothing, so it proves nothing", where=_WHERE, fix="use kd")

    def train(self, candidate: Candidate) -> Trial:
        """A trained candidate.

        Raises:
            UserError: what is wrong with recipe or data.
            TrialError: its process ended without a result.
        """
        recipe = settled(self.recipe, candidate)
        sizes = sha256_json(dict(candidate.features))[:8]
        contender = contender_of(self.said.method, recipe)
        contender = replace(contender, label=f"{contender.label} {candidate.label} {candidate.key}")
        short = self.said.epochs // 2
        epochs = recipe.distill.epochs.model_copy(update={"collaborate": short, "distill": self.said.epochs - short})
        brief = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"epochs": epochs})})
        folder = self.folder / sizes
        self._ask(recipe, teacher(self.teacher), folder, f"teacher for {candidate.features or 'all candidates'}")
        asked: set[str] = set()
        while isinstance(answer := self._ask(brief, contender, folder, candidate.label), str):
            if answer in asked:
                raise TrialError(f"{candidate.label} does not find the {answer} teacher in {folder}")
            asked.add(answer)
            self._ask(recipe, teacher(answer), folder, f"{answer} teacher")
        return answer

    def _ask(self, recipe: Recipe, contender: Contender, folder: Path, title: str) -> Trial | str:
        request = Request(recipe.to_dict(), contender, folder, self.data_root, self.device, self.quiet)
        done = request.finished()
        if done is not None:
            return done
        self.say(f"training {title}")
        answer: dict[str, Any] = run_apart(request)
        if "needs" in answer:
            return str(answer["needs"])
        trial = request.finished()
        assert trial is not None
        return trial


def spread_out(ordered: Sequence[Candidate], count: int) -> list[Candidate]:
    """``count`` of the candidates, evenly over their order, the first and the last among them."""
    if count >= len(ordered):
        return list(ordered)
    if count == 1:
        return [ordered[0]]
    places = [round(number * (len(ordered) - 1) / (count - 1)) for number in range(count)]
    return [ordered[place] for place in places]
