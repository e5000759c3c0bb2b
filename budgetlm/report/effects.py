"""What matters: importances, and what the surface says of recipes that differ from the chosen one in one knob or two. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from budgetlm.model.size import ModelConfig, round_width
from budgetlm.model.size import parameters as parameters_of
from budgetlm.recipe.recipe import PARAMETERS
from budgetlm.records import RunRecord
from budgetlm.report.facts import Facts
from budgetlm.report.judgement import Judgement

PLACES = 15
"""Values of a knob at which its effect is worked out; of a map, along each side."""
MOST_PLACES = 24
"""Of a knob that goes in steps."""
DRAWS = 300
SHAPE = (
    "vocab_size",
    "context_length",
    "kv_groups",
    "window",
    "mlp_ratio",
    "tie_embeddings",
    "norm_embedding",
    "share_layers",
    "embedding_rank",
)


def importances(importance: Mapping[str, Any]) -> pd.DataFrame:
    """How much each parameter decides which trials are good, with the interval over trials drawn anew where there is one."""
    intervals = importance.get("intervals", {})
    rows = [(name, value, *intervals.get(name, (None, None))) for name, value in importance["importance"].items()]
    return pd.DataFrame(rows, columns=["parameter", "importance", "low", "high"]).sort_values("importance", ascending=False)


def searched(facts: Facts) -> list[str]:
    """Names of the parameters of which more than one value was searched."""
    space = facts.plan["space"]
    return [n for n, d in space.items() if d["kind"] != "Fixed" and len(d.get("values", (0, 1))) > 1]


def effects(facts: Facts, judgement: Judgement) -> pd.DataFrame:
    """A row a value of a knob: by how many percent the loss at the target changes if the chosen recipe had it; mean and central 80 %."""
    columns = ["parameter", "value", "percent", "low", "high"]
    base = chosen_recipe(facts.records, judgement)
    if base is None or judgement.fitted is None:
        return pd.DataFrame(columns=columns)
    wanted = [(name, value) for name in searched(facts) for value in values_of(facts, name)]
    changes = _percent(judgement, base, [{**base, name: value} for name, value in wanted])
    mean, (low, high) = changes.mean(axis=0), np.quantile(changes, (0.1, 0.9), axis=0)
    rows = [(*w, *found) for w, *found in zip(wanted, mean.tolist(), low.tolist(), high.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=columns)


def rate_by_batch(facts: Facts, judgement: Judgement) -> pd.DataFrame:
    """The same for learning rate and batch together, each as at the target."""
    return _map(facts, judgement, "peak_lr", "batch_tokens")


def depth_by_width(facts: Facts, judgement: Judgement) -> pd.DataFrame:
    """The same for depth and width, and the parameters that such a model has at the target."""
    frame = _map(facts, judgement, "depth", "width")
    base, world = chosen_recipe(facts.records, judgement) or {}, facts.plan["world"]
    given = {name: {**world, **base}[name] for name in SHAPE if name in {**world, **base}}
    shapes = frame[["depth", "width"]].itertuples(index=False)
    frame["parameters"] = [
        parameters_of(ModelConfig(**given, depth=int(depth), width=round_width(width))) for depth, width in shapes
    ]
    return frame


def chosen_recipe(records: Sequence[RunRecord], judgement: Judgement) -> dict[str, Any] | None:
    """The chosen trial's recipe."""
    choice = judgement.choice
    return next((r.recipe for r in records if choice and r.trial == choice.trial), None)


def values_of(facts: Facts, name: str) -> list[Any]:
    """Values over the searched range of a knob; of one that has words only those that were tried."""
    domain = facts.plan["space"][name]
    tried = [r.recipe[name] for r in facts.records if name in r.recipe]
    if domain["kind"] == "Fixed":
        return [domain["value"]]
    if "values" in domain:
        return [value for value in domain["values"] if value in tried]
    low, high, step = float(domain["low"]), float(domain["high"]), domain.get("step", 0)
    if step and (high - low) / step < MOST_PLACES:
        return [round(v) for v in np.arange(low, high + step / 2, step).tolist()]
    grid = np.geomspace(low, high, PLACES) if domain.get("log") and low > 0 else np.linspace(low, high, PLACES)
    whole = PARAMETERS[name].type is int if name in PARAMETERS else False
    return list(dict.fromkeys(round(v) if whole else v for v in grid.tolist()))


def _map(facts: Facts, judgement: Judgement, down: str, across: str) -> pd.DataFrame:
    columns = [down, across, "percent", "spread"]
    base = chosen_recipe(facts.records, judgement)
    both = [down, across]
    if base is None or judgement.fitted is None or any(name not in searched(facts) for name in both):
        return pd.DataFrame(columns=columns)
    cells = [(a, b) for a in values_of(facts, down) for b in values_of(facts, across)]
    changes = _percent(judgement, base, [{**base, down: a, across: b} for a, b in cells])
    found = zip(cells, changes.mean(axis=0).tolist(), changes.std(axis=0).tolist(), strict=True)
    return pd.DataFrame([(*cell, mean, spread) for cell, mean, spread in found], columns=columns)


def _percent(judgement: Judgement, base: Mapping[str, Any], recipes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Draws of how much the loss of recipes differs from that of the base, in percent, shape (draws, recipes)."""
    assert judgement.fitted
    draws = judgement.fitted.draws_of([base, *recipes], DRAWS)
    changes: np.ndarray = 100 * (draws[:, 1:] / draws[:, :1] - 1)
    return changes
