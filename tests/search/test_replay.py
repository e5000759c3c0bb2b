import json
import math
import sys

import numpy as np
import pytest

from budgetlm.cli import main
from budgetlm.errors import BudgetExhausted, ConfigError, DataError
from budgetlm.forecast.bowl import fit_bowl
from budgetlm.search.engines.policy import search_table
from budgetlm.search.engines.table import Target, make_table, open_table
from budgetlm.search.replay import replay_rows, replay_table
from budgetlm.search.sampler import SAMPLERS, make_sampler

LAW = np.array([[-0.713, 0.307], [0.0, 0.571]])
TARGET = Target(params=256e6, tokens=16e9)


def planted(noise=0.0005, seed=0):
    """A grid of lr and batch at many scales; the best lr falls with parameters, the best batch grows with tokens."""
    chance = np.random.default_rng(seed)
    rows = []
    for params in (16e6, 32e6, 64e6, 128e6, 256e6):
        for tokens in (1e9, 2e9, 4e9, 8e9, 16e9):
            for lr in 1e-4 * 2.0 ** np.arange(0, 8):
                for batch in 2.0 ** np.arange(14, 21):
                    best_lr = math.log(0.002) - 0.5 * math.log(params / 64e6) + 0.3 * math.log(tokens / 4e9)
                    best_batch = math.log(2**17) + 0.5 * math.log(tokens / 4e9)
                    off = 0.01 * (math.log(lr) - best_lr) ** 2 + 0.006 * (math.log(batch) - best_batch) ** 2
                    law = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
                    rows.append((params, tokens, lr, batch, law * math.exp(off + noise * chance.standard_normal())))
    return dict(zip(("params", "tokens", "lr", "batch_tokens", "loss"), np.array(rows).T, strict=True))


@pytest.fixture(scope="module")
def runs():
    return planted()


@pytest.fixture
def csv(runs, tmp_path):
    path = tmp_path / "runs.csv"
    lines = [",".join(runs), *(",".join(map(repr, row)) for row in np.stack(list(runs.values()), axis=1).tolist())]
    path.write_text("\n".join(lines))
    return path


def test_regret_falls_with_the_budget_and_beats_chance(runs):
    table, losses = make_table(runs, TARGET)
    little, much = (replay_rows(table, losses, budget, range(5), "random", judge="bowl") for budget in (0.02, 0.5))
    at_target = losses[table.choices]
    chance = 100 * (np.median(at_target) / at_target.min() - 1)
    assert much.mean < 0.3 * little.mean
    assert little.mean < chance
    assert much.mean < 0.3


def test_the_budget_is_never_overspent_and_what_is_reported_is_what_was_spent(runs):
    table, losses = make_table(runs, TARGET)
    for budget in (0.01, 0.1):
        for search in replay_rows(table, losses, budget, range(3), "random", judge="bowl").searches:
            assert 0 < search.spent <= budget
            assert sum(float(cost) * n for cost, n in search.by_cost.items()) == pytest.approx(search.spent, rel=0.01)
            assert sum(search.by_cost.values()) == search.trials


def test_no_loss_is_read_that_was_not_paid_for_nor_any_of_the_target_or_above(runs):
    class Watched(np.ndarray):
        def __getitem__(self, item):
            assert isinstance(item, int | np.integer), "many losses read at once"
            read.add(int(item))
            return super().__getitem__(item)

    read: set[int] = set()
    table, losses = make_table(runs, TARGET)
    found = search_table(table, losses.view(Watched), 0.05, seed=0, sampler="random")
    assert read == set(found.bought)
    assert not read & set(table.choices.tolist())
    assert table.cost[sorted(read)].max() < 1
    poisoned = np.full(len(losses), np.nan)
    poisoned[sorted(read)] = losses[sorted(read)]
    assert search_table(table, poisoned, 0.05, seed=0, sampler="random") == found


def test_with_the_response_surface_the_choice_is_as_good_as_with_the_bowl_alone(runs):
    table, losses = make_table(runs, TARGET)
    both, bowl = (replay_rows(table, losses, 0.1, range(1), "random", judge=judge) for judge in ("both", "bowl"))
    assert both.mean < 0.5
    assert [s.by_cost for s in both.searches] == [s.by_cost for s in bowl.searches]


def test_runs_chosen_by_what_they_tell_choose_better_than_as_many_spread_by_chance(runs):
    table, losses = make_table(runs, TARGET)
    found = replay_rows(table, losses, 0.1, range(4), judge="bowl")
    most = max(s.trials for s in found.searches)
    spread = []
    for seed in range(4):
        cheap = np.flatnonzero(table.cost < 1 / 20)
        rows = np.random.default_rng(seed).choice(cheap, most, replace=False)
        bowl = fit_bowl(table.frame(), table.scales[rows], table.knobs[rows], losses[rows], table.cells[rows])
        spread.append(losses[table.choices[bowl.at_target(table.knobs[table.choices]).argmin()]])
    assert found.mean < 100 * (np.mean(spread) / losses[table.choices].min() - 1)


def test_money_goes_on_to_dearer_scales_when_the_cheapest_are_used_up(runs):
    few = {name: column[(runs["params"] > 1e8) & (runs["lr"] < 3e-4)] for name, column in runs.items()}
    table, losses = make_table(few, TARGET)
    found = search_table(table, losses, 3.0, seed=0, judge="bowl")
    assert found.by_cost["0.0312"] == np.isclose(table.cost, table.cost.min()).sum()
    assert found.spent > 2.5


def test_the_same_seed_gives_the_same_answer_and_another_one_another(runs):
    table, losses = make_table(runs, TARGET)
    again = [search_table(table, losses, 0.1, seed, "tpe", judge="bowl") for seed in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0].bought != again[2].bought


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "cmaes"])
def test_every_sampler_searches(runs, name):
    table, losses = make_table(runs, TARGET)
    found = search_table(table, losses, 0.05, 0, name, judge="bowl")
    assert found.row in table.choices
    assert found.trials >= 8


def test_a_sampler_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr("budgetlm.search.sampler.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install cmaes"):
        make_sampler(0, "cmaes")


def test_a_believed_law_decides_where_runs_cannot(runs):
    lawful = {k: v.copy() for k, v in runs.items()}
    n, d = np.log(lawful["params"]), np.log(lawful["tokens"])
    off = (np.log(lawful["lr"]) - 0.578 + 0.713 * n - 0.307 * d) ** 2
    off += (np.log(lawful["batch_tokens"]) + 0.556 - 0.571 * d) ** 2
    lawful["loss"] = 3 * np.exp(0.005 * off)
    table, losses = make_table(lawful, TARGET, prior="steplaw")
    assert replay_rows(table, losses, 0.01, range(3), "random", "steplaw", "bowl").mean < 0.1


def test_a_believed_law_stands_unless_the_runs_clearly_speak_against_it(runs):
    n, d = np.log(TARGET.params), np.log(TARGET.tokens)
    law = np.array([0.578 - 0.713 * n + 0.307 * d, -0.556 + 0.571 * d])
    table, _ = make_table(runs, TARGET, prior="steplaw")
    nearest = table.choices[((table.knobs[table.choices] - law) ** 2).sum(axis=1).argmin()]
    for off, stands in ((0.05, True), (-1.5, False)):
        best = law + off
        losses = 3 * np.exp(0.01 * ((table.knobs - best - (table.scales - table.target) @ LAW.T) ** 2).sum(axis=1))
        assert (search_table(table, losses, 0.2, 0, prior="steplaw", judge="bowl").row == nearest) == stands


def test_text_and_compute_can_be_searched_too():
    chance = np.random.default_rng(0)
    count = 400
    flops = 10.0 ** chance.integers(17, 22, count)
    ratio = np.exp(chance.uniform(0, 6, count))
    kind = chance.choice(["adam", "muon", "sgd"], count)
    cost = {"adam": 0.02, "muon": 0.0, "sgd": 0.3}
    loss = 2 + 4e5 * flops**-0.3 + 0.02 * (np.log(ratio) - 3) ** 2 + np.array([cost[k] for k in kind])
    tokens = np.sqrt(flops * ratio / 6)
    columns = {"params": flops / 6 / tokens, "tokens": tokens, "optimizer": kind, "loss": loss}
    table, losses = make_table(columns, Target(flops=1e21))
    found = replay_rows(table, losses, 0.5, range(3), "random", judge="bowl")
    assert found.mean < 1.0
    assert {s.chosen["optimizer"] for s in found.searches} == {"muon"}


def test_the_bowl_follows_its_optimum_to_the_target(runs):
    table, losses = make_table(runs, TARGET)
    cheap = np.flatnonzero(table.cost < 1 / 20)
    bowl = fit_bowl(table.frame(), table.scales[cheap], table.knobs[cheap], losses[cheap], table.cells[cheap])
    best = table.knobs[table.choices][bowl.at_target(table.knobs[table.choices]).argmin()]
    wanted = [math.log(0.002) - 0.5 * math.log(4) + 0.3 * math.log(4), math.log(2**17) + 0.5 * math.log(4)]
    assert np.abs(best - wanted).max() < 0.4
    moved = bowl.moved(np.log([64e6, 4e9]))
    assert moved == pytest.approx([0.5 * math.log(4) - 0.3 * math.log(4), -0.5 * math.log(4)], abs=0.25)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("loss", "bpb", 1), "has no column 'loss'"),
        (lambda text: text.replace("tokens", "t", 1), "has no column 'tokens'"),
        (
            lambda text: "\n".join([*text.split("\n")[:2], "16e6,1e9,1e-4,16384,nan", *text.split("\n")[3:]]),
            "line 3: loss is 'nan'",
        ),
        (lambda text: "\n".join([*text.split("\n")[:2], "16e6,1e9,,16384,3", *text.split("\n")[3:]]), "line 3: lr is empty"),
        (lambda _: "", "has no rows"),
    ],
)
def test_a_bad_table_is_told_where_it_is_bad(csv, change, says):
    csv.write_text(change(csv.read_text()))
    with pytest.raises(DataError, match=says):
        open_table(csv, TARGET)


def test_a_scale_that_is_not_there_names_the_nearest(csv):
    with pytest.raises(DataError, match=r"The nearest: params=2\.561?e\+08,tokens=1\.6e\+10"):
        open_table(csv, Target(params=300e6, tokens=16e9))
    with pytest.raises(DataError, match="no run at flops=1e\\+25"):
        open_table(csv, Target(flops=1e25))


def test_other_mistakes_are_told(csv, runs):
    with pytest.raises(DataError, match="'N=3' is no scale"):
        Target.read("N=3")
    with pytest.raises(ConfigError, match="--budget"):
        replay_table(csv, "params=256e6,tokens=16e9", 0)
    with pytest.raises(ConfigError, match="no sampler 'tep'"):
        replay_table(csv, "params=256e6,tokens=16e9", 0.1, sampler="tep")
    with pytest.raises(DataError, match="no prior 'kaplan'"):
        replay_table(csv, "params=256e6,tokens=16e9", 0.1, prior="kaplan")
    with pytest.raises(DataError, match="needs parameters and tokens"):
        replay_table(csv, "flops=2.5e19", 0.1, prior="steplaw")
    with pytest.raises(BudgetExhausted, match=r"the cheapest costs 0\.0039"):
        replay_table(csv, "params=256e6,tokens=16e9", 0.001)
    with pytest.raises(DataError, match="no knob varies"):
        make_table({k: runs[k] for k in ("params", "tokens", "loss")}, TARGET)


def test_the_command_prints_json_and_words(csv, monkeypatch, capsys):
    command = ["budgetlm", "replay", str(csv), "--target", "params=2.56e8,tokens=1.6e10", "--budget", "0.02", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--sampler", "qmc", "--json"])
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)
    assert told["mean"] == pytest.approx(np.mean([s["regret"] for s in told["searches"]]))
    assert told["searches"][0]["chosen"]["params"] == 256e6
    assert "loss" not in told["searches"][0]["chosen"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    assert "regret    mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "what is to be replayed"),
        (["runs.csv", "--study", "x"], "one of the two"),
        (["runs.csv", "--budget", "1"], "needs `--target`"),
        (["--study", "x", "--prior", "steplaw"], "are for tables"),
        (["--study", "nobody"], "no study 'nobody'"),
    ],
)
def test_the_command_says_what_is_missing(options, says, home, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["budgetlm", "replay", *options])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert says in capsys.readouterr().err
