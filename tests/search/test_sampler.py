import random

import optuna
from optuna.trial import TrialState

from budgetlm.search.sampler import EXCERPT, GOOD, excerpt, make_sampler

DOMAINS = {
    "rate": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
    "depth": optuna.distributions.IntDistribution(1, 8),
    "shape": optuna.distributions.CategoricalDistribution(["linear", "wsd"]),
}


def finished(count, seed=0, infeasible=()):
    """Trials of random recipes; the value is the distance of the rate from 0.01, in decades."""
    chance, trials = random.Random(seed), []
    for number in range(count):
        decade = chance.uniform(-1, 1)
        params = {"rate": 10 ** (decade - 2), "depth": chance.randint(1, 8), "shape": chance.choice(["linear", "wsd"])}
        constraints = {"memory": 1.0 if number in infeasible else -1.0}
        trial = optuna.trial.create_trial(params=params, distributions=DOMAINS, value=abs(decade), constraints=constraints)
        trial.number = number
        trials.append(trial)
    return trials


def study_with(trials, sampler):
    study = optuna.create_study(sampler=sampler)
    study.add_trials(trials)
    return study


def suggest(trial):
    return {name: trial._suggest(name, domain) for name, domain in DOMAINS.items()}


def test_a_short_history_is_seen_whole():
    trials = finished(EXCERPT)
    assert excerpt(trials) == trials


def test_of_a_long_history_the_best_and_an_even_sample_are_seen():
    trials = finished(2000)
    seen = excerpt(trials)
    numbers = [t.number for t in seen]
    best = {t.number for t in sorted(trials, key=lambda t: t.value)[:GOOD]}
    assert EXCERPT - GOOD <= len(seen) <= EXCERPT
    assert numbers == sorted(numbers)
    assert best < set(numbers)
    thirds = [sum(n // 667 == k for n in set(numbers) - best) for k in range(3)]
    assert max(thirds) - min(thirds) <= 0.1 * EXCERPT
    assert 1999 in numbers
    assert excerpt(trials) == seen


def test_what_breaks_a_constraint_is_never_among_the_best():
    good = {t.number for t in sorted(finished(2000), key=lambda t: t.value)[:GOOD]}
    trials = finished(2000, infeasible=good)
    feasible = [t for t in trials if t.number not in good]
    best = {t.number for t in sorted(feasible, key=lambda t: t.value)[:GOOD]}
    assert best < {t.number for t in excerpt(trials)}


def test_what_others_are_running_is_always_seen():
    trials = finished(1000)
    for number in (3, 500, 998):
        trials[number].state, trials[number].values = TrialState.RUNNING, None
    seen = excerpt(trials)
    assert [t.number for t in seen if t.state == TrialState.RUNNING] == [3, 500, 998]
    assert len(seen) <= EXCERPT + 3


def test_a_short_history_brings_what_optunas_own_tpe_would_suggest():
    for count in (0, 30, EXCERPT - 2):
        theirs = optuna.samplers.TPESampler(seed=5, multivariate=True, group=True)
        studies = [study_with(finished(count, infeasible={1, 2}), sampler) for sampler in (make_sampler(5), theirs)]
        for _ in range(2):
            one, two = (suggest(study.ask()) for study in studies)
            assert one == two


def test_the_same_history_and_seed_give_the_same_recipe():
    one, two = (suggest(study_with(finished(800), make_sampler(3)).ask()) for _ in range(2))
    assert one == two


def test_with_a_long_history_it_still_goes_where_the_best_are():
    study = study_with(finished(1500), make_sampler(0))
    asked = []
    for _ in range(10):
        trial = study.ask()
        asked.append(suggest(trial)["rate"])
        study.tell(trial, 1.0)
    assert sum(0.008 < rate < 0.0125 for rate in asked) >= 8


def test_it_keeps_away_from_what_a_constraint_forbids():
    forbidden = {t.number for t in finished(1200) if t.params["shape"] == "wsd"}
    study = study_with(finished(1200, infeasible=forbidden), make_sampler(0))
    shapes = []
    for _ in range(10):
        trial = study.ask()
        shapes.append(suggest(trial)["shape"])
        trial.set_constraint("memory", 1.0 if shapes[-1] == "wsd" else -1.0)
        study.tell(trial, 0.5)
    assert shapes.count("wsd") <= 1


def test_however_long_the_history_tpe_is_handed_the_excerpt_alone():
    sampler, handed = make_sampler(0), []
    sampler._gamma = lambda count: handed.append(count) or GOOD  # what TPE asks with the number of trials that it was handed
    suggest(study_with(finished(1000), sampler).ask())
    assert EXCERPT - GOOD <= handed[0] <= EXCERPT
