"""A final that a training function of somebody's own trains, in this thread, from its account in the study's ledger.

Of such a final budgetlm keeps the record and the forecast that it was held to, and no model: what the function has trained it keeps itself. Nor are there
checkpoints to go on from, so one that was interrupted begins again, with all of its time.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from budgetlm.budget.clock import Clock, Meter
from budgetlm.budget.ledger import open_ledger
from budgetlm.config import StudyConfig
from budgetlm.files import write_json
from budgetlm.interrupt import StopRequest
from budgetlm.records import CurvePoint, RunRecord, append_record
from budgetlm.train.config import Label, RunConfig, as_dict
from budgetlm.workers.job import GRACE_SECONDS, MOST_TIMES, Note
from budgetlm.workers.own import OwnJob, Training


class _Here:
    """Where the function works."""

    def __init__(self, meter: Meter, began: float, should_stop: Callable[[], bool]) -> None:
        self.meter, self.began, self.should_stop = meter, began, should_stop

    def say(self, event: CurvePoint | Note) -> None:
        """It has no curve."""


def train_own(
    train: Training, study: StudyConfig, config: RunConfig, label: Label, home: Path, clock: Clock
) -> tuple[RunRecord, int]:
    """Let a function train a final.

    Args:
        config: the recipe at this final's length.
        label: who the final is; its `run` names its account too.
        home: the final's folder.

    Returns:
        The record, `interrupted` if it was asked to stop or went on for far too long, and what the process should end with.

    Raises:
        Exception: whatever the function raises; what it has taken is charged.
    """
    write_json(home / "config.json", as_dict(config))
    ledger = open_ledger(study.database, study.scope)
    ledger.release_the_dead(time.sleep)
    before = ledger.balance(label.run).charged_seconds if label.run in ledger.accounts() else 0.0
    ledger.set_budget(label.run, before + config.seconds)
    lease = ledger.lease(label.run, config.seconds, run=label.run)
    meter, began = Meter(clock, lease.charge, run=label.run), clock.now()
    latest, ended = began + MOST_TIMES * config.seconds + GRACE_SECONDS, "broken off"
    try:
        with StopRequest() as stop:
            desk = _Here(meter, began, lambda: stop() or clock.now() > latest)
            record = OwnJob(train, label, config).work(desk)
        ended = "the deadline is reached" if record.state == "done" else record.state
    finally:
        meter.flush()
        lease.settle()
        ledger.stop(label.run, ended)
    record = replace(record, run=label.run, kind=label.kind, trial=label.trial, rung=label.rung, recipe=label.recipe)
    append_record(study.folder, record)
    return record, stop.exit_code
