"""Lending a hand to a search that another process leads, and leading it when that process is gone: what `budgetlm worker` does."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from budgetlm.budget.clock import Clock, duration
from budgetlm.budget.database import check_storage
from budgetlm.budget.ledger import has_account
from budgetlm.compress.teacher import teacher_folder
from budgetlm.config import DATABASE, STUDIES, STUDY_FILE, StudyConfig, read_study_file
from budgetlm.data.rest import rest_being_read
from budgetlm.data.tokens import Tokens
from budgetlm.errors import SearchRunning, StudyError
from budgetlm.interrupt import StopRequest
from budgetlm.passport import identify, pick_device
from budgetlm.search.ahead import PRELOAD
from budgetlm.search.copies import Shared
from budgetlm.search.jobs import rung_job_from
from budgetlm.search.plan import Plan, load_plan
from budgetlm.search.shared import fetch_init, fetch_text, published
from budgetlm.search.study import check_data, check_machine, prepare, search
from budgetlm.studies import UNFINISHED, ended_as, state_of
from budgetlm.train.compilation import keep_compiled
from budgetlm.watch import Watcher
from budgetlm.workers.board import Board
from budgetlm.workers.bucket import Bucket, check_shared
from budgetlm.workers.child import Place
from budgetlm.workers.hand import Attendance
from budgetlm.workers.job import Job, Workers
from budgetlm.workers.processes import Processes, start_server

LEADER_SECONDS = 5.0
"""How often a worker that knows a study from its bucket alone looks whether somebody leads it."""
OVER = ("done", "spent")
"""States of a study in which there is nothing left to lend a hand with."""


@dataclass(frozen=True)
class Lent:
    """What came of lending a hand."""

    jobs: int
    """Jobs done for other leaders."""
    because: str
    """Why it was over."""
    exit_code: int


def join(
    name: str,
    cache: Path,
    clock: Clock,
    watcher: Watcher,
    *,
    storage: str = "",
    shared: str = "",
    wait_seconds: float = 600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Lent:
    """Do a search's jobs on this machine's device until it comes to its end, and lead it whenever nobody does.

    Args:
        name: of the study, whose database every worker must reach, and either its folder or its bucket.
        storage: address by which this machine reaches the database, where that is another than the study's file says.
        shared: likewise the bucket. A machine that does not see the folder must be given it, and never leads.
        wait_seconds: for a search that has not begun, or that this machine cannot lead when nobody else does.

    Raises:
        StudyError: no search began, or this is another machine, or has other data, than the study was begun with; or the database is not the study's.
        ConfigError: the storage is no address of a database, or `shared` none of a bucket.
        BucketAway: the bucket cannot be used.
    """
    check_storage(storage)
    check_shared(shared)
    config, plan, lent = _begun(name, shared, wait_seconds, sleep, watcher)
    reached = _reached(config, storage, shared)
    bucket = Shared(reached.search.shared, name, lent) if reached.search.shared else None
    keep_compiled(cache)
    start_server(PRELOAD, config.train.allocator)
    passport = identify(pick_device(config.train.device, plan.passport.threads))
    check_machine(plan, passport)
    tokens = _text(config, plan, bucket, cache, watcher)
    check_data(plan, tokens, name)
    stop, jobs, waited = StopRequest(), 0, 0.0
    place = Place(passport.device, "", passport.threads, int(config.train.memory_gb * 1e9))

    def hire(config: StudyConfig, clock: Clock, _should_stop: Callable[[], bool]) -> Workers:
        return Processes([place], clock, hang_seconds=config.search.hang_seconds, preload=PRELOAD)

    while True:
        with (
            stop,
            rest_being_read(config.data, cache, tokens, watcher.note),
            closing(hire(config, clock, stop)) as workers,
            closing(Board(reached.database, name, patience=0.0)) as board,
        ):
            if lent:
                _sweep(config.folder, board)
            watcher.note(f"worker    lends study {name!r} a hand: {plan.passport.summary()}")
            attendance = Attendance(board, workers, _reader(tokens, bucket), clock, stop, sleep)
            end = attendance.attend()
        jobs += attendance.jobs
        if end != "leaderless":
            return Lent(jobs, attendance.because or "asked to stop", stop.exit_code)
        if (state := ended_as(reached) if lent else state_of(reached)) in OVER:
            return Lent(jobs, f"the search is {state}", 0)
        if lent:
            waited = LEADER_SECONDS + (0.0 if attendance.jobs else waited)
            if waited > wait_seconds:
                return Lent(jobs, "nobody leads it who sees its folder", 0)
            watcher.note(
                "worker    nobody leads the search; this process does not see its folder, so it waits for one that does"
            )
            sleep(LEADER_SECONDS)
            continue
        try:
            watcher.note("worker    nobody leads the search, so this process does")
            result = search(config, cache, clock, watcher, hire, reached=reached)
        except SearchRunning:  # somebody was faster, or is preparing
            sleep(1.0)
            continue
        return Lent(jobs, result.stopped_because, result.exit_code)


def _begun(
    name: str, shared: str, wait_seconds: float, sleep: Callable[[float], None], watcher: Watcher
) -> tuple[StudyConfig, Plan, bool]:
    """The study and its plan, once there are both, and whether they are the bucket's, because its folder is not to be seen here."""
    folder, waited = STUDIES / name, 0.0
    bucket = Bucket(shared, name) if shared else None
    while True:
        plan = load_plan(folder)
        if plan:
            return read_study_file(folder / STUDY_FILE), plan, False
        if bucket and (found := published(bucket)):
            return *found, True
        if waited >= wait_seconds:
            raise StudyError(
                f"no search of a study {name!r} has begun under {f'{shared} or ' if shared else ''}{STUDIES}/ within {duration(wait_seconds)}. Begin it with "
                f"`budgetlm search --study {name} --hours …`, in a folder that this machine sees too, or with `--storage` and `--shared`."
            )
        if not waited:
            watcher.note(f"worker    waits for the search of study {name!r} to begin")
        sleep(LEADER_SECONDS if bucket else 1.0)
        waited += LEADER_SECONDS if bucket else 1.0


def _text(config: StudyConfig, plan: Plan, shared: Shared | None, cache: Path, watcher: Watcher) -> Tokens:
    """The study's text: prepared here, or, where the study's folder is not to be seen, as its leader has prepared it, unless it streams it.

    Raises:
        StudyError, ConfigError: what runs need beside it is not to be had here.
    """
    if shared and shared.lent:
        if config.train.teacher:
            teacher_folder(config.train.teacher)  # it is not sent, and a run that lacks it would be held against its recipe
        fetch_init(shared.bucket(), config)
        if tokens := fetch_text(shared.bucket(), plan.data, cache):
            return tokens
    return prepare(config, plan.world.vocab_size, cache, watcher)


def _sweep(study: Path, board: Board) -> None:
    """Remove what processes of this machine have left that were killed: of runs that nobody is at. The bucket has their checkpoints."""
    with suppress(DBAPIError):
        documents = [json.loads(hand.document) for hand in board.hands() if hand.job]
        at_work = {document["job"]["label"]["run"] for document in documents}
        for left in (study / UNFINISHED).glob("*"):
            if left.name not in at_work:
                shutil.rmtree(left, ignore_errors=True)


def _reached(config: StudyConfig, storage: str, shared: str) -> StudyConfig:
    """The study as this machine reaches its database and its bucket.

    Raises:
        StudyError: the database knows nothing of the study: its budget would be spent a second time.
    """
    if shared:
        config = replace(config, search=replace(config.search, shared=shared))
    if not storage:
        return config
    if not config.search.storage:
        raise StudyError(
            f"the database of study {config.name!r} is the file {config.folder / DATABASE}, and no server's. Leave `--storage` out."
        )
    reached = replace(config, search=replace(config.search, storage=storage))
    if not has_account(reached.database, reached.scope):
        raise StudyError(
            f"the database at {storage} knows no study {config.name!r}. Give the address of the one in which its search was begun: on the machine "
            f"that began it that was {config.search.storage}."
        )
    return reached


def _reader(tokens: Tokens, shared: Shared | None) -> Callable[[Mapping[str, Any]], Job]:
    return lambda document: rung_job_from(document, tokens, shared)
