"""First the numbers, then the picture: records -> DataFrame -> plotly Figure.

Every axis names its quantity and unit, every point says which run it is. Colours are Okabe and Ito's, which people with
any colour vision can tell apart.
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from budgetlm.forecast.choose import ranks_only
from budgetlm.forecast.fit import Forecast, Forecaster
from budgetlm.records import CurvePoint, RunRecord

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8a8f98"
MOST_FITS = 60
"""Points of the history for which the forecast is fitted anew; more would cost time and show nothing."""


def base(x: str, y: str, **layout: object) -> go.Figure:
    """An empty figure with the look that all share."""
    figure = go.Figure()
    figure.update_layout(
        xaxis_title=x,
        yaxis_title=y,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#6b7280"},
        legend={"orientation": "h", "y": 1.12},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        **layout,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False)
    return figure


def runs_table(records: Sequence[RunRecord], forecasts: Mapping[int, Forecast]) -> pd.DataFrame:
    """A row a run: what it was, what it cost, what came out."""
    columns = [
        "run",
        "kind",
        "trial",
        "rung",
        "state",
        "seconds",
        "bpb",
        "forecast",
        "parameters",
        "tokens",
        "text",
        "error",
    ]
    rows = []
    for r in records:
        known = forecasts.get(r.trial)
        model = r.config.get("model", {})
        shape = f"depth {model['depth']} x width {model['width']}" if model else "no shape"
        text = f"<b>{r.run}</b><br>{shape}, {r.parameters / 1e6:.2f} M parameters<br>{recipe_text(r.recipe)}"
        row = [r.run, r.kind, r.trial, r.rung, r.state, r.planned_seconds, r.bpb, known.mean if known else None]
        rows.append([*row, r.parameters, r.tokens, text, r.error])
    return pd.DataFrame(rows, columns=columns)


def recipe_text(recipe: Mapping[str, object]) -> str:
    """A recipe's values, escaped, for a hover text or a table."""
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in recipe.items()}
    return html.escape(", ".join(f"{k} {v}" for k, v in shown.items()))


def budget_table(by_account: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Seconds by account and purpose, long form."""
    rows = [(account, purpose, s) for account, purposes in by_account.items() for purpose, s in purposes.items() if s > 0]
    return pd.DataFrame(rows, columns=["account", "purpose", "seconds"])


def plot_budget(table: pd.DataFrame) -> go.Figure:
    """Where the device-seconds went: one bar an account, a colour a purpose."""
    colours = {"train": BLUE, "evaluate": GREEN, "calibrate": ORANGE, "compile": PURPLE, "checkpoint": "#56B4E9"}
    colours |= {"start": "#F0E442", "lost": RED, "other": GREY}
    figure = base(
        "share of the account's device time (%)", "", barmode="stack", height=140 + 45 * table["account"].nunique()
    )
    totals = table.groupby("account")["seconds"].sum()
    for purpose, rows in table.groupby("purpose"):
        share = 100 * rows["seconds"].to_numpy() / totals[rows["account"]].to_numpy()
        figure.add_bar(
            y=[html.escape(a) for a in rows["account"]],
            x=share,
            name=str(purpose),
            orientation="h",
            marker_color=colours.get(str(purpose), GREY),
            customdata=rows["seconds"],
            hovertemplate="%{fullData.name}: %{customdata:.1f} s (%{x:.1f} %)<extra></extra>",
        )
    return figure


def plot_ladder(
    runs: pd.DataFrame, forecasts: Mapping[int, Forecast], target_seconds: float, chosen: int | None
) -> go.Figure:
    """Every trial on its ladder, the chosen one's forecast at the target, and what finals achieved."""
    figure = base("device-seconds of the run (log scale)", "validation loss (bits per byte)", height=520)
    figure.update_xaxes(type="log")
    rungs = runs[(runs["kind"] == "rung") & runs["bpb"].notna()]
    others = [trial for trial in rungs["trial"].unique() if trial != chosen]
    for trial, rows in rungs.sort_values("seconds").groupby("trial"):
        is_chosen = trial == chosen
        figure.add_scatter(
            x=rows["seconds"],
            y=rows["bpb"],
            mode="lines+markers",
            line={"width": 3 if is_chosen else 1, "color": RED if is_chosen else BLUE},
            marker={"size": 9 if is_chosen else 6},
            opacity=1 if is_chosen else 0.45,
            name=f"trial {trial} (chosen)" if is_chosen else "trials",
            legendgroup="chosen" if is_chosen else "trials",
            showlegend=bool(is_chosen or trial == others[0]),
            text=rows["text"],
            hovertemplate="%{text}<br>%{y:.4f} bpb in %{x:.1f} s<extra></extra>",
        )
    if chosen is not None and chosen in forecasts:
        mean, (low, high) = forecasts[chosen].mean, forecasts[chosen].interval
        last = rungs[rungs["trial"] == chosen].sort_values("seconds").iloc[-1]
        figure.add_scatter(
            x=[last["seconds"], target_seconds],
            y=[last["bpb"], mean],
            mode="lines",
            line={"dash": "dot", "color": RED},
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[target_seconds],
            y=[mean],
            mode="markers",
            marker={"symbol": "diamond-open", "size": 13, "color": RED, "line": {"width": 2}},
            error_y={"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]},
            name="forecast, 80 % interval",
            hovertemplate=f"forecast {mean:.3f} bpb ({low:.3f} to {high:.3f})<extra></extra>",
        )
    finals = runs[(runs["kind"] == "final") & (runs["state"] == "done")]
    if len(finals):
        figure.add_scatter(
            x=finals["seconds"],
            y=finals["bpb"],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": GREEN},
            name="final",
            text=finals["text"],
            hovertemplate="%{text}<br>%{y:.4f} bpb in %{x:.1f} s<extra></extra>",
        )
    return figure


def history(records: Sequence[RunRecord], target_seconds: float) -> pd.DataFrame:
    """Best forecast, with what was known then, against device-hours spent; pruned and failed runs cost too."""
    rungs = [r for r in records if r.kind == "rung"]
    hours = np.cumsum([r.seconds for r in rungs]) / 3600
    places = np.linspace(1, len(rungs), min(len(rungs), MOST_FITS)).astype(int).tolist() if rungs else []
    rows, forecaster = [], Forecaster(target_seconds)
    for place in places:
        known = rungs[:place]
        forecasts = {} if ranks_only(known) else forecaster.fit(known)
        if forecasts:
            trial = min(forecasts, key=lambda n: forecasts[n].mean)
            rows.append((hours[place - 1], trial, forecasts[trial].mean, *forecasts[trial].interval))
    return pd.DataFrame(rows, columns=["device_hours", "trial", "forecast", "low", "high"])


def plot_history(table: pd.DataFrame) -> go.Figure:
    """Draw `history` as a line in its interval."""
    figure = base("device-hours spent by the search", "best forecast at the target (bits per byte)", height=380)
    x = [*table["device_hours"], *table["device_hours"][::-1]]
    band = [*table["high"], *table["low"][::-1]]
    figure.add_scatter(
        x=x,
        y=band,
        fill="toself",
        fillcolor="rgba(0,114,178,0.15)",
        line={"width": 0},
        name="80 % interval",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=table["device_hours"],
        y=table["forecast"],
        mode="lines+markers",
        line={"color": BLUE},
        name="best forecast",
        text=table["trial"],
        hovertemplate="trial %{text}: %{y:.4f} bpb after %{x:.3f} h<extra></extra>",
    )
    return figure


def plot_importance(importance: Mapping[str, float]) -> go.Figure:
    """How much each parameter decides which trials are good."""
    ordered = sorted(importance.items(), key=lambda item: item[1])
    figure = base("importance (PED-ANOVA)", "", height=120 + 28 * len(ordered))
    figure.add_bar(
        x=[value for _, value in ordered],
        y=[html.escape(name) for name, _ in ordered],
        orientation="h",
        marker_color=BLUE,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    return figure


def plot_parameters(records: Sequence[RunRecord], forecasts: Mapping[int, Forecast], names: Sequence[str]) -> go.Figure:
    """Forecast against each searched parameter; one at a time, chosen from a menu."""
    figure = base("", "forecast at the target (bits per byte)", height=380)
    recipes = {r.trial: r.recipe for r in records if r.kind == "rung" and r.trial in forecasts}
    for place, name in enumerate(names):
        values = [recipe.get(name) for recipe in recipes.values()]
        figure.add_scatter(
            x=[html.escape(v) if isinstance(v, str) else v for v in values],
            y=[forecasts[trial].mean for trial in recipes],
            mode="markers",
            marker={"size": 9, "color": BLUE, "opacity": 0.7},
            visible=place == 0,
            text=[f"trial {trial}<br>{recipe_text(recipe)}" for trial, recipe in recipes.items()],
            hovertemplate="%{text}<br>%{y:.4f} bpb<extra></extra>",
            name=name,
            showlegend=False,
        )
    logarithmic = ("peak_lr", "weight_decay", "batch_tokens")
    buttons = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"visible": [other == name for other in names]},
                {"xaxis.title.text": name, "xaxis.type": _axis_type(name, recipes, logarithmic)},
            ],
        }
        for name in names
    ]
    if names:
        figure.update_layout(updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.15, "yanchor": "top"}])
        figure.update_xaxes(title_text=names[0], type=_axis_type(names[0], recipes, logarithmic))
    return figure


def _axis_type(name: str, recipes: Mapping[int, Mapping[str, object]], logarithmic: Sequence[str]) -> str:
    if any(isinstance(recipe.get(name), str | bool) for recipe in recipes.values()):
        return "category"
    return "log" if name in logarithmic else "linear"


def plot_curves(curves: Mapping[str, Sequence[CurvePoint]]) -> go.Figure:
    """Training loss against device time, both on log scales, a line a run."""
    figure = base("device-seconds (log scale)", "training loss (nats a token, log scale)", height=440)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    palette = [BLUE, ORANGE, GREEN, RED, PURPLE, "#56B4E9", "#F0E442", GREY]
    for place, (run, points) in enumerate(curves.items()):
        figure.add_scatter(
            x=[p.seconds for p in points],
            y=[p.loss for p in points],
            mode="lines",
            line={"width": 1.5, "color": palette[place % len(palette)]},
            name=html.escape(run),
            customdata=[[p.step, p.lr, p.tokens_per_second] for p in points],
            hovertemplate="%{fullData.name}<br>step %{customdata[0]}, %{x:.1f} s: %{y:.3f} nats<br>"
            "lr %{customdata[1]:.2e}, %{customdata[2]:,.0f} tokens/s<extra></extra>",
        )
    return figure


def plot_final(curves: Mapping[str, Sequence[CurvePoint]], forecast: Mapping[str, float] | None, target: float) -> go.Figure:
    """Validation loss of the finals on their way, and the forecast that was made before them."""
    figure = base("device-seconds of the final", "validation loss (bits per byte)", height=420)
    for place, (run, points) in enumerate(curves.items()):
        measured = [p for p in points if p.bpb is not None]
        figure.add_scatter(
            x=[p.seconds for p in measured],
            y=[p.bpb for p in measured],
            mode="lines+markers",
            line={"color": [GREEN, BLUE, PURPLE, ORANGE][place % 4]},
            name=html.escape(run),
            hovertemplate="%{y:.4f} bpb at %{x:.0f} s<extra></extra>",
        )
    if forecast:
        figure.add_scatter(
            x=[target],
            y=[forecast["mean"]],
            mode="markers",
            marker={"symbol": "diamond-open", "size": 13, "color": RED, "line": {"width": 2}},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [forecast["high"] - forecast["mean"]],
                "arrayminus": [forecast["mean"] - forecast["low"]],
            },
            name="forecast, 80 % interval",
            hovertemplate="forecast %{y:.3f} bpb<extra></extra>",
        )
    return figure
