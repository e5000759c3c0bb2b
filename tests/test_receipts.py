import dataclasses
import json

from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.files import write_json
from budgetlm.receipts import describe, receipts
from budgetlm.records import append_record
from tests.conftest import record


def final(config, trial, bpb, forecast):
    run = f"final-trial{trial:04d}-3s-seed0"
    append_record(config.folder, record(trial, -1, 3.2, bpb, kind="final", run=run))
    if forecast:
        write_json(config.folder / "finals" / run / "forecast.json", forecast)


def test_every_final_of_every_study_is_set_beside_its_forecast(tiny_study, home):
    one, other = tiny_study(), tiny_study(name="other")
    for config in (one, other):
        config.folder.mkdir(parents=True)
        config.save(config.folder)
    final(one, 0, 1.5, {"mean": 1.6, "low": 1.4, "high": 1.8, "share": 0.8})
    final(one, 1, 1.3, {"mean": 1.6, "low": 1.4, "high": 1.8, "share": 0.8})
    final(other, 2, 1.7, {"mean": None, "why": "ranks only: all runs are on one rung"})
    final(other, 3, 1.7, None)  # of old
    append_record(other.folder, record(4, -1, 3.2, None, kind="final", run="final-trial0004", state="diverged"))
    found = receipts()
    assert [(r.study, r.trial, r.inside) for r in found.finals] == [
        ("other", 2, None),
        ("other", 3, None),
        ("tiny", 0, True),
        ("tiny", 1, False),
    ]
    assert (found.forecasts, found.inside) == (2, 1)
    assert abs(found.mean_error + 0.2) < 1e-9
    assert abs(found.mean_absolute_error - 0.2) < 1e-9
    assert receipts(["other"]).mean_error is None
    lines = describe(found).splitlines()
    assert lines[3].split()[-2:] == ["1.5000", "inside"]
    assert lines[4].endswith("1.3000  outside, below")
    assert "1 of 2 outcomes are inside their 80 % intervals; outcome less forecast -0.2000" in lines[-1]
    shown = CliRunner().invoke(app, ["receipts", "--json"])
    assert json.loads(shown.output) == dataclasses.asdict(found)
    assert CliRunner().invoke(app, ["receipts", "--study", "tiny"]).output.count("final-trial") == 2
    assert "no final had a forecast" in CliRunner().invoke(app, ["receipts", "--study", "other"]).output


def test_without_finals_it_says_how_to_train_one(home):
    assert "budgetlm final --study best" in CliRunner().invoke(app, ["receipts"]).output
