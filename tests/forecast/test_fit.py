import math
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest

from budgetlm.forecast.fit import fit
from tests.conftest import record


def ladder(trial, level, exponent=0.2, floor=0.5, shares=(1 / 64, 1 / 16), noise=0.0, chance=None):
    """Records of a recipe that follows a power law, and what it would reach at the target."""

    def law(share):
        return floor + math.exp(level - exponent * math.log(share))

    jitter = (lambda: math.exp(chance.gauss(0, noise))) if chance else (lambda: 1.0)
    records = [record(trial, k, 1000 * s, floor + (law(s) - floor) * jitter()) for k, s in enumerate(shares)]
    return records, law(1.0)


def test_a_power_law_fitted_to_its_own_points_comes_back():
    records, truths = [], []
    for trial in range(8):
        made, truth = ladder(trial, level=0.05 * trial - 0.4, shares=(1 / 256, 1 / 64, 1 / 16, 1 / 4))
        records += made
        truths.append(truth)
    forecasts = fit(records, 1000)
    for trial, truth in enumerate(truths):
        low, high = forecasts[trial].interval
        assert forecasts[trial].mean == pytest.approx(truth, rel=0.03)
        assert low < truth < high


def test_trials_stopped_at_different_rungs_are_ordered_by_what_they_would_become():
    records, truths = [], {}
    for trial, level in enumerate((0.0, 0.3, -0.3, 0.15, -0.15, 0.45)):
        made, truths[trial] = ladder(trial, level, shares=(1 / 64, 1 / 16, 1 / 4)[: 1 + trial % 3])
        records += made
    forecasts = fit(records, 1000)
    assert sorted(forecasts, key=lambda t: forecasts[t].mean) == sorted(truths, key=truths.get)


def test_the_shorter_the_ladder_the_wider_the_interval():
    records = [r for t in range(4) for r in ladder(t, 0.05 * t)[0]]
    records += ladder(9, 0.0, shares=(1 / 64,))[0]
    forecasts = fit(records, 1000)
    width = {t: f.interval[1] - f.interval[0] for t, f in forecasts.items()}
    assert width[9] > 1.1 * width[0]


def test_intervals_cover_at_least_as_often_as_they_say_where_the_law_holds_and_are_not_vacuous():
    chance, hits, total, widths = random.Random(0), 0, 0, []
    for _ in range(60):
        floor, exponent = max(0.1, chance.gauss(0.45, 0.2)), max(0.05, chance.gauss(0.2, 0.08))
        records, truths = [], {}
        for trial in range(10):
            own = exponent + chance.gauss(0, 0.02)
            shares = (1 / 64, 1 / 16, 1 / 4)[: 1 + trial % 3]
            made, truths[trial] = ladder(trial, chance.gauss(0, 0.2), own, floor, shares, 0.01, chance)
            records += made
        forecasts = fit(records, 1000)
        for trial in (2, 3, 4):
            low, high = forecasts[trial].interval
            hits += low < truths[trial] < high
            widths.append((high - low) / truths[trial])
            total += 1
    assert hits / total >= 0.75
    assert statistics.fmean(widths) < 0.25


def test_a_forecast_is_a_distribution():
    forecast = fit(ladder(0, 0.0)[0] + ladder(1, 0.1)[0], 1000)[0]
    quantiles = [forecast.quantile(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert quantiles == sorted(quantiles)
    assert [forecast.probability_below(q) for q in quantiles] == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=1e-3)
    assert forecast.weights.sum() == pytest.approx(1)
    assert quantiles[0] < forecast.mean < quantiles[-1]


def test_failed_diverged_and_final_runs_are_passed_over():
    records = ladder(0, 0.0)[0]
    noise = [record(1, 0, 10, None), record(2, 0, 10, 9.0, state="diverged"), record(0, -1, 1000, 0.1, kind="final")]
    assert list(fit(records + noise, 1000)) == [0]
    assert fit(records + noise, 1000)[0].mean == fit(records, 1000)[0].mean
    assert fit(noise, 1000) == {}


def test_ten_thousand_trials_can_be_forecast():
    chance = np.random.default_rng(0)
    records = [record(t, 0, 10, 1 + chance.random()) for t in range(10_000)]
    assert len(fit(records, 1000)) == 10_000  # anything quadratic would not come back


def test_forecast_and_report_need_neither_torch_nor_optuna():
    code = "import sys, budgetlm.forecast.choose, budgetlm.report.facts; print({'torch', 'optuna'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
