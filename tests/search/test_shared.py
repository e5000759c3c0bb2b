"""Machines that share no folder: what one of them was at is gone on with by another, from the bucket alone."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from budgetlm.budget.clock import ManualClock
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.errors import BucketAway, ConfigError, StudyError
from budgetlm.records import CurvePoint, RunRecord, read_records
from budgetlm.search import join as joining
from budgetlm.search import shared as publishing
from budgetlm.search.copies import Copies, Shared, Tidier
from budgetlm.search.jobs import RungJob
from budgetlm.search.join import join
from budgetlm.search.plan import load_plan
from budgetlm.search.scheduler import Scheduler
from budgetlm.search.study import search
from budgetlm.train import loop
from budgetlm.train.checkpoint import newest_step
from budgetlm.train.config import Label
from budgetlm.train.loop import Checkpoints, train
from budgetlm.watch import Watcher
from budgetlm.workers.board import Board
from budgetlm.workers.bucket import Bucket
from budgetlm.workers.job import Ended, Failure, Note
from budgetlm.workers.remote import Remote, lead
from tests.conftest import tiny_model, tiny_run
from tests.workers.inline import Inline

RUN = "trial0003-rung1"
STEPS = 12
DIES_AT = 8


@pytest.fixture
def bucket(tmp_path):
    return Bucket((tmp_path / "bucket").as_uri(), "tiny", lambda _seconds: None)


@pytest.fixture
def sent_at_once(monkeypatch):
    """Every checkpoint arrives before the next step, so that a test knows which are there."""
    send = Copies._send

    def and_wait(self, key, folder):
        send(self, key, folder)
        assert self._courier.finish(10.0)

    monkeypatch.setattr(Copies, "_send", and_wait)
    monkeypatch.setattr(Copies, "seconds", 0.0)  # of the real clock, which says nothing here


class Desk:
    """Where a job is done. It may die at a step, or be asked to stop there."""

    def __init__(self, clock, dies_at=0, stops_at=0):
        self._inline, self.said = Inline(clock), []
        self.meter, self.began = _meter(clock), clock.now()
        self._dies_at, self._stops_at, self.steps = dies_at, stops_at, 0

    def should_stop(self):
        self.steps += 1
        if self.steps == self._dies_at:
            raise SystemExit("kill -9")
        return self.steps == self._stops_at

    def say(self, event):
        self.said.append(event)

    @property
    def points(self):
        return [event for event in self.said if isinstance(event, CurvePoint)]

    @property
    def notes(self):
        return [event.text for event in self.said if isinstance(event, Note)]


def _meter(clock):
    from budgetlm.budget.clock import Meter

    return Meter(clock, lambda *_: None)


@pytest.fixture
def job(tokens, bucket, tmp_path):
    """A run of some steps, to the bit the same whoever does how much of it, as a machine would do it that has a folder of its own."""

    def make(machine, *, goes_on=False, lent=True, shared=True, **changes):
        config = tiny_run(steps=STEPS, model=tiny_model(vocab_size=tokens.facts.vocab_size), **changes)
        label = Label(run=RUN, kind="rung", trial=3, rung=1, recipe={}, target_seconds=80.0)
        folder = tmp_path / machine / RUN / "checkpoints"
        at = Shared(bucket.address, "tiny", lent) if shared else None
        return RungJob(label, config, tokens, folder, 1e-9, 1, goes_on=goes_on, shared=at)

    return make


@pytest.fixture
def clock(monkeypatch):
    """Every step takes a tenth of a second."""
    clock, step = ManualClock(), loop.Stepper.step

    def timed(self, rows, lr):
        clock.move(0.1)
        return step(self, rows, lr)

    monkeypatch.setattr(loop.Stepper, "step", timed)
    return clock


def test_a_run_whose_machine_dies_is_gone_on_with_by_another_from_the_bucket_to_the_bit(job, bucket, clock, sent_at_once):
    straight = job("c", shared=False).work(Desk(clock))
    with pytest.raises(SystemExit):
        job("a").work(Desk(clock, dies_at=DIES_AT))
    assert bucket.newest(f"runs/{RUN}") == DIES_AT - 1
    desk = Desk(clock)
    record = job("b", goes_on=True).work(desk)
    assert desk.steps == STEPS - (DIES_AT - 1)
    assert (record.state, record.steps, record.bpb) == ("done", STEPS, straight.bpb)
    assert not desk.notes


def test_the_newest_checkpoint_that_was_cut_off_is_passed_over_for_the_one_before(
    job, bucket, clock, sent_at_once, tmp_path
):
    straight = job("c", shared=False).work(Desk(clock))
    with pytest.raises(SystemExit):
        job("a").work(Desk(clock, dies_at=DIES_AT))
    torn = next((tmp_path / "bucket").glob(f"**/{DIES_AT - 1:08d}-*"))
    tensors = torn / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    desk = Desk(clock)
    record = job("b", goes_on=True).work(desk)
    assert desk.steps == STEPS - (DIES_AT - 2)
    assert record.bpb == straight.bpb


def test_a_run_that_is_asked_to_stop_hands_over_what_it_has_and_leaves_nothing_on_a_machine_that_was_lent(
    job, bucket, clock, tmp_path
):
    assert job("a").work(Desk(clock, stops_at=5)).state == "interrupted"
    assert bucket.newest(f"runs/{RUN}") == 4
    assert not (tmp_path / "a" / RUN).exists()
    assert job("b", goes_on=True, lent=False).work(Desk(clock, stops_at=2)).state == "interrupted"
    assert bucket.newest(f"runs/{RUN}") == newest_step(tmp_path / "b" / RUN / "checkpoints") == 5


def test_what_is_as_new_on_this_disk_is_not_fetched(job, bucket, clock, sent_at_once, monkeypatch):
    job("a", lent=False).work(Desk(clock, stops_at=5))
    monkeypatch.setattr(Bucket, "_fetch", lambda *_: pytest.fail("it is here"))
    desk = Desk(clock)
    assert job("a", goes_on=True, lent=False).work(desk).state == "done"
    assert desk.steps == STEPS - 4


def away(*_arguments, **_options):
    raise BucketAway("s3://b cannot be used: no route to host.")


def test_a_bucket_that_is_away_costs_a_run_nothing_but_is_said_once(job, clock, monkeypatch, tmp_path):
    monkeypatch.setattr(Bucket, "send", away)
    desk = Desk(clock)
    assert job("a").work(desk).state == "done"
    assert desk.notes == ["is not sent, and goes on with what is on its own disk: s3://b cannot be used: no route to host."]
    assert job("b").work(Desk(clock, stops_at=5)).state == "interrupted"
    assert newest_step(tmp_path / "b" / RUN / "checkpoints") == 4  # nobody else has it, so it stays


def test_a_run_that_cannot_look_for_its_checkpoint_is_given_back_unless_there_is_one_on_this_disk(job, clock, monkeypatch):
    monkeypatch.setattr(Bucket, "fetch", away)
    desk = Desk(clock)
    given_back = job("a", goes_on=True).work(desk)
    assert isinstance(given_back, Failure)
    assert given_back.cause == "device"  # of the machine, so that another may have it
    assert desk.steps == 0
    assert desk.notes == ["could not look for its checkpoint: s3://b cannot be used: no route to host."]
    monkeypatch.setattr(Bucket, "send", away)
    job("b", lent=False).work(Desk(clock, stops_at=5))
    desk = Desk(clock)
    assert job("b", goes_on=True, lent=False).work(desk).state == "done"
    assert desk.steps == STEPS - 4


@dataclass
class Slow:
    """Somewhere that takes its time."""

    seconds: float
    saves: int = 0

    def saved(self, checkpoint):
        self.saves += 1


@pytest.mark.parametrize(("sending", "saves"), [(0.0, STEPS), (0.25, STEPS // 3)])
def test_a_checkpoint_waits_until_the_one_before_can_have_been_sent(tokens, clock, tmp_path, job, sending, saves):
    elsewhere, wanted = Slow(sending), job("a")
    kept = Checkpoints(folder=tmp_path / "kept", every_seconds=1e-9, elsewhere=elsewhere)
    train(wanted.config, wanted.label, tokens, _meter(clock), checkpoints=kept)
    assert elsewhere.saves == saves


def test_a_trunk_that_one_machine_has_left_is_begun_from_by_another(job, bucket, clock, sent_at_once, tmp_path):
    from budgetlm.train.schedule import ScheduleConfig

    schedule = ScheduleConfig(shape="wsd", warmup=0.1, cooldown=0.5, short_sequences=0.0)
    first = replace(job("a", schedule=schedule), trunks=tmp_path / "a" / "trunks")
    assert first.work(Desk(clock)).state == "done"
    (trunk,) = bucket.names("trunks")
    longer = replace(first.config, schedule=replace(schedule, cooldown_shape="sqrt"))
    label = replace(first.label, run="trial0004-rung1")
    desk = Desk(clock)
    second = replace(
        first, label=label, config=longer, checkpoints=tmp_path / "b" / "r" / "checkpoints", trunks=tmp_path / "b" / "trunks"
    )
    assert second.work(desk).inherited_from == RUN
    assert desk.steps == STEPS // 2
    with closing(Tidier(bucket, pytest.fail)) as tidier:
        tidier.keep_trunks({trunk})
        assert tidier._courier.finish(10.0)
        assert bucket.names("trunks") == {trunk}
        tidier.keep_trunks(())
    assert bucket.names("trunks") == set()


# --- a whole study ---


@pytest.fixture
def shared_study(searched, bucket, tmp_path, monkeypatch):
    """A finished study whose file says that its database is a server's, and where its bucket is."""
    for module in ("budgetlm.budget.database", "budgetlm.search.join"):
        monkeypatch.setattr(f"{module}.check_storage", lambda _storage: None)
    address = file_address(tmp_path / "server.db")
    config = replace(searched, search=replace(searched.search, storage=address, shared=bucket.address))
    config.save(config.folder)
    return config


def elsewhere(tmp_path, monkeypatch) -> Path:
    """Another machine: its own working folder, and nothing in its cache."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(joining, "prepare", lambda *_: pytest.fail("it has none of the text"))
    monkeypatch.setattr(joining, "start_server", lambda *_: None)
    return tmp_path / "cache elsewhere"


class Leader:
    """What a worker finds on the board: somebody who posts one job, and ends the search when it is done. Each of the worker's sleeps is a turn of it."""

    def __init__(self, config, clock, job):
        self.board, self.clock, self.job = Board(config.database, config.name), clock, job
        self.remote, self.heard, self.posted = Remote(self.board, lead(self.board), clock, clock.move), [], False

    def __call__(self, seconds):
        self.clock.move(seconds)
        if self.clock.now() > 200:
            raise AssertionError("nobody ends it")
        if self.remote:
            self.heard += self.remote.wait(0.0)
            if self.remote.places and not self.posted:
                self.posted = True
                self.remote.start(0, self.job, 5.0)
            if any(isinstance(event, Ended) for _, event in self.heard):
                self.board.end(1, "the budget is spent")
                self.remote = None


def test_a_worker_that_sees_no_common_folder_goes_on_with_a_dead_ones_run(
    shared_study, tokens, job, bucket, clock, cache, tmp_path, monkeypatch, sent_at_once
):
    publishing.publish(bucket, shared_study, tokens, lambda _note: None)
    plan = load_plan(shared_study.folder)
    with pytest.raises(SystemExit):
        job("a").work(Desk(clock, dies_at=DIES_AT))
    open_ledger(shared_study.database, "tiny").set_budget(SEARCH, 1.0)
    theirs = replace(job("a", goes_on=True), checkpoints=shared_study.folder / "unfinished" / RUN / "checkpoints")
    leader = Leader(shared_study, clock, theirs)
    their_cache = elsewhere(tmp_path, monkeypatch)
    left = Path("studies/tiny/unfinished/trial0001-rung0/checkpoints")
    left.mkdir(parents=True)  # by a process here that was killed
    monkeypatch.setattr(joining, "Processes", lambda *_, **__: Inline(clock))
    lent = join("tiny", their_cache, clock, Watcher(), shared=bucket.address, sleep=leader)
    (record,) = [event.outcome for _, event in leader.heard if isinstance(event, Ended)]
    assert isinstance(record, RunRecord), record
    assert (record.state, record.steps) == ("done", STEPS)
    assert min(event.step for _, event in leader.heard if isinstance(event, CurvePoint)) >= DIES_AT
    assert (lent.jobs, lent.because, lent.exit_code) == (1, "the budget is spent", 0)
    assert (their_cache / "tokens" / plan.data / "train.bin").read_bytes() == (tokens.folder / "train.bin").read_bytes()
    assert not list(Path("studies").glob("tiny/unfinished/*"))
    assert not Path("studies/tiny/study.toml").exists()  # it is no study of this machine's


def test_a_worker_without_the_records_never_leads_but_waits_and_leaves(
    shared_study, tokens, bucket, clock, tmp_path, monkeypatch
):
    publishing.publish(bucket, shared_study, tokens, lambda _note: None)
    ledger, board = open_ledger(shared_study.database, "tiny"), Board(shared_study.database, "tiny")
    ledger.set_budget(SEARCH, 1.0)
    board.end(lead(board), "")
    their_cache = elsewhere(tmp_path, monkeypatch)
    monkeypatch.setattr(joining, "Processes", lambda *_, **__: Inline(clock))
    monkeypatch.setattr(joining, "search", lambda *_, **__: pytest.fail("it has no records"))
    arguments = ("tiny", their_cache, clock, Watcher())
    lent = join(*arguments, shared=bucket.address, wait_seconds=12.0, sleep=clock.move)
    assert (lent.jobs, lent.because) == (0, "nobody leads it who sees its folder")
    ledger.stop(SEARCH, "the budget is spent")
    assert join(*arguments, shared=bucket.address, sleep=clock.move).because == "the search is spent"
    assert board.hands() == []


def test_a_study_that_nobody_has_sent_is_waited_for_and_then_missed(home, bucket, clock, cache):
    with pytest.raises(StudyError, match=r"no search of a study 'tiny' has begun under file://.*--shared"):
        join("tiny", cache, clock, Watcher(), shared=bucket.address, wait_seconds=10.0, sleep=clock.move)
    assert clock.now() == 10.0


def test_a_bucket_without_a_server_is_refused(tiny_study, bucket):
    with pytest.raises(ConfigError, match="need a database on a server too"):
        tiny_study(search={"shared": bucket.address})


@pytest.fixture
def small(tiny_study, bucket, tmp_path, monkeypatch, fast_clock):
    monkeypatch.setattr("budgetlm.budget.database.check_storage", lambda _storage: None)
    storage = file_address(tmp_path / "server.db")
    return tiny_study(
        4.1, search={"least_rung_seconds": 0.15, "stop_early": False, "storage": storage, "shared": bucket.address}
    )


def test_a_search_sends_what_workers_need_and_removes_what_its_runs_have_left(small, bucket, cache, fast_clock, monkeypatch):
    (small.folder / "left").mkdir(parents=True)
    bucket.send_folder("runs/trial0099-rung0", 3, small.folder / "left")  # by a search before
    there, end = [], Scheduler._end

    def looked_at(self, seat, ended):
        there.append(bucket.names("runs"))
        end(self, seat, ended)

    monkeypatch.setattr(Scheduler, "_end", looked_at)
    small = replace(small, train=replace(small.train, checkpoint_seconds=0.2))
    search(small, cache, fast_clock, Watcher())
    records = read_records(small.folder)
    assert any(r.run in names for r, names in zip(records, there, strict=True))
    assert bucket.names("runs") == set()
    assert bucket.newest(f"tokens/{load_plan(small.folder).data}") == 0
    config, plan = publishing.published(bucket)
    assert (config, plan) == (small, load_plan(small.folder))
    (small.folder / "plan.json").unlink()
    with pytest.raises(StudyError, match=r"knows a search of study 'tiny', whose records are not in studies/tiny"):
        search(small, cache, fast_clock, Watcher())


def test_a_search_does_not_begin_with_a_bucket_that_cannot_be_used(small, cache, fast_clock, monkeypatch):
    monkeypatch.setattr(Bucket, "send", away)
    with pytest.raises(BucketAway, match="no route to host"):
        search(small, cache, fast_clock, Watcher())
    assert read_records(small.folder) == []


def test_weights_to_begin_from_are_fetched_once_and_missed_where_the_bucket_has_none(tiny_study, bucket, home):
    config = replace(tiny_study(4.1), model=replace(tiny_study(4.1).model, init="anywhere"))
    with pytest.raises(StudyError, match="has not the weights that the runs of study 'tiny' begin from"):
        publishing.fetch_init(bucket, config)
    (home / "weights").mkdir()
    (home / "weights" / "model.safetensors").write_text("weights")
    bucket.send_folder("init", 0, home / "weights")
    publishing.fetch_init(bucket, config)
    assert (config.folder / "init" / "model.safetensors").read_text() == "weights"
    bucket.forget("init")
    publishing.fetch_init(bucket, config)


def test_a_worker_that_lacks_the_teacher_leaves_before_a_run_is_held_against_its_recipe(
    shared_study, tokens, bucket, clock, tmp_path, monkeypatch
):
    config = replace(shared_study, train=replace(shared_study.train, teacher="finals/big"))
    config.save(config.folder)
    publishing.publish(bucket, config, tokens, lambda _note: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", away)
    their_cache = elsewhere(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="train.teacher 'finals/big' is neither a folder"):
        join("tiny", their_cache, clock, Watcher(), shared=bucket.address, sleep=clock.move)
