"""Facts and judgement -> DataFrames: everything that a figure or table of the page shows. Pure functions.

Each is also what `budgetlm report --csv` and `--json` write. A frame without rows has its columns.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from budgetlm.forecast.choose import finalists, highest_rungs, mean_losses
from budgetlm.forecast.fit import Forecaster, quantiles, usable
from budgetlm.forecast.front import costs_of, front
from budgetlm.forecast.history import DEFAULT, Moment
from budgetlm.forecast.worth import gain_of_a_longer_final, gain_of_trials
from budgetlm.receipts import Receipt
from budgetlm.records import RunRecord
from budgetlm.report.embedded import flat
from budgetlm.report.facts import Account, Facts
from budgetlm.report.judgement import Judgement

MOST_BARS = 600
"""Of a timeline; more are counted together, in as many stretches of time as `STRETCHES`."""
STRETCHES = 240
MOST_PATHS = 40
"""Trials whose way to the target is drawn, and that the pooled law is the mean of."""
FAN = (0.05, 0.1, 0.25, 0.75, 0.9, 0.95)
REFITS, MOST_REFITTED = 12, 120
"""Where the search has kept no history: how often it is worked out again, and for how many trials at most."""
LEAST_STEPS = 5
"""The speed of fewer optimisation steps than that says little."""
HOURS_MORE = tuple(np.geomspace(1 / 64, 4, 25).tolist())
"""Shares of what the search has spent, for which it is asked what as much again would bring."""


def runs(records: Sequence[RunRecord]) -> pd.DataFrame:
    """A row a run, the record's fields as columns; nested ones joined by dots."""
    names = [field.name for field in dataclasses.fields(RunRecord)]
    rows = [flat(vars(record)) for record in records]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=names)


def trials(records: Sequence[RunRecord], judgement: Judgement) -> pd.DataFrame:
    """A row a trial: how far it climbed, what it cost, what it came to, what is expected of it."""
    columns = ["trial", "row", "state", "rung", "runs", "seconds", "bpb", "forecast", "low", "high", "best", "mark"]
    reached, within = highest_rungs(records), set(judgement.choice.within_noise if judgement.choice else [])
    chosen = judgement.choice.trial if judgement.choice else None
    losses = {rung: mean_losses(usable(records), rung) for rung in set(reached.values())}
    own: dict[int, list[int]] = {}
    for row, record in enumerate(records):
        if record.kind == "rung":
            own.setdefault(record.trial, []).append(row)
    rows = []
    for trial, places in own.items():
        last, rung = records[places[-1]], reached.get(trial, -1)
        forecast = judgement.forecasts.get(trial)
        low, high = judgement.intervals.get(trial, (None, None))
        mark = "chosen" if trial == chosen else "default" if trial == DEFAULT else "within noise" if trial in within else ""
        rows.append(
            (
                trial,
                places[-1],
                last.state,
                rung,
                len(places),
                sum(records[i].seconds for i in places),
                losses[rung][trial] if rung >= 0 else None,
                forecast.mean if forecast else None,
                low,
                high,
                judgement.best.get(trial),
                mark,
            )
        )
    return pd.DataFrame(rows, columns=columns)


def spending(accounts: Mapping[str, Account]) -> pd.DataFrame:
    """Device-seconds by account and purpose."""
    rows = [(name, purpose, s) for name, account in accounts.items() for purpose, s in account.by_purpose.items() if s]
    return pd.DataFrame(rows, columns=["account", "purpose", "seconds"])


def timeline(records: Sequence[RunRecord]) -> pd.DataFrame:
    """When each device was at which run: a row a run, or for many a row for each stretch of time, rung and state.

    `seconds` is device time: all of a bar, or the part of a stretch that such runs had. Runs of old, of which nobody kept when
    they began, are laid end to end.
    """
    columns = ["place", "began", "ended", "rung", "state", "seconds", "runs", "trial", "run"]
    rows, ends = [], dict[int, float]()
    for r in records:
        if r.kind == "rung":
            began = ends.get(r.place, 0.0) if r.began_seconds is None else r.began_seconds
            ends[r.place] = began + r.seconds
            rows.append((r.place, began, ends[r.place], r.rung, r.state, r.seconds, 1, r.trial, r.run))
    frame = pd.DataFrame(rows, columns=columns)
    return frame if len(frame) <= MOST_BARS else _in_stretches(frame)


def _in_stretches(bars: pd.DataFrame) -> pd.DataFrame:
    edges = np.linspace(0, bars["ended"].max(), STRETCHES + 1)
    width = edges[1]
    shares: dict[tuple[int, int, int, str], tuple[float, int]] = {}
    for place, began, ended, rung, state in bars[["place", "began", "ended", "rung", "state"]].itertuples(index=False):
        first, last = int(began / width), min(STRETCHES - 1, int(ended / width))
        for at in range(first, last + 1):
            inside = max(0.0, min(ended, edges[at + 1]) - max(began, edges[at]))
            seconds, count = shares.get((place, at, rung, state), (0.0, 0))
            shares[place, at, rung, state] = seconds + inside, count + (at == first)
    rows = [
        (place, edges[at], edges[at + 1], rung, state, seconds, count, None, "")
        for (place, at, rung, state), (seconds, count) in sorted(shares.items())
    ]
    return pd.DataFrame(rows, columns=list(bars.columns))


def paths(records: Sequence[RunRecord], judgement: Judgement) -> pd.DataFrame:
    """What the best trials are expected to reach on their way from their last rung to the target, the chosen one with the fan about it."""
    columns = ["trial", "seconds", "mean", *(f"q{round(100 * share):02d}" for share in FAN)]
    choice, reached = judgement.choice, highest_rungs(records)
    if choice is None or not judgement.ways:
        return pd.DataFrame(columns=columns)
    best = sorted(judgement.forecasts, key=lambda n: judgement.forecasts[n].mean)[:MOST_PATHS]
    last = {r.trial: r.planned_seconds for r in usable(records) if r.rung == reached[r.trial]}
    drawn, rows = dict.fromkeys([choice.trial, DEFAULT, *best]), []
    for seconds, found in judgement.ways.items():
        for trial in drawn:
            if trial in found and last[trial] <= seconds * 1.001:
                fan = quantiles([found[trial]], FAN)[0].tolist() if trial == choice.trial else [None] * len(FAN)
                rows.append((trial, seconds, found[trial].mean, *fan))
    return pd.DataFrame(rows, columns=columns).sort_values(["trial", "seconds"], kind="stable")


def law(judgement: Judgement) -> pd.DataFrame:
    """The law that all runs obey together: what an even sample of trials comes to at each time, in the mean."""
    trials = judgement.fitted.numbers if judgement.fitted else []
    sample = set(trials[:: max(1, len(trials) // MOST_PATHS)])
    rows = [
        (seconds, float(np.mean([forecast.mean for n, forecast in found.items() if n in sample])))
        for seconds, found in judgement.ways.items()
    ]
    return pd.DataFrame(rows, columns=["seconds", "mean"])


def history(facts: Facts) -> pd.DataFrame:
    """Best forecast as it was known then, against device-hours charged; and what was expected of the default recipe.

    Of a study whose search kept no such history it is worked out again, unless that would take long; there only what its runs have cost is known.
    """
    moments = [m for m in facts.moments if m.low is not None] or _worked_out(facts)
    rows = [(m.spent_seconds / 3600, m.trials, m.trial, m.mean, m.low, m.high, m.default) for m in moments]
    return pd.DataFrame(rows, columns=["hours", "trials", "trial", "forecast", "low", "high", "default"])


def _worked_out(facts: Facts) -> list[Moment]:
    rungs = [r for r in facts.records if r.kind == "rung"]
    if not rungs or len({r.trial for r in rungs}) > MOST_REFITTED:
        return []
    spent, found = np.cumsum([r.seconds for r in rungs]), []
    forecaster = Forecaster(facts.target_seconds)
    for place in sorted(set(np.linspace(1, len(rungs), REFITS).astype(int).tolist())):
        known = rungs[:place]
        forecasts = forecaster.fit(known) if len({r.rung for r in usable(known)}) > 1 else {}
        if forecasts:
            trial = min(forecasts, key=lambda n: forecasts[n].mean)
            default = forecasts[DEFAULT].mean if DEFAULT in forecasts else None
            low, high = forecasts[trial].interval
            found.append(Moment(float(spent[place - 1]), len(forecasts), trial, forecasts[trial].mean, low, high, default))
    return found


def worth(facts: Facts, judgement: Judgement) -> pd.DataFrame:
    """What more hours are expected to gain, in the search and in the final: percent of the chosen recipe's forecast.

    The search's is that of as many new trials as they pay for, at what trials have cost here, if they are like the newest ones.
    """
    columns = ["hours", "search_percent", "final_percent"]
    costs = [r.seconds for r in facts.records if r.kind == "rung"]
    tried = len({r.trial for r in facts.records if r.kind == "rung"})
    if judgement.choice is None or len(judgement.forecasts) < 2 or not costs:
        return pd.DataFrame(columns=columns)
    leader, spent = judgement.choice.forecast, sum(costs)
    rows = []
    for share in HOURS_MORE:
        seconds = share * spent
        search = gain_of_trials(judgement.forecasts, max(1, round(seconds * tried / spent)))
        gained = gain_of_a_longer_final(leader, seconds, facts.target_seconds)
        rows.append((seconds / 3600, 100 * search / leader.mean, 100 * gained / leader.mean))
    return pd.DataFrame(rows, columns=columns)


def oracle(records: Sequence[RunRecord]) -> pd.DataFrame:
    """What was predicted of speed and memory before a run was paid for, and what was measured; a row a run."""
    columns = ["run", "predicted_tokens_per_second", "tokens_per_second", "predicted_peak_bytes", "peak_bytes"]
    rows = [
        (
            r.run,
            r.predicted_tokens_per_second if r.steps >= LEAST_STEPS and r.predicted_tokens_per_second > 0 else None,
            r.tokens_per_second or None,
            r.predicted_peak_bytes or None,
            r.peak_bytes or None,
        )
        for r in records
        if r.predicted_tokens_per_second > 0 or r.predicted_peak_bytes > 0
    ]
    return pd.DataFrame(rows, columns=columns)


def all_receipts(found: Sequence[Receipt]) -> pd.DataFrame:
    """Forecasts and outcomes of all finals here."""
    return pd.DataFrame(
        [dataclasses.asdict(receipt) for receipt in found], columns=[f.name for f in dataclasses.fields(Receipt)]
    )


def compression(facts: Facts, judgement: Judgement) -> pd.DataFrame:
    """Loss against megabytes, and milliseconds a token, of what would be deployed: trials as forecast, finals as measured, and the front.

    The front is the study's own, as `budgetlm status` shows it: of its second objective, among the trials that climbed highest. Where the loss is all there is, that of
    loss and size.

    Empty for a study in which neither a recipe is compressed nor its size counts.
    """
    columns = [
        "run",
        "trial",
        "kind",
        "compression",
        "bpb",
        "low",
        "high",
        "dense_bpb",
        "megabytes",
        "milliseconds",
        "front",
    ]
    records = [r for r in facts.records if r.state == "done" and r.bpb is not None]
    costs = facts.objectives != "loss" or facts.plan["world"].get("max_model_bytes")
    if not costs and all(r.recipe.get("compression", "none") == "none" for r in records):
        return pd.DataFrame(columns=columns)
    rows = []
    for r in {
        r.trial: r for r in records if r.kind == "rung" and r.predicted_model_bytes and r.trial in judgement.forecasts
    }.values():
        forecast, bounds = judgement.forecasts[r.trial].mean, judgement.intervals[r.trial]
        cost = (r.predicted_model_bytes / 1e6, r.predicted_token_ms or None)
        rows.append([r.run, r.trial, "trial", r.recipe.get("compression", "none"), forecast, *bounds, None, *cost, False])
    losses = {n: judgement.forecasts[n].mean for n in finalists(records, judgement.forecasts)}
    best = front(losses, costs_of(records, facts.objectives if facts.objectives != "loss" else "loss,size"))
    for row in rows:
        row[-1] = row[1] in best
    for r in (r for r in records if r.kind == "final" and r.artefact_bytes):
        cost = (r.artefact_bytes / 1e6, 1e3 / r.decode_tokens_per_second if r.decode_tokens_per_second else None)
        rows.append(
            [r.run, r.trial, "final", r.recipe.get("compression", "none"), r.bpb, None, None, r.dense_bpb, *cost, False]
        )
    return pd.DataFrame(rows, columns=columns)


def final_parts(facts: Facts) -> pd.DataFrame:
    """The parts that finals were trained in: more than one where they were interrupted. Device-seconds from the final's beginning.

    `use_of_a_token` is the share of what the device's matrix products reach that training takes at one token a second; NaN where that is not known.
    """
    rows, ends, ceiling = [], dict[str, float](), facts.ceiling_flops
    for r in facts.records:
        if r.kind == "final":
            began = ends.get(r.run, 0.0)
            ends[r.run] = r.seconds if r.state == "done" else began + r.seconds
            use = r.flops / r.tokens / ceiling if r.tokens and ceiling else math.nan
            rows.append((r.run, r.trial, began, ends[r.run], r.state, r.cause, r.bpb, r.bpb_full, use))
    names = ["run", "trial", "began", "ended", "state", "cause", "bpb", "bpb_full", "use_of_a_token"]
    return pd.DataFrame(rows, columns=names)
