"""How much of the charged time is optimisation steps, for rungs of several lengths: real runs, each in a process of its own.

The default recipe's miniatures (and then what the sampler asks for) on one rung, with everything around them charged: processes
that start, evaluation, asking and telling, the ledger itself. The plan is by the machine's measured speeds, as a search's is; measuring them is
not in the table (`bench_start` has it).

    python -m tests.benchmarks.bench_share --rungs 20 60 600 --runs 4 3 1
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from budgetlm.budget.clock import PURPOSES, Clock
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.config import DATABASE, StudyConfig, study_config
from budgetlm.data.tokens import Tokens
from budgetlm.passport import Passport, pick_device, take_passport
from budgetlm.search.ahead import PRELOAD
from budgetlm.search.plan import Plan, make_plan
from budgetlm.search.scheduler import MARGIN_SECONDS, Scheduler
from budgetlm.search.site import Site
from budgetlm.search.study import prepare
from budgetlm.search.trials import Trials, open_storage
from budgetlm.train.calibrate import calibrate
from budgetlm.watch import Watcher
from budgetlm.workers.child import Place
from budgetlm.workers.processes import Processes
from tests.workers.jobs import Look


def plan_of(config: StudyConfig, passport: Passport, tokens: Tokens, cache: Path) -> Plan:
    """What a search would settle, from this process's own measurements."""

    def measure(shapes, optimizers):
        budget, rung = config.budget.seconds, config.search.least_rung_seconds
        return calibrate(shapes, passport, optimizers, Clock(), cache, budget_seconds=budget, rung_seconds=rung)

    return make_plan(config, passport, tokens, measure)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rungs", type=float, nargs="+", default=[20.0, 60.0, 600.0])
    parser.add_argument("--runs", type=int, nargs="+", default=[4, 3, 1])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    cache = Path(os.environ.get("BUDGETLM_CACHE") or Path.home() / ".cache" / "budgetlm")
    passport = take_passport(pick_device("cpu", options.threads))
    print(f"{'rung':>8} {'runs':>5} {'charged':>9}  " + "".join(f"{p:>11}" for p in PURPOSES))
    for seconds, runs in zip(options.rungs, options.runs, strict=True):
        hours = 24 * seconds / 3600
        table = {"budget": {"hours": hours, "target_hours": 4 * seconds / 3600}, "data": {"vocab_size": 1024}}
        config = study_config(table | {"search": {"least_rung_seconds": seconds}})
        tokens = prepare(config, 1024, cache, Watcher())
        plan = plan_of(config, passport, tokens, cache)
        plan = replace(plan, rungs=[seconds, 1e6])  # nobody can pay for the second rung: only the first is timed
        with tempfile.TemporaryDirectory() as name:
            folder, clock = Path(name), Clock()
            ledger = open_ledger(file_address(folder / DATABASE))
            ledger.set_budget(SEARCH, runs * (seconds + 1.0) + MARGIN_SECONDS)
            workers = Processes([Place("cpu", threads=options.threads)], clock, preload=PRELOAD)
            workers.start(0, Look(), 60.0)  # PyTorch is loaded before the first run, as in a search
            while not any(type(event).__name__ == "Ended" for _, event in workers.wait(1.0)):
                pass
            # To the last second: or all that is there would be kept for a gate on the rung that nobody can pay for.
            site = Site(folder, plan, tokens, ledger, clock, Watcher(), lambda: False, 0, 0, stops_early=False)
            Scheduler(site, Trials(open_storage(file_address(folder / DATABASE)), "share", plan.space, 0), workers).run()
            balance, records = ledger.balance(), site.records()
        assert all(r.state == "done" for r in records), [r.error for r in records]
        shares = "".join(f"{balance.by_purpose[p] / balance.charged_seconds:11.1%}" for p in PURPOSES)
        print(f"{seconds:8.0f} {len(records):5} {balance.charged_seconds:9.1f}  {shares}", flush=True)
        print(f"{'':8} evaluated on {plan.world.eval_tokens:,} tokens; runs: ", end="")
        print(", ".join(f"{r.by_purpose['evaluate'] / r.seconds:.1%}" for r in records), flush=True)


if __name__ == "__main__":
    main()
