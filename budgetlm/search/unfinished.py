"""Runs that were begun and have no outcome yet: what each was settled to be, and its checkpoints.

A run that is resumed must be the run that was begun, however much more is known by then, so its configuration is kept
before its first step. The folder goes when the run has its record: a finished run keeps that and its curve, no weights.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from budgetlm.errors import StudyError
from budgetlm.files import read_json, write_json
from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.records import RunRecord, State
from budgetlm.studies import UNFINISHED
from budgetlm.train.config import Label, RunConfig, as_dict, bare_record, run_config_from
from budgetlm.workers.job import Failure

SETTLED = "run.json"


@dataclass(frozen=True)
class Unfinished:
    """A run that was begun."""

    label: Label
    config: RunConfig
    folder: Path
    predicted: Mapping[str, float]
    """What the oracle said of it: the fields of a record that begin with `predicted_` or `target_`."""

    @property
    def checkpoints(self) -> Path:
        """Where it leaves them."""
        return self.folder / "checkpoints"

    @property
    def recipe(self) -> Recipe:
        """What it is a miniature of."""
        return recipe_from(self.label.recipe)

    def finish(self) -> None:
        """Forget it, weights and all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def begin(study: Path, label: Label, config: RunConfig, predicted: Mapping[str, float]) -> Unfinished:
    """Keep a run as it is settled, before its first step."""
    folder = study / UNFINISHED / label.run
    write_json(folder / SETTLED, {"label": asdict(label), "config": as_dict(config), "predicted": predicted})
    return Unfinished(label, config, folder, predicted)


def unfinished_runs(study: Path) -> list[Unfinished]:
    """All runs that were begun and have no outcome yet; what a crash has left of one that was only just to begin is removed."""
    runs = []
    for folder in sorted((study / UNFINISHED).glob("*")):
        try:
            kept = read_json(folder / SETTLED)
            label, config = Label(**kept["label"]), run_config_from(kept["config"])
            runs.append(Unfinished(label, config, folder, kept["predicted"]))
        except (StudyError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
    return runs


def failed_record(label: Label, config: RunConfig | None, seed: int, why: Failure, state: State = "failed") -> RunRecord:
    """The record of a run that has left none itself."""
    return replace(bare_record(label, config), state=state, seed=seed, cause=why.cause, error=why.message)
