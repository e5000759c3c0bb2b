"""Searches on many devices, simulated: what more of them are worth, what failures take, and what the machinery itself costs.

The real scheduler, ledger, forecast and sampler run on a clock moved by hand, on the plan for a published device; losses are drawn from a landscape that
is another one for every seed and that is known, so that a search's choice can be judged at the target (`search/engines/modelled.py`). Four questions:

    hours      1, 2, 4, 16, 64 devices with the same device-hours
    ladder     the same with other shares of the time on the wall for the highest rung; 0: with the ladder of one device
    wall       the same with the same time on the wall, so with as many times the device-hours
    day        64 devices for as many device-hours as a day has, without failures, and with them at published rates (`search/engines/faults.py`)

The searches spend all of their budget (`search.stop_early = false`). Each is a line of the results' file, and those that are there are not done again;
`--plot` draws them.

    python -m tests.benchmarks.bench_simulation results.jsonl [--seeds 10] [--only hours ladder wall day] [--failures none spot] [--plot docs/scale.svg]
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

from budgetlm.commands.options import cache_folder
from budgetlm.config import StudyConfig, study_config
from budgetlm.data.tokens import Tokens
from budgetlm.devices import published_passport
from budgetlm.forecast.choose import choose
from budgetlm.forecast.history import Moment
from budgetlm.records import RunRecord
from budgetlm.search import ladder
from budgetlm.search.engines.faults import Faults
from budgetlm.search.engines.modelled import Drawn, imagined_landscape, random_recipes
from budgetlm.search.engines.simulated import simulate
from budgetlm.search.jobs import RungJob
from budgetlm.search.plan import Plan
from budgetlm.search.rehearse import guessed_plan, imagine
from budgetlm.search.study import prepare
from budgetlm.watch import Watcher

DEVICES = (1, 2, 4, 16, 64)
OTHER_SHARES = (0.0, 0.2)
"""Of the time on the wall for the highest rung, in the question of the ladder; where they lead to another ladder."""
TARGET_HOURS = 24.0
DEVICE_HOURS, WALL_HOURS = 8.0, 2.0
LEAST_RUNG_SECONDS = 80.0
"""So that a search is of a few hundred runs, and its forecasts of a minute."""
SPACE = {"optimizer": "muon", "schedule": "linear", "warmup": 0.05, "cooldown": 0.3, "cooldown_shape": "linear"}
"""What is not searched, so that a forecast is fitted in less time: depth, width, batch, peak rate and weight decay are."""
RIVALS = 1000
RESTARTS = 3
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the budget, after which it is asked what would have been chosen."""
COLOURS = {"hours": "#2166ac", "ladder": "#888888", "wall": "#b2182b"}


@dataclass(frozen=True)
class Case:
    """A search to be simulated."""

    question: str
    devices: int
    hours: float
    """Device-hours."""
    failures: str
    seed: int
    share: float = ladder.WALL_SHARE
    """Of the time on the wall that the highest rung may take; 0: as if there were one device."""


def cases(only: list[str], seeds: int, rates: list[str], numbers: list[int]) -> list[Case]:
    """All that is asked for."""
    found = []
    for seed in range(seeds):
        if "hours" in only:
            found += [Case("hours", n, DEVICE_HOURS, "none", seed) for n in numbers]
        if "ladder" in only:
            others = [Case("ladder", n, DEVICE_HOURS, "none", seed, share) for n in numbers for share in OTHER_SHARES]
            found += [case for case in others if rungs_of(case) != rungs_of(replace(case, share=ladder.WALL_SHARE))]
        if "wall" in only:  # four devices are those above
            found += [Case("wall", n, n * WALL_HOURS, "none", seed) for n in numbers if n * WALL_HOURS != DEVICE_HOURS]
    if "day" in only:
        found += [Case("day", 64, 64 * 24.0, failures, 0) for failures in rates]
    return found


def study(hours: float) -> tuple[StudyConfig, Plan, Tokens]:
    """A study on published H100s."""
    table = {"name": "simulated", "budget": {"hours": hours, "target_hours": TARGET_HOURS}, "space": SPACE}
    config = study_config(table | {"search": {"least_rung_seconds": LEAST_RUNG_SECONDS}})
    tokens = prepare(config, 4096, cache_folder(), Watcher())
    return config, guessed_plan(config, published_passport("h100"), tokens), tokens


def rungs_of(case: Case) -> list[float]:
    """Of the case's devices, by the case's rule."""
    devices = case.devices if case.share else 1
    with mock.patch.object(ladder, "WALL_SHARE", case.share):
        return ladder.plan_rungs(3600 * case.hours, 3600 * TARGET_HOURS, LEAST_RUNG_SECONDS, devices=devices)


def outcome(job: RungJob, plan: Plan, drawn: Drawn) -> RunRecord:
    u = math.log(job.config.seconds / job.label.target_seconds)
    bpb = drawn.bpb(job.label.recipe, u, f"{job.label.run} {job.config.seed}")
    return replace(imagine(job, plan.world), bpb=bpb)


def searched(case: Case) -> dict:
    """One search, and how good what it chose is."""
    config, plan, tokens = study(case.hours)
    plan, seed = replace(plan, rungs=rungs_of(case)), case.seed
    drawn = imagined_landscape(plan.space).draw(seed)
    faults = Faults() if case.failures == "none" else Faults.read(case.failures, seed)
    began = time.process_time()
    found = simulate(
        plan,
        tokens,
        config.budget.seconds,
        partial(outcome, plan=plan, drawn=drawn),
        seed,
        case.devices,
        stops_early=False,
        faults=faults,
        max_restarts=RESTARTS,
    )
    seconds = time.process_time() - began
    done = [r for r in found.records if r.state == "done"]
    best = min(map(drawn.bpb, random_recipes(plan.space, RIVALS, seed)))
    best = min([best, *(drawn.bpb(r.recipe) for r in done if r.rung == 0)])
    choice = choose(found.records, plan.target_seconds)
    assert choice
    truth = {r.trial: drawn.bpb(r.recipe) for r in done}
    return {
        "rungs": plan.rungs,
        "runs": len(done),
        "trials": len(truth),
        "regret": 100 * (truth[choice.trial] / best - 1),
        "regret_by": [_regret_by(share * config.budget.seconds, found.moments, truth, best) for share in SHARES],
        "default": 100 * (truth[0] / best - 1),
        "forecast": choice.forecast.mean / truth[choice.trial] - 1,
        "toll": asdict(found.toll),
        "utilisation": found.toll.utilisation,
        "summary": found.toll.summary(),
        "processor_seconds": seconds,
    }


def _regret_by(spent: float, moments: list[Moment], truth: dict[int, float], best: float) -> float | None:
    """Regret of what would have been chosen when so many device-seconds were spent; None before any run had ended."""
    chosen = [moment.trial for moment in moments if moment.spent_seconds <= spent]
    return 100 * (truth[chosen[-1]] / best - 1) if chosen else None


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean, and its 95 % interval by the bootstrap."""
    chance, array = np.random.default_rng(0), np.array(values)
    means = array[chance.integers(len(array), size=(2000, len(array)))].mean(axis=1)
    return float(array.mean()), *np.quantile(means, (0.025, 0.975)).tolist()


def known(values: Iterable[float | None]) -> float | None:
    """The mean, where each is known."""
    values = list(values)
    return None if None in values else float(np.mean([v for v in values if v is not None]))


def rows_of(lines: list[dict], question: str, devices: int, share: float = ladder.WALL_SHARE) -> list[dict]:
    """The searches that answer a question for a number of devices."""
    shared = question == "wall" and devices * WALL_HOURS == DEVICE_HOURS
    asked = ("hours" if shared else question), devices, share
    return [line for line in lines if (line["question"], line["devices"], line["share"]) == asked]


def tell(lines: list[dict]) -> None:
    print(
        "question  share  devices  device-hours  wall hours  trials  runs  regret % (95 %)          use %  processor s   n"
    )
    asked = [("hours", ladder.WALL_SHARE), *(("ladder", share) for share in OTHER_SHARES), ("wall", ladder.WALL_SHARE)]
    for question, share in asked:
        for devices in DEVICES:
            rows = rows_of(lines, question, devices, share)
            if not rows:
                continue
            mean, low, high = interval([r["regret"] for r in rows])
            wall, trials, runs, use, seconds = (
                float(np.mean([get(r) for r in rows]))
                for get in (
                    lambda r: r["toll"]["wall_seconds"] / 3600,
                    lambda r: r["trials"],
                    lambda r: r["runs"],
                    lambda r: 100 * r["utilisation"],
                    lambda r: r["processor_seconds"],
                )
            )
            print(
                f"{question:8} {share:6.2f} {devices:8} {rows[0]['hours']:13.1f} {wall:11.2f} {trials:7.0f} {runs:5.0f}  "
                f"{mean:5.2f} ({low:5.2f} to {high:5.2f})  {use:10.1f} {seconds:12.1f} {len(rows):3}"
            )
    for question, share in asked:
        for devices in DEVICES:
            rows = [r for r in rows_of(lines, question, devices, share) if "regret_by" in r]
            if rows:
                means = [known(r["regret_by"][i] for r in rows) for i in range(len(SHARES))]
                said = "  ".join("    -" if mean is None else f"{mean:5.2f}" for mean in means)
                print(
                    f"{question:8} {share:6.2f} {devices:8} regret %, when {', '.join(map(str, SHARES))} of the budget are spent:  {said}  n {len(rows)}"
                )
    for line in lines:
        if line["question"] == "day":
            print(
                f"day, {line['failures']}: {line['summary']}; {line['trials']} trials, regret {line['regret']:.2f} %, {line['processor_seconds']:.0f} s of processor time"
            )


def plot(lines: list[dict], path: Path) -> None:
    """Regret against devices, and against time, as SVG."""
    width, height, left, bottom = 560, 300, 60, 250
    asked = {q: 0.0 if q == "ladder" else ladder.WALL_SHARE for q in COLOURS if any(line["question"] == q for line in lines)}
    groups = [rows_of(lines, q, n, share) for q, share in asked.items() for n in DEVICES]
    ends = [interval([r["regret"] for r in rows]) for rows in groups if rows]
    most = 1.1 * max(high for _, _, high in ends)

    def place(devices: int, regret: float) -> tuple[float, float]:
        return left + 40 + 105 * DEVICES.index(devices), bottom - 220 * regret / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height}" font-family="sans-serif" font-size="12">'
    ]
    parts.append(f'<rect width="{2 * width}" height="{height}" fill="white"/>')
    parts += [f'<path d="M{left} 20V{bottom}H{width - 20}" fill="none" stroke="#444"/>']
    for devices in DEVICES:
        parts.append(f'<text x="{place(devices, 0)[0]:.0f}" y="{bottom + 18}" text-anchor="middle">{devices}</text>')
    parts.append(f'<text x="{width / 2}" y="{bottom + 38}" text-anchor="middle">devices</text>')
    for k in range(5):
        y = place(1, most * k / 4)[1]
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * k / 4:.1f}</text>')
    parts.append('<text x="14" y="135" transform="rotate(-90 14 135)" text-anchor="middle">regret, %</text>')
    said = {
        "hours": f"{DEVICE_HOURS:g} device-hours together",
        "ladder": "the same with the ladder of one device",
        "wall": f"{WALL_HOURS:g} h of each device",
    }
    for shift, (question, share) in enumerate(asked.items()):
        colour = COLOURS[question]
        points = []
        for devices in DEVICES:
            rows = rows_of(lines, question, devices, share)
            if rows:
                mean, low, high = interval([r["regret"] for r in rows])
                x, y = place(devices, mean)
                x += 8 * shift - 4
                points.append(f"{x:.1f},{y:.1f}")
                parts.append(
                    f'<path d="M{x:.1f} {place(1, low)[1]:.1f}V{place(1, high)[1]:.1f}" stroke="{colour}"/>'
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
                )
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{left + 20}" y="{34 + 18 * shift}" fill="{colour}">{said[question]}</text>')
    path.write_text("\n".join([*parts, *_against_time(lines, width), "</svg>", ""]))


def _against_time(lines: list[dict], x: float) -> list[str]:
    """Regret against hours on the wall, with the same device-hours: parts of a picture, from x on."""
    curves = {}
    for devices in DEVICES:
        rows = [r for r in rows_of(lines, "hours", devices) if "regret_by" in r]
        means = [known(r["regret_by"][i] for r in rows) for i in range(len(SHARES))] if rows else []
        curves[devices] = [
            (s * DEVICE_HOURS / devices, mean) for s, mean in zip(SHARES, means, strict=False) if mean is not None
        ]
    ends = [point for curve in curves.values() for point in curve]
    if not ends:
        return []
    least, longest, most = min(t for t, _ in ends), max(t for t, _ in ends), 1.1 * max(r for _, r in ends)
    left, bottom, right = x + 60, 250.0, x + 500

    def place(hours: float, regret: float) -> tuple[float, float]:
        return left + (right - left) * math.log(hours / least) / math.log(longest / least), bottom - 220 * regret / most

    parts = [f'<path d="M{left} 20V{bottom}H{right + 40}" fill="none" stroke="#444"/>']
    for k in range(5):
        y = place(least, most * k / 4)[1]
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * k / 4:.1f}</text>')
    parts += [
        f'<text x="{place(hours, 0)[0]:.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{hours:g}</text>'
        for hours in (0.01, 0.03, 0.1, 0.3, 1, 3, 10)
        if least <= hours <= longest
    ]
    parts.append(
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 38:.0f}" text-anchor="middle">hours on the wall, {DEVICE_HOURS:g} device-hours in all</text>'
    )
    for shade, (devices, curve) in zip((0, 45, 90, 135, 180), curves.items(), strict=True):
        if curve:
            points = [place(*point) for point in curve]
            drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            colour = f"rgb({shade},{shade // 2 + 60},{200 - shade})"
            parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{points[-1][0] + 4:.0f}" y="{points[-1][1]:.0f}" fill="{colour}">{devices}</text>')
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("simulation.jsonl"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=["hours", "ladder", "wall", "day"])
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES, choices=DEVICES)
    parser.add_argument("--failures", nargs="+", default=["none", "llama3", "opt175b", "spot"], help="of the day")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    lines = [json.loads(line) for line in chosen.results.read_text().splitlines()] if chosen.results.exists() else []
    known = {Case(**{field.name: line[field.name] for field in fields(Case)}) for line in lines}
    for case in cases(chosen.only, chosen.seeds, chosen.failures, chosen.devices):
        if case not in known:
            found = searched(case)
            lines.append(asdict(case) | found)
            with chosen.results.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(
                f"{case.question} {case.share:g} {case.devices} devices, seed {case.seed}: regret {found['regret']:.2f} %; {found['summary']}",
                flush=True,
            )
    tell(lines)
    if chosen.plot:
        plot(lines, chosen.plot)


if __name__ == "__main__":
    main()
