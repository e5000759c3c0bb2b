"""The pictures of concepts.md, drawn from a study that was really run: `python docs/draw.py`, in the project's folder.

Three are of reports/example.html, which carries its records and says the same at length; `transfer` is of a plan. Plain SVG, for pages on light and dark ground.
"""

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

from budgetlm.records import RunRecord
from budgetlm.report.facts import Facts
from budgetlm.report.write import facts_of_page

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "pictures"
WIDE = 720
INK, PALE, BLUE, RED, GREY = "#222", "#888", "#2b6cb0", "#c05621", "#cbd5e0"
PLANNED = (
    ("rung 0", "84 s", 2, 192, 12.8e6, 204e6),
    ("rung 1", "5.6 min", 4, 384, 31.3e6, 667e6),
    ("rung 2", "22 min", 7, 640, 76.7e6, 1.41e9),
    ("the final", "24 h", 18, 1664, 750e6, 13.8e9),
)
"""Of `budgetlm plan --hours 6 --target-hours 24 --device h100`: depth, width, parameters, tokens."""
PURPOSES = {
    "train": (BLUE, "steps"),
    "evaluate": ("#90cdf4", "evaluation"),
    "calibrate": ("#68a063", "calibration"),
    "start": ("#d69e2e", "starting"),
    "checkpoint": ("#9f7aea", "checkpoints"),
    "other": (GREY, "everything else"),
}


def text(x: float, y: float, words: str, *, at: str = "start", size: int = 13, fill: str = INK) -> str:
    """Words, anchored at their start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{at}" font-size="{size}" fill="{fill}">{escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, fill: str, stroke: str = "none") -> str:
    """A rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}" stroke="{stroke}"/>'


def line(points: Iterable[tuple[float, float]], stroke: str, width: float = 1.5, dash: str = "") -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-dasharray="{dash}"/>'


def dot(x: float, y: float, fill: str, r: float = 4) -> str:
    """A dot."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill}"/>'


def picture(name: str, high: int, says: str, parts: Iterable[str]) -> None:
    """Write one."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" font-family="sans-serif" role="img" '
        f'aria-label="{escape(says)}">'
    )
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.svg").write_text("\n".join([head, box(0, 0, WIDE, high, "#fff"), *parts, "</svg>\n"]))


def seconds(value: float) -> str:
    """In words."""
    return f"{value:,.0f} s" if value >= 10 else f"{value:.1f} s"


def budget(facts: Facts) -> None:
    """Where a budget's seconds went, search and final."""
    parts, longest = [], max(account.budget_seconds for account in facts.accounts.values())
    scale = 560 / longest
    for row, (name, account) in enumerate(sorted(facts.accounts.items(), reverse=True)):
        x, y, spent = 140.0, 40 + 70 * row, sum(account.by_purpose.values())
        parts += [text(x - 10, y + 24, "search" if name == "search" else "final", at="end")]
        for purpose, (fill, _) in PURPOSES.items():
            wide = account.by_purpose.get(purpose, 0.0) * scale
            parts.append(box(x, y, wide, 36, fill))
            x += wide
        parts.append(box(140, y, account.budget_seconds * scale, 36, "none", INK))
        left = account.budget_seconds - spent
        says = f"{spent:,.1f} of {account.budget_seconds:,.0f} device-seconds charged, {left:.1f} left; {account.by_purpose['train'] / spent:.0%} of them steps"
        parts.append(text(140, y - 6, says, fill=PALE))
    x = 140.0
    for fill, words in PURPOSES.values():
        parts += [box(x, 170, 12, 12, fill), text(x + 17, 181, words, size=12)]
        x += 30 + 6.2 * len(words)
    picture("budget", 200, "Where the seconds of a search and of its final went", parts)


def rung_runs(facts: Facts) -> list[RunRecord]:
    """Runs on rungs that came to a loss."""
    return [record for record in facts.records if record.kind == "rung" and record.bpb is not None]


def chosen_final(facts: Facts) -> RunRecord:
    """The study's final."""
    return next(record for record in facts.records if record.kind == "final")


def ladder(facts: Facts) -> None:
    """How far each trial climbed."""
    runs, final = rung_runs(facts), chosen_final(facts)
    rungs = sorted({record.rung for record in runs})
    trials = sorted({record.trial for record in runs})
    columns = [*rungs, len(rungs)]
    height = 7.0
    x = {rung: 190 + 140 * rung for rung in columns}
    parts = []
    for rung in columns:
        here = {record.trial for record in runs if record.rung == rung}
        length = final.planned_seconds if rung == len(rungs) else min(r.planned_seconds for r in runs if r.rung == rung)
        words = "the final" if rung == len(rungs) else f"rung {rung}"
        count = "1 trial" if rung == len(rungs) else f"{len(here)} trials"
        parts += [
            text(x[rung], 22, words, at="middle"),
            text(x[rung], 38, f"{seconds(length)}, {count}", at="middle", size=12, fill=PALE),
            line([(x[rung], 46), (x[rung], 54 + height * len(trials))], GREY, 1),
        ]
    for row, trial in enumerate(trials):
        y, mine = 54 + height * row, [record for record in runs if record.trial == trial]
        reached = [record.rung for record in mine] + ([len(rungs)] if trial == final.trial else [])
        fill = RED if trial == final.trial else BLUE if max(reached) == rungs[-1] else PALE
        parts += [
            line([(x[min(reached)], y), (x[max(reached)], y)], fill),
            *(dot(x[rung], y, fill, 2.6) for rung in set(reached)),
        ]
        again = sum(record.rung == rungs[-1] for record in mine) - 1
        parts += [dot(x[rungs[-1]] + 9 * (number + 1), y, fill, 2.6) for number in range(again)]
        if trial == final.trial:
            parts.append(text(x[0] - 12, y + 4, f"trial {trial}, chosen", at="end", fill=RED))
    bottom = 74 + height * len(trials)
    parts.append(text(170, 54, "trial 0", at="end", size=12, fill=PALE))
    parts.append(
        text(
            x[0],
            bottom,
            "Dots beside each other: the same trial again with other seeds, repeats and gate.",
            size=12,
            fill=PALE,
        )
    )
    picture("ladder", int(bottom + 16), "How far each trial of a search climbed", parts)


def transfer(_: Facts) -> None:
    """The default recipe of a day on an H100, and its miniatures, as a plan foretells them."""
    parts = []
    for number, (name, length, depth, width, parameters, tokens) in enumerate(PLANNED):
        middle, wide, high = (165, 285, 405, 580)[number], width / 8.0, 7 * depth
        parts += [text(middle, 20, name, at="middle"), text(middle, 36, length, at="middle", size=12, fill=PALE)]
        parts += [
            box(middle - wide / 2, 172 - high + 7 * layer, wide, 5.5, RED if name == "the final" else BLUE)
            for layer in range(depth)
        ]
        rows = [f"{depth} x {width}", _count(parameters), _count(tokens), f"{tokens / parameters:.0f}"]
        parts += [text(middle, 198 + 20 * row, words, at="middle") for row, words in enumerate(rows)]
    names = ["depth x width", "parameters", "tokens", "tokens a parameter"]
    parts += [text(8, 198 + 20 * row, words, size=11, fill=PALE) for row, words in enumerate(names)]
    picture(
        "transfer", 272, "The default recipe of a day on an H100 as its miniatures on three rungs and as the final", parts
    )


def _count(number: float) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.0f} M"


def forecast(facts: Facts) -> None:
    """What the rungs showed, what was expected of the final, and what came of it."""
    runs, final = rung_runs(facts), chosen_final(facts)
    kept = facts.forecasts_kept[final.run]
    first = min(record.planned_seconds for record in runs)
    top, low = math.log(max(record.bpb for record in runs if record.bpb)), math.log(kept["low"] * 0.96)

    def x(at: float) -> float:
        return 70 + 560 * math.log(at / first) / math.log(final.planned_seconds / first)

    def y(loss: float) -> float:
        return 20 + 250 * (top - math.log(loss)) / (top - low)

    parts = []
    for loss in (1.25, 1.5, 2.0, 2.5, 3.0):
        if low < math.log(loss) < top:
            parts += [
                line([(60, y(loss)), (660, y(loss))], "#e2e8f0", 1),
                text(52, y(loss) + 4, f"{loss:g}", at="end", size=12, fill=PALE),
            ]
    for at in sorted(
        {round(record.planned_seconds, 1) for record in runs if record.trial == final.trial} | {final.planned_seconds}
    ):
        parts.append(text(x(at), 292, seconds(at), at="middle", size=12, fill=PALE))
    parts += [dot(x(r.planned_seconds), y(r.bpb), GREY, 3) for r in runs if r.trial != final.trial and r.bpb]
    mine = {record.rung: record for record in runs if record.trial == final.trial}
    path = [(x(r.planned_seconds), y(r.bpb)) for _, r in sorted(mine.items()) if r.bpb]
    end = x(final.planned_seconds)
    parts += [line(path, BLUE), *(dot(*point, BLUE) for point in path)]
    parts += [
        line([path[-1], (end, y(kept["mean"]))], BLUE, 1.5, "5 4"),
        line([(end, y(kept["low"])), (end, y(kept["high"]))], BLUE, 5),
        dot(end, y(final.bpb or kept["mean"]), RED, 5),
        text(end - 14, y(kept["low"]) - 2, f"forecast {kept['mean']:.3f}", at="end", fill=BLUE),
        text(end - 14, y(kept["low"]) + 13, f"80 %: {kept['low']:.3f} to {kept['high']:.3f}", at="end", fill=BLUE),
        text(end + 10, y(final.bpb or kept["mean"]) + 5, f"{final.bpb:.3f}", fill=RED),
        text(end, 308, "the final", at="middle", size=12, fill=PALE),
        text(70, 308, "bits per byte against device-seconds; grey: the other trials", size=12, fill=PALE),
    ]
    picture("forecast", 320, "Losses on the rungs, the forecast of the final, and what came of it", parts)


def main() -> None:
    """Draw all of them."""
    facts = facts_of_page(ROOT / "reports" / "example.html")
    for draw in (budget, ladder, transfer, forecast):
        draw(facts)


if __name__ == "__main__":
    main()
