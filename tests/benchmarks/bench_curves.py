"""Does a run's unfinished curve foretell its end well enough to stop it before its rung ends?

Runs that are rivals (of one length, as trials on one rung are) are known to the end but for one, of which a part is known. Its end is foretold by

    last       its last loss, less what the median of the finished ones still lost (none of its curve but the last point)
    ratio      the same by ratios: the cool-down ratio of other finished runs
    power      a power law with an offset, through its own curve alone
    anneal     L0 + A S1^-a - C S2 (arXiv:2408.11029), a and the decay of S2 from the finished runs, the rest of them the prior; where rates are known
    nothing    the median end of the finished ones
    end        the end itself, which nobody knows: the most that could be gained

Then a rung is played: runs come one after the other, and one is stopped at a share of its time if its foretold end is beyond the best third of the ends so far by
so many times what such forecasts miss by. What that saves, and what it costs: how often a run of the best third is stopped, and the best of those that went to the end against the best.

    python -m tests.benchmarks.bench_curves [--pages reports/example.html ...]    # reports of studies: their own curves too
"""

import argparse
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import spearmanr

from budgetlm.report.embedded import read_page
from tests.benchmarks.bench_forecast import read

SHARES = (0.25, 0.5, 0.75)
FEWEST = 6
"""Rivals that a group must have."""
AROUND, AROUND_OWN = 0.02, 0.1
"""Of a run: a loss at a moment is the mean over so much of the curve before it, for single points are batches; of our own, which are very small, more."""
LEAST_POINTS = 20
POINTS = 60
"""Of a curve, at most."""
SHUFFLES, BEGINNING = 200, 4
"""Orders in which a rung is played, and how many runs go to the end before any is stopped."""
DOUBTS = (0.0, 1.0, 2.0)
WIDTH = 1.48
"""A standard deviation, of a median absolute one: a run that repeats its text 44 times is no measure of the others."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A run's way."""

    at: np.ndarray
    """Shares of the run, rising, the last 1."""
    loss: np.ndarray
    rate: np.ndarray | None
    """Of learning, as shares of the largest; None where it is not known."""
    end: float
    """What it is judged by."""


Group = Sequence[Curve]


def curve(
    at: Sequence[float],
    loss: Sequence[float],
    rate: Sequence[float] | None = None,
    end: float | None = None,
    around: float = AROUND,
) -> Curve:
    """A curve, smoothed and thinned to evenly spaced moments; its end that of the curve where it has no other."""
    where, values = np.array(at) / max(at), np.array(loss)
    moments = np.linspace(1, 0, min(POINTS, len(where)), endpoint=False)[::-1]
    away = [np.abs(where - m) for m in moments]
    near = [(a <= max(around, a.min())) & (where <= m + 1e-9) | (a == a.min()) for a, m in zip(away, moments, strict=True)]
    smooth = np.array([values[n].mean() for n in near])
    rates = np.interp(moments, where, np.array(rate) / max(rate)) if rate is not None else None
    return Curve(moments, smooth, rates, float(smooth[-1]) if end is None else end)


# --- whose curves -----------------------------------------------------------------------------------------------------


def groups() -> Iterator[tuple[str, Group]]:
    """Rivals of public data."""
    table = read("datablations_curves")
    for (size, data), rows in table.groupby(["num_params", "data"]):
        runs = [r.sort_values("token_num") for _, r in rows.groupby("rid")]
        yield f"datablations {size} {data}", [curve(r.token_num, r.loss) for r in runs]
    table = read("gemstones_small_curves")
    for name in ("hot", "half_lr"):
        runs = [r.sort_values("tokens") for _, r in table[table.set == name].groupby("run_name")]
        yield f"gemstones {name}", [curve(r.tokens, r.loss) for r in runs]
    table = read("multipowerlaw_25m_100m")
    for size, rows in table.groupby("size_m"):
        same = [r.sort_values("step") for _, r in rows.groupby("schedule") if 20_000 < r.step.max() < 30_000]
        more = [r.sort_values("step") for _, r in rows.groupby("schedule") if 10_000 < r.step.max() < 20_000]
        yield f"multipowerlaw {size} M", [curve(r.step, r.loss, r.lr) for r in [*same, *more]]
    table = read("speedrun_track1_to_2025_09_curves")
    for steps, rows in table[table.step > 0].groupby("total_steps"):
        runs = [r.sort_values("step") for _, r in rows.groupby("run_id")]
        yield f"speedrun {steps}", [curve(r.step, r.val_loss) for r in runs]


def own(page: Path) -> Iterator[tuple[str, Group]]:
    """Those of a study, from its report, rung by rung: its training losses are of single batches, its ends those of the validation sample."""
    facts = read_page(page)
    done = [r for r in facts.records if r.kind == "rung" and r.state == "done" and r.bpb and r.seed == facts.records[0].seed]
    for rung in sorted({r.rung for r in done}):
        found = []
        for r in (r for r in done if r.rung == rung):
            points = facts.curves.get(r.run, [])
            if len(points) >= LEAST_POINTS:
                rates = [p.lr for p in points]
                found.append(curve([p.tokens for p in points], [p.loss for p in points], rates, r.bpb, around=AROUND_OWN))
        yield f"{page.stem}, rung {rung}", found


def spent(page: Path) -> str:
    """What share of a study's search went to runs that climbed no higher: all that stopping runs could save anything of."""
    runs = [r for r in read_page(page).records if r.kind == "rung"]
    reached = {trial: max(r.rung for r in runs if r.trial == trial) for trial in {r.trial for r in runs}}
    top, first = max(reached.values()), runs[0].seed
    below = sum(r.seconds for r in runs if r.seed == first and r.rung == reached[r.trial] < top)
    return f"{page.stem}: {100 * below / sum(r.seconds for r in runs):.0f} % of the search went to runs below the top whose trials climbed no higher"


# --- what is foretold -------------------------------------------------------------------------------------------------


def until(one: Curve, share: float) -> int:
    """So many points are known by then."""
    return max(1, int((one.at <= share + 1e-9).sum()))


def by_last(one: Curve, others: Group, share: float) -> float:
    lost = [o.end - o.loss[until(o, share) - 1] for o in others]
    return float(one.loss[until(one, share) - 1] + np.median(lost))


def by_ratio(one: Curve, others: Group, share: float) -> float:
    ratios = [o.end / o.loss[until(o, share) - 1] for o in others]
    return float(one.loss[until(one, share) - 1] * np.median(ratios))


def by_nothing(_one: Curve, others: Group, _share: float) -> float:
    return float(np.median([o.end for o in others]))


def by_power(one: Curve, others: Group, share: float) -> float:
    known = until(one, share)
    x, y = one.at[:known], one.loss[:known]
    x, y = x[x >= 0.1 * share], y[x >= 0.1 * share]
    if len(x) < 4:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _ = curve_fit(_power, x, y, p0=(0.8 * y[-1], 0.2 * y[-1], 0.5), maxfev=4000)
        except RuntimeError:
            return math.nan
    unit = np.median([o.end / o.loss[-1] for o in others])  # from what the curve is in to what it is judged by
    return float(_power(1.0, *found) * unit)


def _power(x: np.ndarray | float, floor: float, level: float, exponent: float) -> np.ndarray:
    return floor + level * np.asarray(x) ** -exponent


def by_annealing(one: Curve, others: Group, share: float) -> float:
    known = until(one, share)
    if one.rate is None or known < 4:
        return math.nan
    least, best = math.inf, None
    for exponent in (0.2, 0.35, 0.5, 0.7):
        for decay in (0.05, 0.15, 0.4):
            fits = [_annealing(o, exponent, decay) for o in others]
            missed = sum(squares for _, squares in fits)
            if missed < least:
                least, best = missed, (exponent, decay, np.array([found for found, _ in fits]))
    assert best
    exponent, decay, coefficients = best
    mean, spread = coefficients.mean(axis=0), np.cov(coefficients.T) + 1e-6 * np.eye(3)
    noise = max(least / sum(len(o.loss) - 5 for o in others), 1e-6)
    x, y = _annealed(one, exponent, decay), one.loss
    inverse, seen = np.linalg.inv(spread), x[2:known]
    found = np.linalg.solve(inverse + seen.T @ seen / noise, inverse @ mean + seen.T @ y[2:known] / noise)
    return float(x[-1] @ found * np.median([o.end / o.loss[-1] for o in others]))


@cache
def _annealing(one: Curve, exponent: float, decay: float) -> tuple[np.ndarray, float]:
    """The law fitted to a finished run, and the sum of squares that is left."""
    x, y = _annealed(one, exponent, decay)[2:], one.loss[2:]
    found = np.linalg.lstsq(x, y, rcond=None)[0]
    return found, float(np.square(x @ found - y).sum())


@cache
def _annealed(one: Curve, exponent: float, decay: float) -> np.ndarray:
    """The law's regressors at all points: 1, S1^-a, -S2, with S2 the fall of the rate, each bit of it at work over a share `decay` of the run."""
    assert one.rate is not None
    step = np.diff(one.at, prepend=0.0)
    area = np.cumsum(one.rate * step)
    fall, worked = np.maximum(-np.diff(one.rate, prepend=one.rate[0]), 0.0), np.zeros(len(step))
    for k in np.flatnonzero(fall):
        worked[k:] += fall[k] * (1 - np.exp(-(one.at[k:] - one.at[k] + step[k]) / decay))
    return np.stack([np.ones_like(area), np.maximum(area, 1e-3) ** -exponent, -worked], axis=1)


FORETELL: dict[str, Callable[[Curve, Group, float], float]] = {
    "nothing": by_nothing,
    "power": by_power,
    "last": by_last,
    "ratio": by_ratio,
    "anneal": by_annealing,
    "end": lambda one, _others, _share: one.end,
}


# --- what it is worth -------------------------------------------------------------------------------------------------


def foretold(group: Group, share: float, how: str) -> np.ndarray:
    """The end of each, the others finished."""
    return np.array([FORETELL[how](one, [o for o in group if o is not one], share) for one in group])


@dataclass(frozen=True)
class Played:
    """What stopping runs early comes to, means over orders."""

    saved: float
    """Share of the rung's device time."""
    good_stopped: float
    """Share of the best third that is stopped."""
    lost: float
    """Of the best that went to the end, above the best, as a share."""


def play(group: Group, guesses: np.ndarray, share: float, doubt: float, seed: int = 0) -> Played:
    """Play a rung in many orders."""
    ends, chance = np.array([c.end for c in group]), np.random.default_rng(seed)
    missed, good = WIDTH * np.median(np.abs(guesses - ends)), ends <= np.quantile(ends, 1 / 3)
    saved, stopped_good, lost = [], [], []
    for _ in range(SHUFFLES):
        finished: list[int] = []
        stopped: list[int] = []
        for i in chance.permutation(len(group)):
            known = np.concatenate([ends[finished], guesses[stopped]])
            bar = np.quantile(known, 1 / 3) if len(finished) >= BEGINNING else math.inf
            (stopped if guesses[i] > bar + doubt * missed else finished).append(int(i))
        saved.append((1 - share) * len(stopped) / len(group))
        stopped_good.append(good[stopped].sum() / good.sum())
        lost.append(ends[finished].min() / ends.min() - 1)
    return Played(float(np.mean(saved)), float(np.mean(stopped_good)), float(np.mean(lost)))


def tell(name: str, group: Group) -> list[tuple[str, float, float, float, list[Played]]]:
    """Print a group's lines; returns what a summary needs."""
    ends = np.array([c.end for c in group])
    print(
        f"{name}: {len(group)} runs, ends {ends.min():.3f} to {ends.max():.3f} (sd {100 * ends.std() / ends.mean():.2f} %)"
    )
    found = []
    for share in SHARES:
        for how in FORETELL:
            guesses = foretold(group, share, how)
            if not np.isfinite(guesses).all():
                continue
            error = float(np.mean(np.abs(guesses / ends - 1)))
            order = float(spearmanr(guesses, ends).statistic) if how != "nothing" else math.nan
            games = [play(group, guesses, share, doubt) for doubt in DOUBTS]
            found.append((how, share, error, order, games))
            cost = "; ".join(
                f"{100 * g.saved:.0f} % saved, {100 * g.good_stopped:.0f} %, {100 * g.lost:.2f} %" for g in games
            )
            print(f"  {share:4.0%} {how:8} error {100 * error:5.2f} %, Spearman {order:5.2f}; {cost}")
    return found


def main() -> None:
    """Print all groups, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages = [Path("reports/example.html")]
    parser.add_argument(
        "--pages", type=Path, nargs="*", default=pages, help="reports of studies whose curves are wanted too"
    )
    parser.add_argument("--only", default="", help="groups whose names begin so")
    options = parser.parse_args()
    print(f"after each forecast: time saved, of the best third stopped, best survivor above the best; at doubts {DOUBTS}")
    all_groups = [*groups(), *(g for page in options.pages for g in own(page))]
    rows = [
        (name.split()[0].rstrip(","), *row)
        for name, group in all_groups
        if len(group) >= FEWEST and name.startswith(options.only)
        for row in tell(name, group)
    ]
    for page in options.pages:
        print(spent(page))
    print("means over the groups of a kind")
    for kind, share, how in dict.fromkeys((r[0], r[2], r[1]) for r in rows):
        same = [r for r in rows if (r[0], r[2], r[1]) == (kind, share, how)]
        games = "; ".join(
            f"{100 * np.mean([r[5][k].saved for r in same]):.0f} % saved, {100 * np.mean([r[5][k].good_stopped for r in same]):.0f} %, "
            f"{100 * np.mean([r[5][k].lost for r in same]):.2f} %"
            for k in range(len(DOUBTS))
        )
        order = np.nanmean([r[4] for r in same]) if how != "nothing" else math.nan
        print(
            f"  {kind:16} {share:4.0%} {how:8} n = {len(same):2}: error {100 * np.mean([r[3] for r in same]):5.2f} %, Spearman {order:5.2f}; {games}"
        )


if __name__ == "__main__":
    main()
