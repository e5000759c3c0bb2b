"""Frames and words -> one HTML file that opens anywhere, without a network.

Its data is carried once, compressed, as text that no browser takes for code; the figures are drawn from it by the scripts beside it
(`assets/`), with d3. Every string from outside is escaped here, and set as text there. What fails is replaced by its error and loses
nothing but itself. The page's own policy allows these scripts by their fingerprints, and no connection.
"""

import base64
import hashlib
import html
import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from budgetlm.budget.clock import duration
from budgetlm.budget.ledger import SEARCH
from budgetlm.report import effects, frames, words
from budgetlm.report.embedded import DIGITS, PLACE, as_values, pack, records_from
from budgetlm.report.facts import Facts
from budgetlm.report.judgement import Judgement, judge

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "d3.min.js",
    "data.js",
    "chart.js",
    "figures.js",
    "ladder.js",
    "effects.js",
    "parallel.js",
    "trials.js",
    "page.js",
)

SECTIONS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "verdict": (
        "Verdict",
        "",
        [("verdict", "The forecast, what was expected of the default recipe, and what finals reached.")],
    ),
    "hours": (
        "Where the hours went",
        "spending",
        [
            ("spending", "Device time of each account by purpose."),
            (
                "timeline",
                "When each device was at which run, coloured by rung; in red what did not come to a measured end.",
            ),
        ],
    ),
    "ladder": (
        "The ladder",
        "",
        [
            (
                "ladder",
                "Loss against compute. A line is a recipe, its points the miniatures trained for longer and longer; the fan is what "
                "the chosen one is expected to reach on its way to the target, the broken line what all runs have in common.",
            )
        ],
    ),
    "forecast": (
        "Best forecast against hours spent",
        "another_hour",
        [
            (
                "history",
                "The best forecast as it was known then, with its 80 % interval, and what was expected of the default recipe.",
            ),
            (
                "worth",
                "What more hours are expected to gain: in the search, if new trials are like the newest, and in the final.",
            ),
        ],
    ),
    "matters": (
        "What matters",
        "importance",
        [
            ("importances", "Importance of each searched parameter."),
            (
                "effects",
                "What the loss at the target would be if the chosen recipe had another value: change in percent, with 80 % interval.",
            ),
            (
                "rate_by_batch",
                "Learning rate and batch, both as at the target, where transfer has brought all rungs: change in percent.",
            ),
            ("depth_by_width", "Depth and width at the target, with lines of equal parameters: change in percent."),
            (
                "parallel",
                "Every trial as a line through its parameters, coloured by its forecast. Drag along an axis to keep a part of it.",
            ),
        ],
    ),
    "trials": ("Trials", "reasons", [("trials", ""), ("compare", "Curves of the selected trials.")]),
    "checks": (
        "Compression, predictions, receipts",
        "oracle",
        [
            (
                "compression",
                "Loss against size and speed of what would be deployed: trials as they are forecast, the front among those that climbed highest, finals as measured.",
            ),
            ("oracle", "Predicted against measured speed and memory of every run; on the line both agree."),
            ("receipts", "Forecasts of finals before they began, with 80 % intervals, and what came of them."),
        ],
    ),
    "final": (
        "The final",
        "final",
        [
            ("final", "Validation loss of finals on their way, and the forecast made before them."),
            (
                "throughput",
                "Speed, use of the device (by the ceiling that the passport measured: above 100 % it was measured too low, as on a busy machine), "
                "learning rate and gradients over the finals' time; vertical lines are interruptions.",
            ),
        ],
    ),
    "reproduce": ("To reproduce", "", []),
}
"""The order of reading: heading, what is said first, and figures with their captions."""


def page(facts: Facts, *, live: bool = False) -> str:
    """The whole page.

    Args:
        live: whether it will ask whoever has sent it for news.
    """
    data = page_data(facts)
    script = "\n".join(f"(() => {{\n{source}\n}})();" if name != "d3.min.js" else source for name, source in _scripts())
    style = _asset("style.css")
    policy = (
        f"default-src 'none'; script-src '{_fingerprint(script)}'; style-src '{_fingerprint(style)}'; img-src data: blob:; "
        f"connect-src '{'self' if live else 'none'}'; base-uri 'none'; form-action 'none'"
    )
    told = data["words"]
    navigation = "".join(f'<a href="#{key}">{html.escape(title)}</a>' for key, (title, _, _) in SECTIONS.items())
    sections = "\n".join(_section(key, told) for key in SECTIONS)
    return (
        f'<!doctype html><html lang="en"{" data-live" if live else ""}><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html.escape(facts.name)} - budgetlm</title><style>{style}</style></head><body>'
        '<a class="skip" href="#verdict">To the verdict</a>'
        f'<header><div><h1>{html.escape(facts.name)}</h1><p class="soft" data-words="subtitle">{html.escape(told["subtitle"])}</p></div>'
        '<button type="button" id="theme" aria-label="Switch between light and dark">Dark or light</button></header>'
        f'<nav aria-label="Sections">{navigation}</nav><main>{sections}</main>'
        '<footer class="soft">Made by budgetlm. This file needs no network; '
        "<code>budgetlm report --from</code> makes it again from itself.</footer>"
        f'<script type="text/plain" id="{PLACE}">{pack(data)}</script><script>{script}</script></body></html>\n'
    )


def page_data(facts: Facts) -> dict[str, Any]:
    """What the scripts draw from: facts, frames that failed or not, and words.

    All of it comes from what is embedded, rounded as that is, so that a page can make itself again to the byte.
    """
    values = as_values(facts)
    facts = replace(facts, records=records_from(values["records"]))
    judgement = judge(facts.records, facts.target_seconds, facts.objectives)
    made = make_frames(facts, judgement)
    shown = {name: _columns(frame) if isinstance(frame, pd.DataFrame) else {"error": frame} for name, frame in made.items()}
    return {"facts": values, "frames": shown, "words": _words(facts, judgement, made)}


def make_frames(facts: Facts, judgement: Judgement) -> dict[str, pd.DataFrame | str]:
    """Every frame that the page draws by name, or the traceback of one that could not be made."""
    records = facts.records
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "trials": lambda: frames.trials(records, judgement),
        "spending": lambda: frames.spending(facts.accounts),
        "timeline": lambda: frames.timeline(records),
        "paths": lambda: frames.paths(records, judgement),
        "law": lambda: frames.law(judgement),
        "history": lambda: frames.history(facts),
        "worth": lambda: frames.worth(facts, judgement),
        "importances": lambda: effects.importances(facts.importance),
        "effects": lambda: effects.effects(facts, judgement),
        "rate_by_batch": lambda: effects.rate_by_batch(facts, judgement),
        "depth_by_width": lambda: effects.depth_by_width(facts, judgement),
        "receipts": lambda: frames.all_receipts(facts.receipts),
        "compression": lambda: frames.compression(facts, judgement),
        "final_parts": lambda: frames.final_parts(facts),
    }
    return {name: _or_error(make) for name, make in makers.items()}


def _or_error(make: Callable[[], pd.DataFrame]) -> pd.DataFrame | str:
    try:
        return make()
    except Exception:  # noqa: BLE001  # one figure must never cost the page
        return traceback.format_exc(limit=-3)


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    return {"columns": {str(name): [_value(v) for v in frame[name].tolist()] for name in frame.columns}}


def _value(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _words(facts: Facts, judgement: Judgement, made: Mapping[str, pd.DataFrame | str]) -> dict[str, Any]:
    """Everything that is said; in place of what rests on a frame that failed, nothing."""
    known = {name: frame for name, frame in made.items() if isinstance(frame, pd.DataFrame)}
    none = pd.DataFrame()
    device = facts.plan["passport"].get("name")
    search = facts.accounts.get(SEARCH)
    return {
        "subtitle": f"What to train for {duration(facts.target_seconds)} on {device}, and why.",
        "cards": [asdict(card) for card in words.cards(facts, judgement)],
        "verdict": words.verdict(facts, judgement),
        "spending": words.spending(facts),
        "another_hour": words.another_hour(known.get("worth", none), search.stopped_because if search else ""),
        "importance": words.importance(known.get("importances", none), facts.importance["trials"]),
        "reasons": words.reasons(facts.records),
        "oracle": words.oracle(frames.oracle(facts.records)),
        "receipts": words.receipts(facts),
        "final": words.final(facts),
        "reproduce": words.reproduce(facts),
        "chosen": judgement.choice.trial if judgement.choice else None,
        "searched": effects.searched(facts),
    }


def _section(key: str, told: Mapping[str, Any]) -> str:
    title, first, figures = SECTIONS[key]
    said = f'<p data-words="{first}">{html.escape(told[first])}</p>' if first else ""
    before = _verdict(told) if key == "verdict" else _reproduce(told) if key == "reproduce" else ""
    after = f'<p data-words="receipts">{html.escape(told["receipts"])}</p>' if key == "checks" else ""
    drawn = "".join(_figure(name, caption) for name, caption in figures)
    return f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{html.escape(title)}</h2>{said}{before}{drawn}{after}</section>'


def _figure(name: str, caption: str) -> str:
    said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure id="figure-{name}" data-figure="{name}"><div class="plot"><p class="soft">This needs JavaScript.</p></div>{said}</figure>'


def _verdict(told: Mapping[str, Any]) -> str:
    cards = "".join(
        f'<div class="card {html.escape(c["tone"])}"><b>{html.escape(c["value"])}</b><span>{html.escape(c["label"])}</span></div>'
        for c in told["cards"]
    )
    said = "".join(f"<p><b>{html.escape(head)}:</b> {html.escape(text)}</p>" for head, text in told["verdict"])
    return f'<div class="cards" id="cards">{cards}</div><div id="sentences">{said}</div>'


def _reproduce(told: Mapping[str, Any]) -> str:
    return "".join(f"<h3>{html.escape(head)}</h3><pre>{html.escape(text)}</pre>" for head, text in told["reproduce"]) + (
        '<h3>The records</h3><p>This page carries every record and curve. With pandas:</p><pre id="pandas">'
        + html.escape(PANDAS)
        + "</pre>"
    )


PANDAS = """import base64, json, pathlib, re, zlib, pandas
text = pathlib.Path("page.html").read_text()
data = json.loads(zlib.decompress(base64.b64decode(re.search('id="study">([^<]+)', text)[1])))
records = data["facts"]["records"]
runs = pandas.DataFrame(records["columns"]).assign(**records["same"])"""


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _scripts() -> list[tuple[str, str]]:
    return [(name, _asset(name)) for name in SCRIPTS]


def _fingerprint(source: str) -> str:
    """As a policy names a script: browsers hash exactly what stands between the tags."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def as_json(made: Mapping[str, pd.DataFrame | str]) -> str:
    """Frames for scripts: name -> rows, or the error of one that failed."""
    shown = {
        name: json.loads(frame.to_json(orient="records", double_precision=12))
        if isinstance(frame, pd.DataFrame)
        else {"error": frame}
        for name, frame in made.items()
    }
    return json.dumps(shown, indent=1) + "\n"
