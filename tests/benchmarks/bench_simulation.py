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
        "default": 100 * (truth[0] / best - 1),
        "forecast": choice.forecast.mean / truth[choice.trial] - 1,
        "toll": asdict(found.toll),
        "utilisation": found.toll.utilisation,
        "summary": found.toll.summary(),
        "processor_seconds": seconds,
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean, and its 95 % interval by the bootstrap."""
    chance, array = np.random.default_rng(0), np.array(values)
    means = array[chance.integers(len(array), size=(2000, len(array)))].mean(axis=1)
    return float(array.mean()), *np.quantile(means, (0.025, 0.975)).tolist()


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
    for line in lines:
        if line["question"] == "day":
            print(
                f"day, {line['failures']}: {line['summary']}; {line['trials']} trials, regret {line['regret']:.2f} %, {line['processor_seconds']:.0f} s of processor time"
            )


def plot(lines: list[dict], path: Path) -> None:
    """Regret against devices, as SVG."""
    width, height, left, bottom = 560, 300, 60, 250
    asked = {q: 0.0 if q == "ladder" else ladder.WALL_SHARE for q in COLOURS if any(line["question"] == q for line in lines)}
    groups = [rows_of(lines, q, n, share) for q, share in asked.items() for n in DEVICES]
    ends = [interval([r["regret"] for r in rows]) for rows in groups if rows]
    most = 1.1 * max(high for _, _, high in ends)

    def place(devices: int, regret: float) -> tuple[float, float]:
        return left + 40 + 105 * DEVICES.index(devices), bottom - 220 * regret / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
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
    path.write_text("\n".join([*parts, "</svg>", ""]))


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
