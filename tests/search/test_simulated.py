"""Searches on simulated devices that fail and are stopped: what must hold of the account whatever happens to them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from budgetlm.budget.clock import ManualClock
from budgetlm.budget.ledger import HEARTBEAT_SECONDS
from budgetlm.errors import ConfigError
from budgetlm.search.climb import MOST_NOISE
from budgetlm.search.engines import simulated
from budgetlm.search.engines.faults import PUBLISHED, Faults, Tally
from budgetlm.search.engines.simulated import BETWEEN_SECONDS, Simulated, simulate
from budgetlm.search.jobs import RungJob
from budgetlm.search.plan import load_plan
from budgetlm.search.rehearse import imagine
from budgetlm.search.replay_study import replay_study
from budgetlm.train.config import Label
from budgetlm.watch import Watcher
from budgetlm.workers.job import Ended, Failure
from tests.conftest import tiny_run

SECONDS = 800.0


@pytest.fixture
def simulated_search(searched, tokens):
    """Searches the space of a small study for a quarter of an hour that nobody waits for."""
    plan = replace(load_plan(searched.folder), rungs=[20.0, 80.0], target_seconds=320.0)

    def search(faults, places=4, **options):
        return simulate(
            plan, tokens, SECONDS, lambda job: imagine(job, plan.world), 0, places, "random", False, faults, **options
        )

    return search


def test_on_devices_that_fail_in_a_search_that_is_stopped_nothing_is_overspent_and_every_trial_is_told_once(
    simulated_search, monkeypatch
):
    monkeypatch.setattr(simulated, "checkpoint_interval", lambda _config: 10.0)
    faults = Faults(mean_seconds=100.0, restart_seconds=5.0, stop_seconds=100.0)
    found = simulated_search(faults, max_restarts=20)
    toll = found.toll
    assert toll.failures > 3
    assert toll.stops > 1
    assert toll.overspent <= 4 * HEARTBEAT_SECONDS
    assert toll.charged > 0.9 * SECONDS
    assert (toll.told_twice, toll.lost_trials, toll.zombies) == (0, 0, 0)
    assert toll.useful + toll.redone + toll.restarting <= toll.charged
    assert sum(r.seconds for r in found.records) == pytest.approx(toll.charged, rel=1e-6)
    done = [r.run for r in found.records if r.state == "done"]
    assert len(done) == len(set(done)) > 10


def test_what_was_done_before_a_stop_is_not_paid_for_again(simulated_search):
    toll = simulated_search(Faults(stop_seconds=90.0)).toll
    assert toll.stops > 1
    assert toll.useful > 0.9 * toll.charged > 0.8 * SECONDS


def test_devices_that_never_fail_are_of_use_all_the_time_that_they_are_held(simulated_search):
    toll = simulated_search(None, places=3).toll
    assert (toll.failures, toll.stops, toll.redone, toll.restarting) == (0, 0, 0.0, 0.0)
    assert toll.utilisation > 0.98
    assert toll.idle + toll.charged == pytest.approx(3 * toll.wall_seconds)


def test_a_search_repeats_its_incumbents_with_another_seed_and_charges_that(simulated_search):
    records = simulated_search(None, places=1).records
    once = {(r.trial, r.rung): r for r in records if "repeat" not in r.run}
    again = [r for r in records if r.why == "noise"]
    assert len({r.trial for r in again}) > 1  # the default recipe, and who did better
    for r in again:
        before = once[r.trial, r.rung]
        assert (r.seed, r.config) == (before.seed + 1, {**before.config, "seed": before.seed + 1})
    assert 0 < sum(r.seconds for r in again) <= MOST_NOISE * SECONDS


def test_a_run_that_is_cut_off_goes_on_from_its_last_checkpoint(monkeypatch, tokens, tmp_path):
    monkeypatch.setattr(simulated, "checkpoint_interval", lambda _config: 10.0)
    clock, tally, lives = ManualClock(), Tally(), iter([34.0, 1e9])
    workers = Simulated(clock, 1, lambda _job: "the record", Faults(mean_seconds=1.0, restart_seconds=5.0), tally)
    workers._chance = SimpleNamespace(exponential=lambda _mean: next(lives))
    label = Label(run="one", kind="rung", trial=0, rung=0, recipe={}, target_seconds=400.0)
    job = RungJob(label, tiny_run(seconds=100.0, steps=0), tokens, tmp_path)

    def end_of_it():
        workers.start(0, job, 100.0)
        while not (said := workers.wait(1.0)):
            pass
        return said[-1][1]

    assert end_of_it() == Ended(Failure("device", "the device failed"))
    assert clock.now() == 34.0
    assert end_of_it() == Ended("the record")
    assert clock.now() == pytest.approx(34 + 5 + BETWEEN_SECONDS + 70)
    assert (tally.failures, tally.redone, tally.restarting) == (1, 4.0, 5.0)


def test_a_study_is_replayed_on_many_devices_that_fail(searched, cache):
    found = replay_study(searched, cache, Watcher(), seeds=1, sampler="random", devices=4, failures="0.0005")
    toll = found.searches[0].toll
    assert (toll.devices, toll.told_twice, toll.zombies) == (4, 0, 0)
    assert toll.failures > 0
    assert "4 at once" in found.summary()


def test_how_often_devices_fail_is_a_published_name_or_a_number_of_hours():
    assert Faults.read("llama3").mean_seconds == 3600 * PUBLISHED["llama3"] == pytest.approx(50_700 * 3600, rel=0.01)
    assert Faults.read("2.5").mean_seconds == 9000.0
    for wrong in ("often", "0", "-1"):
        with pytest.raises(ConfigError, match="llama3, opt175b, spot, or the hours"):
            Faults.read(wrong)
