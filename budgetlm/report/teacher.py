"""What the page says of a teacher: what learning from it is expected to be worth, and what its own training would have bought instead.

A teacher that is there costs its forward passes, which are charged with every step. One that is trained for the purpose costs its training
too, and that time is usually better spent on a model without one (Busbridge et al. 2025, "Distillation Scaling Laws", arXiv:2502.08606).
"""

from collections.abc import Collection, Mapping

from budgetlm.budget.clock import duration
from budgetlm.forecast.fit import Forecast
from budgetlm.report.facts import Facts
from budgetlm.report.judgement import Judgement

DISTIL = "distil"
"""The compression whose runs learn from a teacher."""


def taught(facts: Facts, judgement: Judgement) -> list[tuple[str, str]]:
    """A sentence of the verdict, with what it is about; none where no trial learnt from a teacher, or nothing can be forecast."""
    rungs = [r for r in facts.records if r.kind == "rung"]
    pupils = {r.trial for r in rungs if DISTIL in str(r.recipe.get("compression")).split("+")}
    if not pupils or judgement.fitted is None or not judgement.forecasts:
        return []
    took, target = max(r.teacher_seconds for r in rungs), facts.target_seconds
    now, later = judgement.fitted.along([target, target + took])
    others = now.keys() - pupils
    if not others:
        return [("Teacher", "all trials learnt from it, so there is nothing to hold them against.")]
    if not pupils & now.keys():
        return [("Teacher", "no trial that learns from it has been measured.")]
    said = (
        f"with it {_best(now, pupils & now.keys())} is forecast after {duration(target)}, without it {_best(now, others)}."
    )
    if not took:
        return [("Teacher", f"{said} How long its own training took its folder does not say.")]
    bought = f"{duration(target + took)} without a teacher would come to {_best(later, others)}"
    return [("Teacher", f"{said} Its own training took {duration(took)}: were that to be paid for, too, {bought}.")]


def _best(forecasts: Mapping[int, Forecast], trials: Collection[int]) -> str:
    trial = min(trials, key=lambda n: forecasts[n].mean)
    low, high = forecasts[trial].interval
    return f"{forecasts[trial].mean:.3f} ({low:.3f} to {high:.3f}, trial {trial})"
