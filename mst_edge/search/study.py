"""A search from recipe to record: what is rated, measured and trained, kept on disk as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, remove_leftovers, require_unused, write_json, write_text
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import Scoring
from mst_edge.front import pareto
from mst_edge.recipe import Recipe, SearchSection, require_same
from mst_edge.report.search import write_files
from mst_edge.search.evolution import Budget, Fitness, evolve, exhaust
from mst_edge.search.latency import Bench, benches, excess, measured_whole
from mst_edge.search.prove import Prover, spread_out
from mst_edge.search.rating import Rater, Rating
from mst_edge.search.space import Candidate, Space, settled
from mst_edge.search.verdict import SCORE, choose, correlations, judge_score
from targets.measure import Measurement

RECIPE, CHOSEN, RECORD = "recipe.yaml", "chosen.yaml", "search.json"
# All of so many are built (without weights) before a search starts, and rated where no strategy is asked for; of more,
# as many that every value is among them, and evolution.
_FEW, _BUILT_AT_ONCE = 64, 512


class Watcher(Protocol):
    """Who is told what goes on."""

    def step(self, text: str) -> None: ...

    def busy(self, text: str) -> None: ...


@dataclass(frozen=True)
class SearchOptions:
    """What the command line adds to a recipe."""

    data_root: Path | None = None
    device: str = "auto"
    quiet: bool = False


class Study:
    """One search in one folder. What was rated, measured or trained there is not done again.

    Raises:
        UserError: whatever is wrong with the space, with what it is to be measured on, or with the data; nothing was
            written then.
    """

    def __init__(self, recipe: Recipe, folder: Path, options: SearchOptions, watcher: Watcher) -> None:
        if recipe.search is None:
            raise UserError(
                "the recipe says of no students to choose from",
                where="search",
                fix="add for example `search: {networks: {small_cnn: {width: [0.5, 1.0]}}}`",
            )
        self._recipe, self._said, self._folder, self._watcher = recipe, recipe.search, folder, watcher
        self._space = Space(self._said)
        self._benches = benches(recipe)
        self._rater = Rater(recipe, self._said, self._benches, options.data_root, options.device, watcher.busy)
        self._problems = self._built()
        _, lab = self._rater.prepared()
        if not lab.main_teacher:
            raise UserError(
                "there is no teacher, with which students are compared",
                where="teachers",
                fix="name a larger network as teachers.unimodal",
            )
        for candidate, _ in self._space.one_by_one() if self._said.similarity == "channels" else ():
            if candidate not in self._problems:
                self._rater.score(candidate, 0)
        self._scoring: Scoring = lab.task.scoring
        self._prover = Prover(
            recipe,
            self._said.prove,
            lab.main_teacher,
            folder / "proved",
            options.data_root,
            options.device,
            options.quiet,
            watcher.step,
        )
        self._prover.check()
        self._ratings: dict[Candidate, Rating] = {}
        self._seconds = 0.0

    @property
    def first(self) -> Candidate:
        """A candidate that can be built."""
        return next(one for one in self._space if one not in self._problems)

    @property
    def left_out(self) -> dict[Candidate, str]:
        """Candidates that cannot be built, as far as is known by now, with the reason."""
        rated = {candidate: rating.problem for candidate, rating in self._ratings.items() if rating.problem}
        return {**self._problems, **rated}

    def run(self) -> dict[str, Any]:
        """Rates, measures, trains and chooses; writes search.json, .md, .svg and chosen.yaml and returns the first."""
        for candidate, problem in self._problems.items():
            self._watcher.step(f"left out: {candidate.label}: {problem}")
        strategy, ended = self._rate_all()
        rated = sorted(self._ratings.values(), key=self._order)
        rated = [rating for rating in rated if not rating.problem]
        self._watcher.step(f"{len(rated)} of {len(self._space)} candidates rated ({strategy}): {ended}")
        wanted = self._said.prove.candidates
        fit = [rating for rating in rated if not rating.short_by(self._benches)]
        proved = spread_out([rating.candidate for rating in (fit if len(fit) >= wanted else rated)], wanted)
        finalists = [rating.candidate for rating in rated[: self._said.finalists]]
        accuracies = {candidate: self._proved(candidate) for candidate in proved}
        measured = self._measured(list(dict.fromkeys([*finalists, *proved])))
        rows = [self._row(rating, measured.get(rating.candidate), accuracies) for rating in rated]
        record = self._record(rows, strategy, ended)
        self._write(record)
        return record

    def _built(self) -> dict[Candidate, str]:
        """Candidates that cannot be built, with the reason.

        Raises:
            UserError: a value that no candidate can be built with.
        """
        for features, where in self._space.sizes():
            self._rater.require_size(features, where)
        if len(self._space) > _BUILT_AT_ONCE:
            for candidate, where in self._space.one_by_one():
                self._rater.require(candidate, where)
            return {}
        problems = {}
        for candidate in self._space:
            try:
                self._rater.require(candidate, "search")
            except UserError as error:
                problems[candidate] = error.problem
        built = [candidate for candidate in self._space if candidate not in problems]
        values = {(one.network, value) for one in built for value in [("", ""), *one.options, *one.features]}
        for candidate, where in self._space.one_by_one() if problems else ():
            new = dict([*candidate.options, *candidate.features])
            for value in [("", ""), *new.items()]:
                if (candidate.network, value) not in values:
                    self._rater.require(candidate, where)
        return problems

    def _rate_all(self) -> tuple[str, str]:
        said, few = self._said, len(self._space) <= _FEW
        strategy = said.strategy if said.strategy != "auto" else "exhaustive" if few else "evolution"
        out_of_time: Callable[[], bool] = lambda: self._seconds > 60 * said.minutes  # noqa: E731
        if strategy == "exhaustive":
            return strategy, exhaust(self._space, self._rate, out_of_time)
        budget = Budget(said.candidates, out_of_time)
        return strategy, evolve(self._space, self._rate, budget, self._recipe.seed)

    def _rate(self, candidates: Sequence[Candidate]) -> list[Fitness | None]:
        """Ratings from disk, or made now and kept there."""
        files = {candidate: self._folder / "trials" / f"{candidate.key}.json" for candidate in candidates}
        start = time.monotonic()
        fresh = self._rater.rate([candidate for candidate, file in files.items() if not file.is_file()])
        seconds = (time.monotonic() - start) / max(1, len(fresh))
        for rating in fresh:
            write_json(files[rating.candidate], {"rating": rating.to_dict(), "seconds": seconds})
        for candidate, file in files.items():
            kept = read_json(file)
            self._ratings[candidate] = Rating.from_dict(kept["rating"])
            self._seconds += kept["seconds"]
        best = min(self._ratings.values(), key=self._order)
        if not best.problem:
            write_json(self._folder / "best.json", {"label": best.candidate.label, **best.to_dict()})
            self._watcher.busy(f"{len(self._ratings)} rated, best score so far: {best.candidate.label}")
        return [self._fitness(self._ratings[candidate]) for candidate in candidates]

    def _fitness(self, rating: Rating) -> Fitness | None:
        return None if rating.problem else (-rating.short_by(self._benches), rating.score)

    def _order(self, rating: Rating) -> tuple[bool, float, float]:
        """The best first: those that meet the goals by their score, then the others by how far they miss them."""
        if rating.problem:
            return True, 0.0, 0.0
        return False, rating.short_by(self._benches), -rating.score

    def _proved(self, candidate: Candidate) -> float:
        value = self._prover.train(candidate).record["val"][self._scoring.metric]
        return float(value)

    def _measured(self, candidates: Sequence[Candidate]) -> dict[Candidate, dict[str, dict[str, float]]]:
        """Latency in ms and size in MB of whole candidates, by target; kept on disk."""
        found: dict[Candidate, dict[str, dict[str, float]]] = {candidate: {} for candidate in candidates}
        for bench in self._benches:
            file = self._folder / "measured" / f"{bench.target}.json"
            kept: dict[str, dict[str, float]] = read_json(file) if file.is_file() else {}
            new = [candidate for candidate in candidates if candidate.key not in kept]
            students = {candidate.key: self._rater.student(candidate) for candidate in new}
            taken = measured_whole(bench, students, self._watcher.busy) if students else {}
            kept |= {key: _said_of(measurement) for key, measurement in taken.items()}
            write_json(file, kept)
            for candidate in candidates:
                found[candidate][bench.target] = kept[candidate.key]
        return found

    def _row(
        self,
        rating: Rating,
        measured: Mapping[str, Mapping[str, float]] | None,
        accuracies: Mapping[Candidate, float],
    ) -> dict[str, Any]:
        candidate = rating.candidate
        if measured is None:
            short_by = rating.short_by(self._benches)
        else:
            short_by = sum(excess(bench.goals, **measured[bench.target]) for bench in self._benches)
        return {
            "key": candidate.key,
            "label": candidate.label,
            **candidate.to_dict(),
            "parameters": rating.parameters,
            "mb": rating.mb,
            "score": rating.score,
            "spread": rating.spread,
            "relation": float(np.mean(rating.relation)),
            "semantic": float(np.mean(rating.semantic)) if rating.semantic else None,
            "predicted_ms": dict(rating.ms),
            "measured": measured,
            "short_by": short_by,
            "value": accuracies.get(candidate),
        }

    def _record(self, rows: list[dict[str, Any]], strategy: str, ended: str) -> dict[str, Any]:
        sign = 1 if self._scoring.higher_is_better else -1
        proved = [row for row in rows if row["value"] is not None]
        found: dict[str, dict[str, Any]] = {}
        if len(proved) > 1:
            names = [SCORE, "relation", *(["semantic"] if proved[0]["semantic"] is not None else []), "parameters"]
            columns = {name: [row[name] for row in proved] for name in names}
            columns |= {
                f"latency on {one.target}": [row["measured"][one.target]["p50_ms"] for row in proved]
                for one in self._benches
            }
            found = correlations(columns, [sign * row["value"] for row in proved])
        verdict = judge_score(found, len(proved))
        accurate = {row["key"]: None if row["value"] is None else sign * row["value"] for row in rows}
        whole = [{**row, "accuracy": accurate[row["key"]]} for row in rows if row["measured"] is not None]
        key, by, text = choose(whole, trusted=verdict["trusted"])
        chosen = next(row for row in rows if row["key"] == key)
        fronts = {one.target: self._front(rows, one) for one in self._benches}
        for row in rows:
            row["front"] = [target for target, keys in fronts.items() if row["key"] in keys]
        data, lab = self._rater.prepared()
        return {
            "name": self._recipe.name,
            "recipe": self._recipe.to_dict(),
            "space": {"candidates": len(self._space), "rated": len(rows), "strategy": strategy, "ended": ended},
            "left_out": [{"label": c.label, "problem": problem} for c, problem in self.left_out.items()],
            "teacher": lab.main_teacher,
            "scoring": self._scoring.describe(),
            "targets": [self._target(bench, rows) for bench in self._benches],
            "elsewhere": [name for name in self._recipe.targets if name not in fronts],
            "rows": rows,
            "correlations": found,
            "verdict": verdict,
            "chosen": {
                "key": key,
                "label": chosen["label"],
                "by": by,
                "text": text,
                **Candidate.from_dict(chosen).to_dict(),
            },
            "seconds_rating": self._seconds,
            "provenance": provenance(
                recipe_sha256=self._recipe.sha256(), data_sha256=data.dataset.fingerprint, seed=self._recipe.seed
            ),
        }

    def _front(self, rows: Sequence[Mapping[str, Any]], bench: Bench) -> list[str]:
        """Keys of candidates that no other beats in predicted latency and score."""
        points = {(row["predicted_ms"][bench.target], row["score"]): row["key"] for row in rows}
        return [points[point] for point in pareto(list(points))]

    def _target(self, bench: Bench, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is said of a target: its goals, and how well the table of blocks predicts latency on it."""
        whole = [row for row in rows if row["measured"] is not None]
        errors = {
            row["label"]: row["predicted_ms"][bench.target] / row["measured"][bench.target]["p50_ms"] - 1
            for row in whole
        }
        worst = max(errors, key=lambda label: abs(errors[label]))
        goals = bench.goals
        return {
            "target": bench.target,
            "runtime": bench.runtime.name,
            "threads": bench.threads,
            "goals": {"p50_ms": goals.latency.p50_ms, "p90_ms": goals.latency.p90_ms, "p99_ms": goals.latency.p99_ms}
            | {"max_size_mb": goals.max_size_mb},
            "table_error": {
                "candidates": len(errors),
                "median": float(np.median([abs(error) for error in errors.values()])),
                "worst": errors[worst],
                "worst_label": worst,
            },
        }

    def _write(self, record: dict[str, Any]) -> None:
        whole = settled(self._recipe, Candidate.from_dict(record["chosen"]))
        chosen = whole.model_copy(update={"search": None})
        write_text(self._folder / CHOSEN, chosen.to_yaml())
        write_files(record, self._folder)


def _said_of(measurement: Measurement) -> dict[str, float]:
    latency = measurement.latency
    return {
        "p50_ms": latency.p50_ms,
        "p90_ms": latency.p90_ms,
        "p99_ms": latency.p99_ms,
        "mb": measurement.size_bytes / 1e6,
    }


def search(recipe: Recipe, out: Path, options: SearchOptions, watcher: Watcher, *, resume: bool) -> dict[str, Any]:
    """A search in a folder of its own, new or with ``resume`` an earlier one of the same recipe.

    Raises:
        UserError: as ``Study``; or the folder is in use, or was begun by another recipe.
    """
    file = out / RECIPE
    if file.is_file():
        if not resume:
            raise UserError("holds a search already", where=out, fix="continue it with --resume, or use another --out")
        require_same(_same_for_any_budget(recipe), yaml.safe_load(file.read_text(encoding="utf-8")), out)
    else:
        require_unused(out, "search")
    study = Study(recipe, out, options, watcher)
    remove_leftovers(out)
    write_text(file, _same_for_any_budget(recipe).to_yaml())
    return study.run()


def _same_for_any_budget(recipe: Recipe) -> Recipe:
    """The recipe without what may be raised when a search is continued: how much is rated, measured and trained."""
    if recipe.search is None:
        return recipe
    defaults = SearchSection(networks=recipe.search.networks)
    free = {name: getattr(defaults, name) for name in ("candidates", "minutes", "finalists")}
    prove = recipe.search.prove.model_copy(update={"candidates": defaults.prove.candidates})
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={**free, "prove": prove})})
