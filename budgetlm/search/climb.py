"""What the search pays for next: a repeat, a climb, a new trial, a run of the gate, or nothing. Records in, one wish out.

The order is that of a careful buyer. First somebody climbs to the top, and the noise is measured, on the incumbent and where it
is cheap. Then new trials and climbs, until their share of the budget is used or another trial is worth less than its seconds. What was
kept back pays for the gate: the last candidates are run on the highest rung, again with other seeds, until the choice is clear or the
money is gone.

Worth is reckoned in bits per byte at the target: what a run may gain by changing the choice, against what its seconds would
gain if the final had them (`forecast/worth.py`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from budgetlm.forecast.choose import finalists, highest_rungs
from budgetlm.forecast.fit import Forecast
from budgetlm.forecast.front import front, leader_of
from budgetlm.forecast.worth import SAVED, gain_of_a_trial, gain_of_seconds, improvement
from budgetlm.records import RunRecord

GATE_SHARE = 0.25
"""Of the search's budget, what is kept back for the gate."""
LEAST_TRIALS = 12
"""Before so many trials have ended, too little is known of what another one is worth."""
MOST_REPEATS = 3
"""The gate repeats no trial more often: by then a run's own noise is no longer what leaves the choice open."""
NOISE_SHARE, MOST_NOISE = 0.03, 0.06
"""Of the search's budget, the most that one repeat of an incumbent on a lower rung may take, and that all of them together may."""
LEAST_DOUBT = 0.05
"""A trial that beats the leader with less than this probability is no candidate."""


@dataclass(frozen=True)
class Standing:
    """What is known at the moment of a decision."""

    records: Sequence[RunRecord]
    forecasts: Mapping[int, Forecast]
    rungs: Sequence[float]
    """Device-seconds."""
    target_seconds: float
    budget_seconds: float
    remaining_seconds: float
    """What may still be spent."""
    at_work: Mapping[int, int]
    """Rung that a trial is on just now."""
    closed: frozenset[int] = frozenset()
    """Trials whose next step is settled already."""
    seed: int = 0
    """Of the runs that are no repeats."""
    stops_early: bool = True
    """Whether the search ends when going on is worth less than its seconds."""
    margin_seconds: float = 0.0
    """What a run takes beside its rung."""
    costs: Mapping[int, float] = field(default_factory=dict)
    """Of each trial's artefact, where more than the loss counts (`forecast/front.py`)."""

    @property
    def top(self) -> int:
        """The highest rung."""
        return len(self.rungs) - 1

    def cost(self, rung: int) -> float:
        """Device-seconds of a run."""
        return self.rungs[rung] + self.margin_seconds

    def gate_seconds(self) -> float:
        """What is kept back for the gate."""
        return max(GATE_SHARE * self.budget_seconds, self.cost(self.top))

    def broken(self) -> set[tuple[int, int]]:
        """Trials, and rungs on which they have failed or diverged."""
        return {(r.trial, r.rung) for r in self.records if r.state in ("failed", "diverged")}


@dataclass(frozen=True)
class Wish:
    """A run that is worth its seconds."""

    trial: int | None
    """None for a new trial."""
    rung: int
    repeat: int = 0
    """How often the trial has been on this rung before: the seed moves with it."""
    why: str = ""
    """One of the reasons that a record knows."""


@dataclass(frozen=True)
class Enough:
    """Nothing is worth its seconds, or can be paid."""

    why: str


def next_wish(now: Standing) -> Wish | Enough:
    """The run to pay for next."""
    wish = _first_at_the_top(now) or _noise(now) or _explore(now) or _gate(now)
    if isinstance(wish, Wish) or now.stops_early:
        return wish
    # To the last second, as it was asked for.
    return Wish(None, 0, why="new") if now.cost(0) <= now.remaining_seconds else _spent(now, 0)


def _noise(now: Standing) -> Wish | None:
    """The incumbent once more on a lower rung, with another seed: how much is chance, cheaply.

    Whoever takes its place is repeated likewise: of many trials seen once the one that leads is likely to be a lucky one.
    """
    at_the_top = [n for n, rung in highest_rungs(now.records).items() if rung == now.top]
    incumbent = min(at_the_top, key=lambda n: now.forecasts[n].mean, default=None)
    if incumbent is None or not _free(incumbent, now):
        return None
    runs, spent = _runs(now), sum(r.seconds for r in now.records if r.why == "noise")
    affordable = min(NOISE_SHARE * now.budget_seconds, MOST_NOISE * now.budget_seconds - spent, now.remaining_seconds)
    for rung in range(now.top):
        if now.cost(rung) <= affordable and runs[incumbent, rung] == 1 and (incumbent, rung) not in now.broken():
            return Wish(incumbent, rung, 1, "noise")
    return None


def _first_at_the_top(now: Standing) -> Wish | None:
    """Where nobody has reached the top, as after a budget was raised, it is for one of those who are nearest to it."""
    standing = highest_rungs(now.records)
    if now.top in [*standing.values(), *now.at_work.values()]:
        return None
    # Not for a lucky first rung.
    for trial in sorted(now.forecasts, key=lambda n: (-standing[n], now.forecasts[n].mean)):
        rung = standing[trial] + 1
        if (trial, rung) not in now.broken() and _free(trial, now) and now.cost(rung) <= now.remaining_seconds:
            return Wish(trial, rung, why="first on its rung")
    return None


def _explore(now: Standing) -> Wish | None:
    """A new trial, while there is money beside the gate's and the trial is worth it."""
    if now.cost(0) > now.remaining_seconds - now.gate_seconds():
        return None
    return Wish(None, 0, why="new") if _worth_another_trial(now) else None


def _worth_another_trial(now: Standing) -> bool:
    ended = len(now.forecasts)
    if not now.stops_early or ended < LEAST_TRIALS or len(finalists(now.records, now.forecasts)) < 2:
        return True
    spent = sum(r.seconds for r in now.records if r.kind == "rung" and r.seed == now.seed) / ended
    best = min(now.forecasts.values(), key=lambda f: f.mean)
    return gain_of_a_trial(now.forecasts, now.costs) > gain_of_seconds(best, spent, now.target_seconds)


def _gate(now: Standing) -> Wish | Enough:
    """A leader or the challenger that casts the most doubt on it, whichever is known less, on the highest rung.

    Taking turns between the best and its best challenger is top-two sampling for the best arm (Russo 2016, arXiv:1602.08448). Where more
    than the loss counts there is a leader for every cost, the front.
    """
    if not now.forecasts:
        return _spent(now, 0)
    if now.cost(now.top) > now.remaining_seconds:
        return _spent(now, now.top)
    if not _gate_pays(now):
        return Enough(f"the gate has had its share; {SAVED}")
    losses = {n: f.mean for n, f in now.forecasts.items()}
    leaders = front({n: losses[n] for n in finalists(now.records, now.forecasts)}, now.costs)
    broken, runs = now.broken(), _runs(now)
    cheapest = next(iter(front(losses, now.costs)))
    unseen = runs[cheapest, now.top] == 0 and leader_of(cheapest, leaders, losses, now.costs) is None
    if unseen and _free(cheapest, now) and (cheapest, now.top) not in broken:
        return Wish(cheapest, now.top, why="gate")  # it costs less than all leaders, so none of them can stand for it
    pairs = _pairs(leaders, losses, now.costs)
    doubts = {(one, best): improvement(now.forecasts[one], now.forecasts[best]) for one, best in pairs}
    doubts = {pair: d for pair, d in doubts.items() if d.probability >= LEAST_DOUBT and (pair[0], now.top) not in broken}
    for challenger, leader in sorted(doubts, key=lambda pair: -doubts[pair].expected):
        price = gain_of_seconds(now.forecasts[leader], now.cost(now.top), now.target_seconds)
        if now.stops_early and doubts[challenger, leader].expected < price:
            return Enough(f"another run is expected to gain less than its seconds would gain in the final; {SAVED}")
        for trial in sorted((challenger, leader), key=lambda n: runs[n, now.top]):
            if _free(trial, now) and runs[trial, now.top] <= MOST_REPEATS and (trial, now.top) not in broken:
                return Wish(trial, now.top, runs[trial, now.top], "gate")
    named = f"trial {leaders[0]}" if len(leaders) == 1 else f"those of the front ({', '.join(map(str, leaders))})"
    return Enough(f"no other trial is likely enough to be better than {named}; {SAVED}")


def _pairs(leaders: Sequence[int], losses: Mapping[int, float], costs: Mapping[int, float]) -> Iterator[tuple[int, int]]:
    """Challengers and the leaders that they may be better than, at no more cost or although these cost less."""
    for trial in losses:
        leader = None if trial in leaders else leader_of(trial, leaders, losses, costs)
        if leader is not None:
            yield trial, leader
    yield from pairwise(leaders)  # the cheaper one may be as good as the next


def _gate_pays(now: Standing) -> bool:
    """Whether the gate's share pays for another run."""
    repeats = sum(r.seconds for r in now.records if r.kind == "rung" and r.rung == now.top and r.seed != now.seed)
    return repeats + now.cost(now.top) <= now.gate_seconds()


def _spent(now: Standing, rung: int) -> Enough:
    return Enough(f"the budget is spent: what is left does not pay for another run of {now.rungs[rung]:.1f} s")


def _runs(now: Standing) -> Counter[tuple[int, int]]:
    """How often each trial has finished each rung."""
    return Counter((r.trial, r.rung) for r in now.records if r.kind == "rung" and r.state == "done")


def _free(trial: int, now: Standing) -> bool:
    return trial not in now.at_work and trial not in now.closed
