"""Why a final is what it is: the rule that gives its shape, and what the choice of its recipe stands on. Said, and kept beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from budgetlm.files import read_json, write_json
from budgetlm.forecast.choose import Choice
from budgetlm.forecast.evidence import evidence
from budgetlm.forecast.fit import Forecast
from budgetlm.model.size import compute_parameters
from budgetlm.recipe.oracle import expected_speed
from budgetlm.recipe.recipe import Recipe
from budgetlm.records import REASONS, RunRecord
from budgetlm.search.plan import Plan
from budgetlm.train.config import RunConfig

KEPT = "why.json"


@dataclass(frozen=True)
class Reasons:
    """Why a final is what it is, as far as was known before it began."""

    shape: str = ""
    """What is trained, and by which rule it is so large; empty in finals of old."""
    recipe: str = ""
    """Why this recipe."""
    evidence: list[str] = field(default_factory=list)
    """What the study's choice stands on, in sentences."""

    def lines(self) -> list[tuple[str, str]]:
        """What each is about, and the words."""
        said = [("shape", self.shape), ("why", self.recipe), *(("evidence", line) for line in self.evidence)]
        return [(about, words) for about, words in said if words]

    def keep(self, folder: Path) -> None:
        """Keep them in a final's folder, unless they are kept already: before the outcome is known, as a forecast is."""
        if not (folder / KEPT).exists():
            write_json(folder / KEPT, asdict(self))


def kept(folder: Path) -> Reasons:
    """Those that a final began with."""
    return Reasons(**read_json(folder / KEPT)) if (folder / KEPT).exists() else Reasons()


def reasons(
    trial: int,
    why: str,
    choice: Choice,
    records: Sequence[RunRecord],
    forecasts: Mapping[int, Forecast],
    shape: str = "",
) -> Reasons:
    """Why a trial's recipe is trained.

    Args:
        trial: whose recipe.
        why: `chosen`, `picked` or `asked for`, as in `records.REASONS`.
        choice: of the study, from its records and forecasts.
        shape: in words, from `shape_and_rule`.
    """
    chosen = f"trial {choice.trial}, {choice.why}"
    recipe = chosen if trial == choice.trial else f"trial {trial}, {REASONS[why]}; the study's choice is {chosen}"
    return Reasons(shape, recipe, evidence(choice, records, forecasts))


def shape_and_rule(recipe: Recipe, config: RunConfig, seconds: float, plan: Plan) -> str:
    """What is trained for so many device-seconds, and by which rule it is so large."""
    model, tokens = config.model, expected_speed(config, plan.world) * seconds
    amount = f"{tokens / 1e6:,.1f} M tokens, {tokens / compute_parameters(model):.1f} for each parameter that computes"
    shape = f"depth {model.depth} x width {model.width}, {amount}"
    if plan.world.init:
        return f"{shape}; that of the weights that it begins from"
    if seconds == plan.target_seconds:
        return f"{shape}; the recipe's own, as it was searched for"
    return (
        f"{shape}; the recipe's depth {recipe.depth} x width {recipe.width} for {plan.target_seconds:,.0f} s, carried to "
        f"{seconds:,.0f} s by the rule that carries it to the rungs"
    )
