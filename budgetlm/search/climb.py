"""One trial up the ladder, whatever happens on the way.

A rung that fails is a record with its reason and its cost, not a lost evening: what a configuration brings about (an
impossible shape, a loss that diverges, too little memory) ends the trial and is learnt from; what looks like a bug of
ours ends the trial too, keeps its traceback, and ends the study when it happens again and again.
"""

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from budgetlm.budget.clock import Meter
from budgetlm.budget.ledger import SEARCH, Ledger
from budgetlm.data.tokens import Tokens
from budgetlm.errors import ConfigError, DataError, StudyError
from budgetlm.forecast.choose import can_win
from budgetlm.forecast.fit import Forecast, fit
from budgetlm.model.size import compute_parameters, parameters
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import miniature
from budgetlm.records import CurvePoint, RunRecord, append_point, append_record, curve_path, read_records
from budgetlm.search.plan import Plan
from budgetlm.train.config import RunConfig, as_dict
from budgetlm.train.loop import Label, train
from budgetlm.watch import Watcher

MARGIN_SECONDS = 0.4
"""Kept back beside a rung's own seconds, for what surrounds it: asking, telling, writing."""
TRACEBACK_LINES = 8


@dataclass
class Site:
    """Where trials run: everything that is the same for all of them."""

    folder: Path
    plan: Plan
    tokens: Tokens
    ledger: Ledger
    meter: Meter
    watcher: Watcher
    should_stop: Callable[[], bool]
    seed: int

    def records(self) -> list[RunRecord]:
        """All runs so far."""
        return read_records(self.folder)

    def forecasts(self) -> dict[int, Forecast]:
        """Forecasts of all trials from all runs so far."""
        return fit(self.records(), self.plan.target_seconds)

    def remaining(self) -> float:
        """Device-seconds that are left, up to this moment."""
        self.meter.flush()
        balance = self.ledger.balance(SEARCH)
        self.watcher.budget(balance.charged_seconds, balance.budget_seconds)
        return balance.remaining_seconds

    def affords(self, rung: int) -> bool:
        """Whether the budget pays for a run on this rung."""
        return self.remaining() >= self.plan.rungs[rung] + MARGIN_SECONDS


def climb(site: Site, trial: int, recipe: Recipe, first_rung: int = 0) -> RunRecord:
    """Run a trial's rungs until it cannot win, the top is reached, the budget ends, or something goes wrong.

    Returns:
        The record of the last rung that was run.
    """
    record = run_rung(site, trial, recipe, first_rung)
    while record.state == "done" and record.rung + 1 < len(site.plan.rungs) and not site.should_stop():
        # The default recipe is the measure of all others, so it climbs to the top in any case.
        may = trial == 0 or can_win(trial, site.forecasts(), site.records())
        if not may or not site.affords(record.rung + 1):
            break
        record = run_rung(site, trial, recipe, record.rung + 1)
    return record


def run_rung(site: Site, trial: int, recipe: Recipe, rung: int) -> RunRecord:
    """Train a miniature of the recipe on one rung, and keep the record, whatever its state."""
    plan = site.plan.learning(site.records())
    seconds = plan.rungs[rung]
    run = _unused_name(site, f"trial{trial:04d}-rung{rung}")
    label = Label(
        run=run,
        kind="rung",
        trial=trial,
        rung=rung,
        recipe=asdict(recipe),
        target_seconds=plan.target_seconds,
        passport=plan.passport.id,
    )
    curve_path(site.folder, run).parent.mkdir(parents=True, exist_ok=True)

    def on_point(point: CurvePoint) -> None:
        append_point(site.folder, run, point)
        site.watcher.point(point)

    before = dict(site.meter.spent)
    started = site.meter.clock.now()
    config: RunConfig | None = None
    with site.meter.paying(run):
        try:
            config = miniature(recipe, seconds, plan.target_seconds, plan.world, seed=site.seed)
            site.watcher.run(_title(trial, rung, config), config.seconds)
            record = train(config, label, site.tokens, site.meter, on_point=on_point, should_stop=site.should_stop).record
        except (StudyError, DataError):
            raise  # the disk or the data: no other trial would fare better
        except ConfigError as error:
            record = _failed(label, config, site, seconds, str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            record = _failed(label, config, site, seconds, f"out of memory: {error}")
        except RuntimeError as error:
            memory = "can't allocate memory" in str(error) or "not enough memory" in str(error)
            record = _failed(label, config, site, seconds, f"out of memory: {error}" if memory else _tail(error))
        except Exception as error:  # noqa: BLE001  # a trial must not cost the study; the record keeps the traceback
            record = _failed(label, config, site, seconds, _tail(error))
    spent = {str(p): s - before[p] for p, s in site.meter.spent.items()}
    record = replace(record, seconds=site.meter.clock.now() - started, by_purpose=spent)
    append_record(site.folder, record)
    return record


def _unused_name(site: Site, wanted: str) -> str:
    """A name whose curve file is not taken: a rung that was cut short and is run again keeps both curves."""
    names = [wanted, *(f"{wanted}-again{k}" for k in range(1, 10_000))]
    return next(name for name in names if not curve_path(site.folder, name).exists())


def _title(trial: int, rung: int, config: RunConfig) -> str:
    model = config.model
    return (
        f"trial {trial}, rung {rung}: depth {model.depth} x width {model.width} ({parameters(model) / 1e6:.2f} M), "
        f"batch {config.batch_tokens:,}, {config.optimizer.name} lr {config.optimizer.peak_lr:.1e}, {config.schedule.shape}"
    )


def _tail(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "bug: " + "\n".join(lines[-TRACEBACK_LINES:])


def _failed(label: Label, config: RunConfig | None, site: Site, seconds: float, why: str) -> RunRecord:
    return RunRecord(
        run=label.run,
        kind=label.kind,
        trial=label.trial,
        rung=label.rung,
        state="failed",
        recipe=label.recipe,
        config=as_dict(config) if config else {},
        seed=site.seed,
        target_seconds=label.target_seconds,
        planned_seconds=config.seconds if config else seconds,
        seconds=0.0,
        by_purpose={},
        steps=0,
        tokens=0,
        parameters=parameters(config.model) if config else 0,
        compute_parameters=compute_parameters(config.model) if config else 0,
        flops=0.0,
        tokens_per_second=0.0,
        bpb=None,
        passport=label.passport,
        error=why,
    )
