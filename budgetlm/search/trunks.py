"""The trunks that a search keeps on its disk (`train/trunk.py`): whether, whose, and until when.

They serve truncated proxies, whose shape, batch and rate are the same on every rung. A miniature's differ from rung to rung, and between
trials that begin at different times too, because the speeds that a study learns move them: no two would ever share one.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from budgetlm.files import digest
from budgetlm.recipe.world import Proxy
from budgetlm.records import RunRecord
from budgetlm.train.config import RunConfig, run_config_from
from budgetlm.train.trunk import trunk_of

TRUNKS = "trunks"
KEPT = 3
"""Of the trials that are not under way, so many keep their trunks: of those that have them and are not at the top, who might gain the most there, as the gate sees it."""


def trunks_of(study: Path, proxy: Proxy) -> Path | None:
    """Where a study's runs leave their trunks; None where nobody could use them."""
    return study / TRUNKS if proxy == "truncate" else None


def trials_with_trunks(folder: Path, records: Iterable[RunRecord]) -> set[int]:
    """The trials of which a run's trunk is there."""
    there = {trunk.name for trunk in folder.glob("*")}
    return {r.trial for r in records if there and r.config and _name(run_config_from(r.config)) in there}


def forget_all_but(folder: Path, configs: Iterable[RunConfig]) -> set[str]:
    """Delete all trunks but those of these runs; returns the names of these."""
    kept = {_name(config) for config in configs}
    for trunk in folder.glob("*"):
        if trunk.name not in kept:
            shutil.rmtree(trunk, ignore_errors=True)
    return kept


def _name(config: RunConfig) -> str:
    return digest(trunk_of(config))


def tidy(folder: Path) -> None:
    """Remove what writers that were killed have left half written. Only while none is at work."""
    for begun in folder.glob("*/*/.*.tmp"):
        shutil.rmtree(begun, ignore_errors=True)
