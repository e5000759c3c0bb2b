"""Figures and tables -> one HTML file that opens anywhere, without a network.

plotly's script is carried inside, compressed, and unpacked by the browser; every string from outside is escaped; a figure
that fails is replaced by its error and loses nothing but itself.
"""

import base64
import gzip
import html
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from budgetlm.budget.clock import duration
from budgetlm.files import write_atomic
from budgetlm.forecast.choose import RANKS_ONLY, Choice, choose
from budgetlm.forecast.fit import Forecast, fit, usable
from budgetlm.forecast.noise import measured_noise
from budgetlm.records import REASONS, CurvePoint, RunRecord, read_curve, read_records
from budgetlm.report import figures

MOST_RUNGS_DRAWN = 8
"""Trials whose curves are drawn, best first."""
STYLE = """
:root { color-scheme: light dark; --text: #1f2937; --soft: #6b7280; --line: #e5e7eb; --back: #ffffff; --card: #f8fafc; --accent: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --soft: #9ca3af; --line: #374151; --back: #111827; --card: #1f2937; --accent: #56B4E9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 1.5rem; background: var(--back); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p.soft, .soft { color: var(--soft); } .scroll { overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .8rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.45rem; } .card span { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } tr.chosen { background: var(--card); font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; overflow-x: auto; white-space: pre-wrap; font-size: .85rem; }
.error { color: #b91c1c; } .figure { min-height: 120px; }
"""
# Unpacks plotly, then draws each figure from the JSON beside it. No data is ever read as code.
SCRIPT = """
(async () => {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.appendChild(script);
  for (const place of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    await Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: "hover" });
  }
  document.body.dataset.ready = "yes";
})();
"""


LEAST_STEPS = 5
"""The speed of fewer optimisation steps than that says little."""


@dataclass(frozen=True)
class StudyFacts:
    """What the page is told beside the records: values from the study's files and its ledger, already read."""

    name: str
    folder: Path
    target_seconds: float
    budget_seconds: float
    stopped_because: str
    by_account: Mapping[str, Mapping[str, float]]
    """Account -> purpose -> device-seconds."""
    importance: Mapping[str, float]
    importance_trials: int
    parameters: Sequence[str]
    """Names of the searched parameters."""
    default: str
    """The default recipe, in words."""
    passport: Mapping[str, Any]
    plan: str
    """The plan, in words."""
    study_file: str
    forecast_kept: Mapping[str, float] | None
    """The chosen recipe's forecast as it was before its final."""
    samples: Sequence[Mapping[str, str]]
    chosen_recipe: str


def write_report(facts: StudyFacts, path: Path) -> Path:
    """Write a study's report, whole or not at all."""
    write_atomic(path, page(facts))
    return path


def page(facts: StudyFacts) -> str:
    """The whole page."""
    records = read_records(facts.folder)
    fitted = fit(records, facts.target_seconds)
    choice = choose(records, facts.target_seconds, fitted)
    forecasts = {} if choice and choice.ranks_only else fitted
    runs = figures.runs_table(records, forecasts)
    finals = [r for r in records if r.kind == "final" and r.state == "done"]
    chosen = choice.trial if choice else None
    pictures = _Pictures()
    parts = [
        f"<h1>{html.escape(facts.name)}</h1>",
        f'<p class="soft">What to train for {duration(facts.target_seconds)} on {html.escape(str(facts.passport.get("name")))}, '
        f"and why. Written by budgetlm {html.escape(str(facts.passport.get('budgetlm')))}.</p>",
        _verdict(facts, records, choice, finals),
        "<h2>Where the budget went</h2>",
        f"<p>{html.escape(_budget_text(facts))}</p>",
        pictures.add(lambda: figures.plot_budget(figures.budget_table(facts.by_account))),
        _attempts(records),
        _oracle(records),
        "<h2>Every trial on its ladder</h2>",
        '<p class="soft">A line is a recipe, its points the miniatures trained for longer and longer. The diamond is what the '
        "chosen one is expected to reach at the target; a star is what a final reached.</p>",
        pictures.add(lambda: figures.plot_ladder(runs, forecasts, facts.target_seconds, chosen)),
        "<h2>Best forecast against hours spent</h2>",
        pictures.add(lambda: figures.plot_history(figures.history(records, facts.target_seconds))) if forecasts else "",
        f'<p class="soft">There are no forecasts: {RANKS_ONLY}.</p>' if choice and choice.ranks_only else "",
        "<h2>What matters</h2>",
        _importance(facts, pictures),
        pictures.add(lambda: figures.plot_parameters(records, forecasts, facts.parameters)) if forecasts else "",
        "<h2>Loss curves</h2>",
        '<p class="soft">The best trials and the finals. Click a name to hide it, twice to see it alone.</p>',
        pictures.add(lambda: figures.plot_curves(_curves(facts.folder, records, fitted))),
        *_final_section(facts, finals, pictures),
        "<h2>All runs</h2>",
        _runs(records, forecasts, chosen),
        "<h2>Machine and plan</h2>",
        _passport(facts),
        f"<pre>{html.escape(facts.plan)}</pre>",
        "<h2>To reproduce</h2>",
        f"<pre>{html.escape(facts.study_file)}</pre>",
    ]
    script = base64.b64encode(gzip.compress(_plotly().encode(), 9)).decode()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(facts.name)} - budgetlm</title><style>{STYLE}</style></head><body>'
        + "\n".join(parts)
        + "\n".join(pictures.data)
        + f'<script type="text/plain" id="plotly">{script}</script><script>{SCRIPT}</script>'
        + "<noscript>The figures need JavaScript; the tables do not.</noscript></body></html>\n"
    )


@cache
def _plotly() -> str:
    return str(get_plotlyjs())


class _Pictures:
    """Places for figures in the page, and their data at its end."""

    def __init__(self) -> None:
        self.data: list[str] = []

    def add(self, make: Callable[[], go.Figure]) -> str:
        """A place for a figure; its error, if it cannot be made."""
        name = f"figure{len(self.data)}"
        try:
            figure = make().to_json()
        except Exception:  # noqa: BLE001  # one figure must never cost the page
            return f'<pre class="error">This figure failed:\n{html.escape(traceback.format_exc(limit=-3))}</pre>'
        assert figure is not None
        self.data.append(f'<script type="application/json" id="{name}">{figure.replace("<", chr(92) + "u003c")}</script>')
        return f'<div class="figure" data-figure="{name}"></div>'


def _verdict(facts: StudyFacts, records: Sequence[RunRecord], choice: Choice | None, finals: Sequence[RunRecord]) -> str:
    if choice is None:
        return "<p>No trial has finished a rung yet, so there is nothing to choose from.</p>"
    low, high = choice.forecast.interval
    forecast = (
        f"{choice.forecast.mean:.3f}",
        f"bits per byte forecast after {duration(facts.target_seconds)} ({low:.3f} to {high:.3f}, 80 %)",
    )
    cards = [
        (f"{choice.loss:.3f}", f"bits per byte measured on its rung; {RANKS_ONLY}") if choice.ranks_only else forecast,
        (f"trial {choice.trial}", f"chosen of {len({r.trial for r in records if r.kind == 'rung'})} trials"),
    ]
    reached = [r for r in finals if r.trial == choice.trial and r.bpb is not None] or [
        r for r in finals if r.bpb is not None
    ]
    if reached:
        final = reached[-1]
        kept = facts.forecast_kept
        verdict = ""
        if kept and final.trial == choice.trial and final.bpb is not None:
            inside = kept["low"] <= final.bpb <= kept["high"]
            verdict = f"; forecast {kept['mean']:.3f}, {'inside' if inside else 'outside'} its interval"
        full = f", {final.bpb_full:.3f} on a larger sample" if final.bpb_full else ""
        cards.append((f"{final.bpb:.3f}", f"bits per byte reached by the final{full}{verdict}"))
    spent = sum(facts.by_account.get("search", {}).values())
    cards.append((duration(spent), f"of {duration(facts.budget_seconds)} of device time spent on the search"))
    shown = "".join(f'<div class="card"><b>{html.escape(a)}</b><span>{html.escape(b)}</span></div>' for a, b in cards)
    near = ", ".join(f"trial {n}" for n in choice.within_noise[:8])
    more = f" and {len(choice.within_noise) - 8} more" if len(choice.within_noise) > 8 else ""
    group = f" It cannot be told from {near}{more}." if near else " No other trial comes within its uncertainty."
    noise = measured_noise(usable(records))
    if noise:
        group += f" Runs that differ in their seed alone differ by {noise.spread:.4f} (standard deviation, {noise.repeats} repeats)."
    default = "It is the default recipe." if choice.trial == 0 else f"The default recipe was {facts.default}."
    return (
        f'<div class="cards">{shown}</div><p><b>Train this:</b> {html.escape(facts.chosen_recipe)}.</p>'
        f"<p><b>Why:</b> {html.escape(choice.why)}.{html.escape(group)} {html.escape(default)}</p>"
    )


def _budget_text(facts: StudyFacts) -> str:
    purposes = facts.by_account.get("search", {})
    spent = sum(purposes.values())
    share = 100 * purposes.get("train", 0.0) / spent if spent else 0.0
    ended = facts.stopped_because or "it is still open"
    return (
        f"{spent:.1f} of {facts.budget_seconds:.1f} device-seconds are spent, {share:.0f} % of them on optimisation steps. "
        f"The search ended because {ended}."
    )


def _importance(facts: StudyFacts, pictures: _Pictures) -> str:
    if not facts.importance:
        return f'<p class="soft">Importances need at least 8 finished trials; there are {facts.importance_trials}.</p>'
    picture = pictures.add(lambda: figures.plot_importance(facts.importance))
    return f'<p class="soft">From {facts.importance_trials} trials; with few trials take them as a hint.</p>{picture}'


def _curves(
    folder: Path, records: Sequence[RunRecord], forecasts: Mapping[int, Forecast]
) -> dict[str, Sequence[CurvePoint]]:
    top: dict[int, RunRecord] = {}
    for record in records:
        if record.kind == "rung" and record.trial in forecasts and record.rung >= top.get(record.trial, record).rung:
            top[record.trial] = record
    best = sorted(top.values(), key=lambda r: forecasts[r.trial].mean)[:MOST_RUNGS_DRAWN]
    finals = [r for r in records if r.kind == "final"][-4:]
    return {r.run: read_curve(folder, r.run) for r in [*finals, *best]}


def _final_section(facts: StudyFacts, finals: Sequence[RunRecord], pictures: _Pictures) -> list[str]:
    if not finals:
        name = html.escape(facts.name)
        return ["<h2>The final</h2>", f'<p class="soft">Not trained yet: <code>budgetlm final --study {name}</code>.</p>']
    curves = {r.run: read_curve(facts.folder, r.run) for r in finals[-4:]}
    final = finals[-1]
    text = (
        f"{final.run}: {final.steps:,} steps, {final.tokens / 1e6:.2f} M tokens ({final.epochs:.2f} epochs, "
        f"{final.tokens_per_parameter:.0f} a parameter), {final.tokens_per_second:,.0f} tokens/s, {final.flops:.2e} FLOP, "
        f"{final.seconds:.1f} of {final.planned_seconds:.1f} device-seconds."
    )
    samples = "".join(f"<pre><b>{html.escape(s['prompt'])}</b>{html.escape(s['continuation'])}</pre>" for s in facts.samples)
    return [
        "<h2>The final</h2>",
        f"<p>{html.escape(text)}</p>",
        pictures.add(lambda: figures.plot_final(curves, facts.forecast_kept, facts.target_seconds)),
        "<h2>What it writes</h2><p class='soft'>Beginnings of validation text in bold, continued by the model.</p>" + samples
        if samples
        else "",
    ]


def _attempts(records: Sequence[RunRecord]) -> str:
    """What ended runs that did not come to a measured end, and what they cost."""
    causes: dict[str, list[float]] = {}
    for r in records:
        if r.state != "done":
            causes.setdefault(r.cause or r.state, []).append(r.seconds)
    if not causes:
        return ""
    said = "; ".join(f"{cause}: {len(costs)} ({sum(costs):.1f} s)" for cause, costs in sorted(causes.items()))
    again = len({r.run for r in records if r.state == "interrupted"} & {r.run for r in records if r.state == "done"})
    finished = f" {again} runs that were cut off have been gone on with and finished." if again else ""
    return f"<p>What ended runs, or parts of them, before they were done: {html.escape(said)}.{finished}</p>"


def _oracle(records: Sequence[RunRecord]) -> str:
    """How far the predictions, made before each run was paid for, were from what was measured."""
    pairs: dict[str, list[tuple[float, float]]] = {
        "speed": [(r.predicted_tokens_per_second, r.tokens_per_second) for r in records if r.steps >= LEAST_STEPS],
        "memory": [(r.predicted_peak_bytes, r.peak_bytes) for r in records],
    }
    said = []
    for what, values in pairs.items():
        errors = sorted(abs(p / m - 1) for p, m in values if p > 0 and m > 0)
        if errors:
            said.append(
                f"{what} by {errors[len(errors) // 2]:.0%} in the median and {errors[-1]:.0%} at worst ({len(errors)} runs)"
            )
    return f"<p>Predictions made before the runs were paid for missed {html.escape('; '.join(said))}.</p>" if said else ""


def _runs(records: Sequence[RunRecord], forecasts: Mapping[int, Forecast], chosen: int | None) -> str:
    head = [
        "run",
        "paid for as",
        "state",
        "seconds",
        "bpb",
        "forecast",
        "shape",
        "M param.",
        "M tokens",
        "tokens/s",
        "recipe, error",
    ]
    numbers = {3, 4, 5, 7, 8, 9}
    rows = []
    for r in records:
        known = forecasts.get(r.trial)
        model = r.config.get("model", {})
        cells = [
            r.run,
            r.why,
            r.state,
            f"{r.seconds:.1f}",
            f"{r.bpb:.4f}" if r.bpb is not None else "",
            f"{known.mean:.3f}" if known and r.kind == "rung" else "",
            f"{model['depth']} x {model['width']}" if model else "",
            f"{r.parameters / 1e6:.2f}",
            f"{r.tokens / 1e6:.2f}",
            f"{r.tokens_per_second:,.0f}",
        ]
        tds = "".join(f'<td class="{"number" if i in numbers else ""}">{html.escape(c)}</td>' for i, c in enumerate(cells))
        took = f"<br>began from the trunk of {html.escape(r.inherited_from)}, which had paid for {r.inherited_seconds:.1f} s"
        error = took if r.inherited_from else ""
        error += f'<br><span class="error">{html.escape(r.error)}</span>' if r.error else ""
        mark = ' class="chosen"' if r.trial == chosen else ""
        rows.append(f"<tr{mark}>{tds}<td>{figures.recipe_text(r.recipe)}{error}</td></tr>")
    ths = "".join(f'<th class="{"number" if i in numbers else ""}">{c}</th>' for i, c in enumerate(head))
    paid_for = {r.why for r in records}
    said = "; ".join(f"{why}: {meaning}" for why, meaning in REASONS.items() if why in paid_for)
    legend = f'<p class="soft">Why each was paid for. {html.escape(said)}.</p>' if said else ""
    return f'{legend}<div class="scroll"><table><thead><tr>{ths}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _passport(facts: StudyFacts) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.passport.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'
