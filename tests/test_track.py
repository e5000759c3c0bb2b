import io
import json
import sqlite3
from importlib.util import find_spec
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from budgetlm import track
from budgetlm.cli import app
from budgetlm.errors import ConfigError
from budgetlm.records import append_record, read_curve, read_records
from tests.conftest import record


@pytest.fixture
def elsewhere(monkeypatch, home):
    """Where tools keep what they are told."""
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    return home


class Told:
    """A tool that remembers."""

    needs = "json"
    heard: ClassVar[list] = []

    def __init__(self, _folder):
        pass

    def tell(self, study, record, curve):
        if record.bpb == 99.0:
            raise OSError("the tool is away")
        self.heard.append((study, record.run, len(curve)))


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(track.TRACKERS, "told", Told)
    monkeypatch.setattr(Told, "heard", [])
    return Told.heard


def test_every_run_that_has_ended_is_told_once_with_its_curve(searched, told):
    records = read_records(searched.folder)
    assert track.Tracking("tiny", ["told"]).send() == len(records)
    assert told == [("tiny", r.run, len(read_curve(searched.folder, r.run))) for r in records]
    append_record(searched.folder, record(900, 0, 1.0, 1.5))
    append_record(searched.folder, record(901, 0, 1.0, None, state="interrupted"))
    assert track.Tracking("tiny", ["told"]).send() == 1
    assert told[-1][1] == "trial0900-rung0"


def test_what_ends_while_a_study_is_worked_on_is_told_and_a_tool_that_fails_harms_nothing(searched, told):
    notes = []
    with track.tracking("tiny", ["told"], notes.append):
        append_record(searched.folder, record(900, 0, 1.0, 1.5))
    assert told[-1][1] == "trial0900-rung0"
    with track.tracking("tiny", ["told"], notes.append):
        append_record(searched.folder, record(901, 0, 1.0, 99.0))
    assert notes == ["warning   tracking failed: OSError: the tool is away. `budgetlm track` tells what is missing later."]


def test_an_unknown_tracker_and_one_that_is_not_installed_are_a_line(searched, monkeypatch):
    with pytest.raises(ConfigError, match="no tracker 'paper'; known: tensorboard, mlflow, wandb, trackio"):
        track.Tracking("tiny", ["paper"])
    monkeypatch.setattr(track, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[wandb\]'"):
        track.Tracking("tiny", ["wandb"])


def installed(name):
    return pytest.mark.skipif(find_spec(track.TRACKERS[name].needs) is None, reason=f"{name} is not installed")


@installed("tensorboard")
def test_tensorboard_has_the_curve(searched, elsewhere):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = CliRunner().invoke(app, ["track", "--study", "tiny", "--to", "tensorboard"]).stdout
    run = read_records(searched.folder)[0]
    assert said == f"study tiny: {len(read_records(searched.folder))} runs told\n"
    events = EventAccumulator(str(searched.folder / "tensorboard" / run.run)).Reload()
    curve = read_curve(searched.folder, run.run)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(p.step, pytest.approx(p.loss)) for p in curve]
    assert events.Scalars("result/bpb")[0].value == pytest.approx(run.bpb)


@installed("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_recipe_and_curve(searched, elsewhere):
    from mlflow.tracking import MlflowClient

    track.Tracking("tiny", ["mlflow"]).send()
    client, records = MlflowClient(f"sqlite:///{elsewhere / 'mlflow.db'}"), read_records(searched.folder)
    runs = {r.info.run_name: r for r in client.search_runs([client.get_experiment_by_name("tiny").experiment_id])}
    assert set(runs) == {r.run for r in records}
    first = runs[records[0].run]
    assert first.data.params["width"] == str(records[0].recipe["width"])
    assert first.data.metrics["result.bpb"] == records[0].bpb
    assert len(client.get_metric_history(first.info.run_id, "loss")) == len(read_curve(searched.folder, records[0].run))


@installed("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_a_folder_for_each_run_without_a_network(searched, elsewhere, monkeypatch):
    few = read_records(searched.folder)[:2]
    (searched.folder / "runs.jsonl").write_text("".join(json.dumps(vars(r)) + "\n" for r in few))
    track.Tracking("tiny", ["wandb"]).send()
    kept = sorted((searched.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    assert b"peak_lr" in kept[0].read_bytes()


@installed("trackio")
@pytest.mark.filterwarnings("ignore")
def test_trackio_knows_the_runs_and_says_nothing_on_stdout(searched, elsewhere, capsys):
    track.Tracking("tiny", ["trackio"]).send()
    assert capsys.readouterr().out == ""
    assert list((elsewhere / "trackio").glob("tiny*"))


@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed")
@pytest.mark.filterwarnings("ignore")
def test_optuna_dashboard_shows_a_study_and_keeps_no_search_waiting(searched):
    from optuna_dashboard import wsgi

    def ask(path):
        said = []
        environment = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "1"}
        environment |= {"wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http"}
        body = b"".join(dashboard(environment, lambda status, _headers, *_: said.append(status)))
        assert said == ["200 OK"], body
        return json.loads(body)

    dashboard = wsgi(f"sqlite:///{searched.folder / 'study.db'}")
    with sqlite3.connect(searched.folder / "study.db", timeout=0.1, isolation_level=None) as search:
        search.execute("BEGIN IMMEDIATE")  # the search is writing
        study = next(each for each in ask("/api/studies")["study_summaries"] if each["study_name"] == "tiny")
        trials = ask(f"/api/studies/{study['study_id']}")["trials"]
        search.execute("COMMIT")
    assert {t["number"] for t in trials} == {r.trial for r in read_records(searched.folder)}
