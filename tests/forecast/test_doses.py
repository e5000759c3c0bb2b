import dataclasses
import math
import statistics

import numpy as np
import pytest

from budgetlm.forecast.doses import doses_of
from budgetlm.forecast.fit import fit
from tests.conftest import record

TARGET, FLOOR, SHARES = 1000.0, 0.5, (1 / 256, 1 / 64, 1 / 16)
STORED = {"int8": "rounded", "none": "whole"}


def compressed(trial, option, ratio, shares=SHARES, damage=0.05, chance=None):
    """Records of a recipe whose weights are rounded afterwards, by the law, and what it would reach at the target.

    Args:
        ratio: tokens per parameter, kept on every rung.
        damage: bits per byte that rounding adds at 20 of them.
    """
    own = 0.1 * math.log(ratio / 20) ** 2 / 4

    def law(share):
        return FLOOR + math.exp(own - 0.2 * math.log(share)) + (damage * (ratio / 20) ** 0.5 if option == "int8" else 0.0)

    width = round(64 * (20 / ratio) ** 0.25)
    recipe = {"depth": 2, "width": width, "compression": option}
    made = [
        record(
            trial,
            rung,
            TARGET * share,
            law(share) * math.exp(0.002 * chance.standard_normal() if chance else 0.0),
            recipe=recipe,
            config={"model": {"depth": 1, "width": 16}},
            tokens=int(1000 * ratio),
            compute_parameters=1000,
        )
        for rung, share in enumerate(shares)
    ]
    return made, law(1.0)


def study_of(seed):
    """Recipes of 5 to 150 tokens per parameter, half of them rounded; a third climbs to a sixteenth of the target."""
    chance = np.random.default_rng(seed)
    records, truths = [], {}
    for trial in range(14):
        ratio = 5 * 30 ** chance.random()
        shares = SHARES if trial % 3 == 0 else SHARES[:2]
        made, truths[trial] = compressed(trial, ("none", "int8")[trial % 2], ratio, shares, chance=chance)
        records += made
    return records, truths


def as_a_word(records):
    """The same records with the option as any other word, whose effect on log(loss - E) is constant but for noise."""
    return [
        dataclasses.replace(r, recipe={**r.recipe, "compression": "none", "stored": STORED[r.recipe["compression"]]})
        for r in records
    ]


def test_a_law_of_rounding_is_forecast_better_than_by_a_constant_effect_and_covered():
    by_law, by_word, inside, total = [], [], 0, 0
    for seed in range(6):
        records, truths = study_of(seed)
        forecasts, plain = fit(records, TARGET), fit(as_a_word(records), TARGET)

        def effect(found, truths=truths):
            """How far off the mean is in the difference between rounded recipes and whole ones."""
            off = {n: f.mean - truths[n] for n, f in found.items()}
            rounded = statistics.fmean(off[n] for n in off if n % 2)
            return rounded - statistics.fmean(off[n] for n in off if not n % 2)

        by_law.append(abs(effect(forecasts)))
        by_word.append(abs(effect(plain)))
        for n in truths:
            low, high = forecasts[n].interval
            inside += low < truths[n] < high
            total += 1
    assert statistics.fmean(by_law) < 0.7 * statistics.fmean(by_word)
    assert inside / total >= 0.8


def test_what_is_rounded_afterwards_weighs_more_the_nearer_the_target_and_the_longer_it_has_learnt():
    records = [*compressed(0, "none", 20)[0], *compressed(1, "int8", 20)[0], *compressed(2, "int8", 80)[0]]
    runs, finals = doses_of(records, [0, 1, 2], TARGET, 0.2)
    assert runs.shape == (9, 2)
    assert np.all(runs[:3] == 0)
    assert list(runs[3:6, 0]) == sorted(runs[3:6, 0])
    assert finals[1, 0] / runs[5, 0] == pytest.approx(16**0.2)
    assert finals[2, 0] / finals[1, 0] == pytest.approx(2)


def test_rounding_while_training_and_pruning_weigh_the_same_everywhere_and_an_option_string_is_the_sum_of_its_parts():
    options = ("none", "int8-qat", "prune", "prune+int8")
    records = [r for n, option in enumerate(options) for r in compressed(n, option, 20)[0]]
    _, finals = doses_of(records, [0, 1, 2, 3], TARGET, 0.2)
    assert finals.shape == (4, 3)  # prune, int8, int8-qat; all of the same tokens per parameter
    assert (finals > 0).sum(axis=1).tolist() == [0, 1, 1, 2]
    runs = doses_of(records[3:6], [1], TARGET, 0.2)[0]
    assert runs.shape == (3, 0)  # nothing tells it from others


def test_a_truncated_proxy_will_have_learnt_from_more_at_the_target():
    rung, _ = compressed(1, "int8", 20, shares=(1 / 16,))
    own = [dataclasses.replace(r, config={"model": {"depth": 2, "width": r.recipe["width"]}}) for r in rung]
    whole, _ = compressed(0, "none", 20, shares=(1 / 16,))
    kept, more = (doses_of([*whole, *runs], [0, 1], TARGET, 0.2) for runs in (rung, own))
    ratio = (more[1][1, 0] / more[0][1, 0]) / (kept[1][1, 0] / kept[0][1, 0])
    assert ratio == pytest.approx(16**0.5)


def test_recipes_that_compress_alike_have_no_columns():
    for options in (("none", "none"), ("int8", "int8")):
        records = [r for n, option in enumerate(options) for r in compressed(n, option, 20 + n)[0]]
        runs, finals = doses_of(records, [0, 1], TARGET, 0.2)
        assert (runs.shape, finals.shape) == ((6, 0), (2, 0))
    assert doses_of([record(0, 0, 10.0, 1.5)], [0], TARGET, 0.2)[0].shape == (1, 0)
