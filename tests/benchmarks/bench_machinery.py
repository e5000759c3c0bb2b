"""What the machinery costs for each trial and each finished rung, at 10, 1,000 and 10,000 recorded trials.

Two forms of each, taking turns on the same study: `before`, as Optuna and a whole reading of the files have it, and `now`.

    python -m tests.benchmarks.bench_machinery

takes about four minutes. The device is not held meanwhile and nothing trains.
"""

import argparse
import json
import math
import random
import sqlite3
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import optuna

from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, Lease, open_ledger
from budgetlm.forecast.choose import can_win, choose
from budgetlm.forecast.fit import fit
from budgetlm.recipe.space import Choices, Range, Space, suggest
from budgetlm.records import RUNS, Records, RunRecord, append_record, read_records
from budgetlm.search.sampler import make_sampler
from tests.conftest import record

SPACE: Space = {
    "depth": Range(low=2, high=12),
    "width": Range(low=64, high=512, step=32),
    "batch_tokens": Range(low=1024, high=16_384, log=True),
    "peak_lr": Range(low=1e-3, high=4e-2, log=True),
    "schedule": Choices(("linear", "cosine", "wsd")),
    "warmup": Range(low=0.01, high=0.15),
    "cooldown": Range(low=0.2, high=0.8),
    "optimizer": Choices(("adamw", "muon")),
    "weight_decay": Range(low=0.01, high=0.5, log=True),
}
"""As `default_space` has it: nine parameters that are searched."""
TARGET = 1000.0
clock = time.perf_counter


def ladders(trials: int) -> list[RunRecord]:
    """Records of a search: every fourth trial climbed to the second rung, every twentieth to the third."""
    chance, records = random.Random(0), []
    for trial in range(trials):
        level = chance.gauss(0, 0.25)
        for rung in range(1 + (trial % 4 == 0) + (trial % 20 == 0)):
            seconds = TARGET / 64 * 4**rung * chance.uniform(0.98, 1.02)
            above = math.exp(level - 0.2 * math.log(seconds / TARGET) + chance.gauss(0, 0.01))
            records.append(record(trial, rung, seconds, 0.5 + above))
    return records


def open_study(path: Path, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    storage = optuna.storages.RDBStorage(file_address(path))
    return optuna.create_study(study_name="bench", storage=storage, sampler=sampler, load_if_exists=True)


def fill(path: Path, trials: int) -> None:
    """Ten trials by Optuna's own hand, the others written into its tables like them: 10,000 asks would take an hour."""
    chance = random.Random(1)
    study = open_study(path, optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        suggest(trial, SPACE)
        study.tell(trial, chance.uniform(1, 2))
    table = sqlite3.connect(path)
    names = [row[0] for row in table.execute("SELECT DISTINCT param_name FROM trial_params")]
    for number in range(10, trials):
        one = number + 1
        table.execute(
            "INSERT INTO trials SELECT ?, ?, study_id, state, datetime_start, datetime_complete FROM trials WHERE trial_id = 1",
            (one, number),
        )
        table.execute("INSERT INTO trial_values VALUES (?, ?, 0, ?, 'FINITE')", (one, one, chance.uniform(1, 2)))
        for name in names:  # each parameter as in one of the ten, drawn anew, and moved a little where it may be any number
            moved = chance.uniform(0.97, 1.03) if name in ("peak_lr", "warmup", "cooldown", "weight_decay") else 1
            table.execute(
                "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) SELECT ?, param_name, "
                "CASE param_name WHEN 'batch_tokens' THEN ? ELSE param_value * ? END, distribution_json "
                "FROM trial_params WHERE trial_id = ? AND param_name = ?",
                (one, chance.randint(1024, 16_384), moved, chance.randint(1, 10), name),
            )
    table.commit()
    table.close()


def trial_seconds(study: optuna.Study, lease: Lease) -> dict[str, float]:
    """One trial from ask to tell, without its training."""
    before = clock()
    trial = study.ask()
    suggest(trial, SPACE)
    asked = clock()
    study.tell(trial.number, 1.5)
    told = clock()
    lease.hold(10.0)
    lease.charge(f"trial{trial.number:04d}-rung0", {"train": 1.0, "evaluate": 0.1, "other": 0.1})
    charged = clock()
    return {"ask": asked - before, "tell": told - asked, "charge": charged - told, "a trial": charged - before}


def rung_seconds(folder: Path, growing: Records | None, number: int) -> dict[str, float]:
    """What follows a finished rung: reading the records, forecasts, whether to climb on, and the choice so far."""
    append_record(folder, record(0, 0, TARGET / 64, 2.0, run=f"again{number}"))
    before = clock()
    records = growing.all() if growing else read_records(folder)
    read = clock()
    forecasts = fit(records, TARGET)
    fitted = clock()
    can_win(0, forecasts, records)
    judged = clock()
    choose(records, TARGET, forecasts if growing else None)
    chosen = clock()
    return {
        "read": read - before,
        "fit": fitted - read,
        "can_win": judged - fitted,
        "choose": chosen - judged,
        "a rung": chosen - before,
    }


def tell_apart(title: str, before: list[dict[str, float]], now: list[dict[str, float]]) -> None:
    print(title)
    for name in now[0]:
        old, new = (statistics.median(row[name] for row in rows) for rows in (before, now))
        low, high = min(row[name] for row in now), max(row[name] for row in now)
        print(
            f"  {name:8} before {old:8.4f} s, now {new:8.4f} s ({low:.4f} to {high:.4f}): ratio {old / new:6.1f}, n = {len(now)}"
        )


def measure(trials: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "study.db"
        ledger = open_ledger(file_address(path))
        ledger.set_budget(SEARCH, 1e9)
        lease = ledger.lease(SEARCH, 1.0)
        for number in range(trials):
            lease.charge(f"trial{number:04d}-rung0", {"train": 1.0, "evaluate": 0.1, "other": 0.1})
        fill(path, trials)
        samplers = [optuna.samplers.TPESampler(seed=0, multivariate=True, group=True), make_sampler(0)]
        studies = [open_study(path, sampler) for sampler in samplers]
        rows = [[trial_seconds(study, lease) for study in studies] for _ in range(repeats + 1)][1:]
        tell_apart(f"{trials:,} trials", *map(list, zip(*rows, strict=True)))
        records = ladders(trials)
        (folder / RUNS).write_text("".join(json.dumps(vars(r)) + "\n" for r in records))
        growing = Records(folder)
        growing.all()
        rows = [[rung_seconds(folder, reader, k) for reader in (None, growing)] for k in range(repeats)]
        tell_apart(f"{trials:,} trials, {len(records):,} records", *map(list, zip(*rows, strict=True)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, nargs="+", default=[10, 1_000, 10_000])
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--processor", action="store_true", help="count this process's time alone, on a busy machine")
    given = options.parse_args()
    if given.processor:
        global clock  # noqa: PLW0603
        clock = time.process_time
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    for trials in given.trials:
        measure(trials, given.repeats)


if __name__ == "__main__":
    main()
