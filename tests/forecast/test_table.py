"""The forecast of anybody's table, and the surface behind it."""

import gzip
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.errors import DataError
from budgetlm.forecast.table import describe, forecast_columns, forecast_files, read_table

SCALES = [(n, d) for n in (2e7, 5e7, 1.2e8) for d in (1e9, 4e9)]
TARGET = (1e9, 3e10)


def law(params, tokens):
    """Hoffmann et al. 2022."""
    return 1.69 + 406.4 * params**-0.34 + 410.7 * tokens**-0.28


def best_knobs(params, tokens):
    """Logarithms of the planted optimum: it drifts."""
    return -5.5 - 0.4 * np.log(params / 5e7) + 0.3 * np.log(tokens / 2e9), 12 + 0.5 * np.log(tokens / 2e9)


def table(scales, chance, runs=12, noise=0.0005):
    """Runs around the planted optimum; what they would show without noise goes with them."""
    rows = []
    for params, tokens in scales:
        lr, batch = best_knobs(params, tokens)
        for _ in range(runs):
            a, b = chance.uniform(-1.2, 1.2, 2) + chance.normal(0, 0.1)
            loss = law(params, tokens) * (1 + 0.012 * a**2 + 0.006 * b**2 - 0.004 * a * b)
            rows.append(
                (params, tokens, np.exp(lr + a), np.exp(batch + b), loss * (1 + noise * chance.standard_normal()), loss)
            )
    columns = dict(zip(("params", "tokens", "lr", "batch_tokens", "loss", "truth"), np.array(rows).T, strict=True))
    return columns, columns.pop("truth")


def without(columns, *names):
    return {name: values for name, values in columns.items() if name not in names}


@pytest.fixture(scope="module")
def planted():
    runs, _ = table(SCALES, np.random.default_rng(0))
    candidates, truth = table([TARGET], np.random.default_rng(1), runs=40)
    return runs, without(candidates, "loss"), truth


@pytest.fixture(scope="module")
def forecast(planted):
    return forecast_columns(*planted[:2])


def means(forecasts):
    return np.array([outlook.mean for outlook in forecasts.outlooks])


def test_an_optimum_that_drifts_is_found_where_nobody_has_been(planted, forecast):
    truth = planted[2]
    assert truth[means(forecast).argmin()] / truth.min() - 1 < 0.002
    assert np.corrcoef(means(forecast), truth)[0, 1] > 0.75
    assert means(forecast) == pytest.approx(truth, rel=0.05)
    assert sum(outlook.probability_best for outlook in forecast.outlooks) == pytest.approx(1)
    assert all(outlook.low < outlook.mean < outlook.high for outlook in forecast.outlooks)


def test_runs_that_diverged_do_not_move_the_choice(planted, forecast):
    runs, candidates, truth = planted
    chance = np.random.default_rng(2)
    broken = {name: np.concatenate([values, values[::9]]) for name, values in runs.items()}
    broken["lr"][len(runs["lr"]) :] *= 8
    broken["loss"][len(runs["lr"]) :] = chance.uniform(4, 7.5, len(runs["lr"][::9]))
    assert truth[means(forecast_columns(broken, candidates)).argmin()] / truth.min() - 1 < 0.002


def test_neither_units_nor_the_order_of_candidates_matter(planted, forecast):
    runs, candidates, _ = planted
    runs, candidates = ({**t, "lr": t["lr"] * 1000, "batch_tokens": t["batch_tokens"] / 2048} for t in (runs, candidates))
    back = {name: values[::-1] for name, values in candidates.items()}
    assert means(forecast_columns(runs, back))[::-1] == pytest.approx(
        means(forecast), rel=0.02
    )  # within the sampling error of the draws
    found = forecast_columns(runs, candidates)
    assert means(found).argmin() == means(forecast).argmin()
    assert means(found) == pytest.approx(means(forecast), rel=0.02)  # within the sampling error of the draws


def test_intervals_cover_about_as_often_as_they_say():
    hits, total = 0, 0
    for seed in range(8):
        chance = np.random.default_rng(seed)
        a, b, e = chance.normal(0.25, 0.04), chance.normal(0.25, 0.04), chance.uniform(1.3, 1.9)
        scales = np.exp(chance.uniform(np.log([1e7, 4e8]), np.log([2e8, 8e9]), (14, 2)))
        ahead = np.exp(chance.uniform(np.log([5e8, 1e10]), np.log([1e9, 3e10]), (6, 2)))

        def loss(s, a=a, b=b, e=e, chance=chance):
            above = (s[:, 0] / 1e8) ** -a + (s[:, 1] / 2e9) ** -b
            return (e + 0.75 * above) * np.exp(0.002 * chance.standard_normal(len(s)))

        runs = {"params": scales[:, 0], "tokens": scales[:, 1], "loss": loss(scales)}
        found = forecast_columns(runs, {"params": ahead[:, 0], "tokens": ahead[:, 1]}, draws=500)
        inside = [o.low < y < o.high for o, y in zip(found.outlooks, loss(ahead), strict=True)]
        hits, total = hits + sum(inside), total + len(inside)
    assert 0.65 < hits / total <= 1


def test_the_farther_ahead_the_less_is_known(planted):
    runs = planted[0]
    ahead = {name: np.repeat(values[:1], 3) for name, values in without(runs, "loss").items()}
    ahead |= {"params": np.array([1e8, 1e9, 1e10]), "tokens": np.array([4e9, 4e10, 4e11])}
    widths = [o.high / o.low for o in forecast_columns(runs, ahead).outlooks]
    assert widths == sorted(widths)


def test_one_scale_supports_ranks_only_and_says_so(planted):
    runs, candidates, _ = planted
    one = {name: values[:12] for name, values in runs.items()}
    found = forecast_columns(one, candidates)
    assert all(outlook.mean is None and outlook.low is None for outlook in found.outlooks)
    assert sum(outlook.probability_best for outlook in found.outlooks) == pytest.approx(1)
    assert "cannot support a forecast" in found.note
    assert found.note in describe(found)
    few = forecast_columns({name: values[:2] for name, values in runs.items()}, candidates)
    assert "2 finished runs cannot support" in few.note


def test_at_the_scale_of_the_runs_themselves_one_scale_is_enough(planted):
    one = {name: values[:12] for name, values in planted[0].items()}
    found = forecast_columns(one, without(one, "loss"))
    assert found.note == ""
    assert means(found) == pytest.approx(one["loss"], rel=0.02)


def test_few_runs_seeds_constant_and_named_knobs_are_all_right():
    runs = {
        "params": np.array([1e7, 1e7, 4e7, 1.6e8]),
        "tokens": np.array([2e8, 2e8, 8e8, 3.2e9]),
        "seed": np.array(["0", "1", "0", "0"]),
        "width": np.full(4, 64.0),
        "optimizer": np.array(["adamw", "adamw", "muon", "muon"]),
        "loss": np.array([4.41, 4.40, 3.8, 3.3]),
    }
    candidates = {name: values[-2:] for name, values in without(runs, "loss", "seed").items()}
    candidates |= {"params": np.full(2, 6e8), "tokens": np.full(2, 1e10), "optimizer": np.array(["muon", "sgd"])}
    found = forecast_columns(runs, candidates).outlooks
    assert 2.2 < found[0].mean < 3.2
    assert found[1].high - found[1].low > found[0].high - found[0].low  # nobody has tried sgd


def test_a_published_law_says_where_the_optimum_is_when_the_runs_do_not():
    lr = np.exp(np.linspace(-9, -4, 21))
    candidates = {"params": np.full(21, 1e9), "tokens": np.full(21, 3e10), "lr": lr}
    runs = {"params": np.array([1e8, 2e8, 4e8]), "tokens": np.array([2e9, 4e9, 8e9]), "lr": np.array([1e-3, 2e-3, 1.5e-3])}
    runs["loss"] = law(runs["params"], runs["tokens"])
    best = lr[means(forecast_columns(runs, candidates, "steplaw")).argmin()]
    assert abs(np.log(best) - (0.578 - 0.713 * np.log(1e9) + 0.307 * np.log(3e10))) < 0.3


def test_ten_thousand_runs_are_enough_and_not_too_many():
    chance = np.random.default_rng(0)
    runs, _ = table(SCALES, chance, runs=1700)
    candidates, truth = table([TARGET], chance, runs=20)
    found = forecast_columns(runs, without(candidates, "loss"), draws=200)
    assert truth[means(found).argmin()] / truth.min() - 1 < 0.003


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


GOOD = "params,tokens,lr,loss\n1e7,2e8,1e-3,4.4\n4e7,8e8,1e-3,3.8\n1.6e8,3.2e9,2e-3,3.3\n"
AHEAD = "params,tokens,lr\n6e8,1e10,1e-3\n6e8,1e10,4e-3\n"


@pytest.mark.parametrize(
    ("runs", "ahead", "says"),
    [
        ("params,tokens,lr\n1,2,3\n", AHEAD, "has no column 'loss'; it has params, tokens, lr"),
        (GOOD, "params,lr\n1,2\n", "has no column 'tokens'"),
        ("params,tokens,lr,loss\n", AHEAD, "has no rows"),
        ("", AHEAD, "has no rows"),
        (GOOD.replace("3.8", "nan"), AHEAD, "line 3: loss is 'nan', and has to be a positive number"),
        (GOOD.replace("3.8", "much"), AHEAD, "line 3: loss is 'much'"),
        (GOOD.replace("4e7", "-1"), AHEAD, "line 3: params is '-1'"),
        (GOOD.replace("2e-3", ""), AHEAD, "line 4: lr is empty"),
        (GOOD.replace("2e-3", "inf"), AHEAD, "line 4: lr is inf"),
        (GOOD.replace("2e-3,", ""), AHEAD, "line 4 has 3 values for 4 columns"),
        (GOOD.replace("lr", "loss"), AHEAD, "names a column twice"),
        (GOOD, AHEAD.replace("lr", "rate"), "column 'lr' is in the runs but not in the candidates"),
    ],
)
def test_a_table_of_no_use_is_named_with_line_and_remedy(runs, ahead, says, tmp_path):
    paths = write(tmp_path / "runs.csv", runs), write(tmp_path / "ahead.csv", ahead)
    with pytest.raises(DataError, match=".") as error:
        forecast_files(*paths)
    assert says in str(error.value)


def test_a_file_that_is_no_table_and_a_prior_that_is_none_are_said(tmp_path):
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(tmp_path / "nowhere.csv", ())
    (tmp_path / "broken.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(tmp_path / "broken.csv.gz", ())
    paths = write(tmp_path / "runs.csv", GOOD), write(tmp_path / "ahead.csv", AHEAD)
    with pytest.raises(DataError, match="no prior 'kaplan'; known: steplaw"):
        forecast_files(*paths, prior="kaplan")


def test_the_command_prints_a_line_or_an_object_for_each_candidate(tmp_path):
    runs, ahead = write(tmp_path / "runs.csv.gz", GOOD), write(tmp_path / "ahead.csv", AHEAD)
    shown = CliRunner().invoke(app, ["forecast", str(runs), str(ahead)])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) == 3
    told = json.loads(CliRunner().invoke(app, ["forecast", str(runs), str(ahead), "--json", "--prior", "steplaw"]).output)
    assert [set(o) for o in told["outlooks"]] == [{"mean", "low", "high", "probability_best"}] * 2
    assert told["note"] == ""


def test_text_that_is_read_again_counts_for_less_where_the_table_says_how_much_there_was():
    chance = np.random.default_rng(0)
    params, unique, epochs = (
        np.exp(chance.uniform(np.log(low), np.log(high), 60)) for low, high in ((2e7, 3e8), (1e8, 2e9), (1, 40))
    )

    def table(params, unique, epochs):
        worth = unique * (1 + 15.4 * (1 - np.exp(-(epochs - 1) / 15.4)))
        loss = 1.7 + 400 / params**0.34 + 410 / worth**0.28
        return {"params": params, "tokens": unique * epochs, "unique_tokens": unique, "loss": loss}

    wanted = table(np.full(2, 1e9), np.array([4e9, 4e9]), np.array([1.0, 60.0]))
    truth = wanted.pop("loss")
    found = forecast_columns(table(params, unique, epochs), wanted, draws=500)
    assert [o.mean for o in found.outlooks] == pytest.approx(truth, rel=0.02)
