from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.config import DATABASE
from budgetlm.records import append_record, read_records
from budgetlm.studies import ledger_of, trial_costs
from tests.conftest import record


def test_the_costs_of_trials_add_up_to_what_was_charged_to_runs_the_dearest_first(searched):
    ledger = ledger_of("tiny")
    costs = trial_costs("tiny", ledger)
    records = read_records(searched.folder)
    assert {cost.trial for cost in costs} == {r.trial for r in records}
    runs = {run: sum(spent.values()) for run, spent in ledger.by_run(SEARCH).items() if run != "study"}
    assert abs(sum(cost.seconds for cost in costs) - sum(runs.values())) < 1e-6
    assert [c.seconds for c in costs] == sorted((c.seconds for c in costs), reverse=True)
    default = next(cost for cost in costs if cost.trial == 0)
    assert default.rungs == len([r for r in records if r.trial == 0])


def test_a_run_that_has_no_record_yet_is_under_its_trial_all_the_same(searched):
    ledger = open_ledger(file_address(searched.folder / DATABASE))
    ledger.set_budget(SEARCH, 100.0)
    lease = ledger.lease(SEARCH, 5.0)
    lease.charge("trial0999-rung0", {"train": 2.0})
    cost = next(c for c in trial_costs("tiny", ledger) if c.trial == 999)
    assert (cost.seconds, cost.rungs, cost.ended) == (2.0, 0, "running")
    lost = {"state": "interrupted", "cause": "killed"}
    append_record(searched.folder, record(999, 0, 2.0, None, run="trial0999-rung0", **lost))
    cost = next(c for c in trial_costs("tiny", ledger) if c.trial == 999)
    assert (cost.attempts, cost.ended) == (1, "interrupted (killed)")
