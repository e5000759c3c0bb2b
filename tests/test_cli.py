import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from budgetlm.budget.ledger import HEARTBEAT_SECONDS
from budgetlm.cli import app, main
from budgetlm.config import STUDY_FILE
from budgetlm.errors import StudyError
from budgetlm.records import RunRecord, read_records
from budgetlm.studies import ledger_of
from tests.conftest import small_study

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def budgetlm(*arguments, **options):
    command = [sys.executable, "-m", "budgetlm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)


def here(*arguments):
    """What a command prints, run in this process, which saves seconds of importing."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@dataclass
class Story:
    """What three searches of one study and its final left and said."""

    folder: Path
    said: dict[str, subprocess.CompletedProcess]
    records: dict[str, list[RunRecord]]
    charged: dict[str, float]

    def keep(self, chapter, done):
        self.said[chapter], self.records[chapter] = done, read_records(Path("studies/small"))
        self.charged[chapter] = ledger_of("small").balance().charged_seconds


@pytest.fixture(scope="module")
def story(corpus_folder, cache, tmp_path_factory):
    """A study of seconds on the real clock: interrupted, ended, searched to its end, trained."""
    told = Story(tmp_path_factory.mktemp("story"), {}, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(told.folder)
        patch.setitem(ENVIRONMENT, "BUDGETLM_CACHE", str(cache))
        Path("small.toml").write_text(small_study(corpus_folder, hours=9 / 3600))
        for number in (signal.SIGINT, signal.SIGTERM):
            told.keep(number.name, broken_off("search", "--file", "small.toml", by=number))
        told.keep("search", budgetlm("search", "--file", "small.toml"))
        told.keep("final", budgetlm("final"))
    return told


def broken_off(*arguments, by):
    """A command that is sent a signal when another of its runs has ended."""
    command, study = [sys.executable, "-m", "budgetlm", *arguments], Path("studies/small")
    before = len(read_records(study))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        end = time.monotonic() + 60
        while len(read_records(study)) == before and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(by)
        output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_help_is_instant_because_it_imports_nothing_heavy():
    code = "import sys; sys.argv = ['budgetlm', '--help']\nfrom budgetlm.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    heavy = "print({'torch', 'optuna', 'plotly', 'datasets', 'pandas', 'numpy', 'sqlalchemy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip().endswith("set()")
    for command in ("search", "doctor", "final", "report", "status", "budget", "generate"):
        assert command in done.stdout


COMMANDS = {command.callback.__name__: command.callback.__doc__ for command in app.registered_commands}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_help_that_is_seen_says_what_it_is_for_and_ends_with_examples_that_are_understood(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = CliRunner().invoke(app, [name, "--help"] if name else ["--help"])
    assert result.exit_code == 0
    told, _, examples = result.output.rpartition("╯")
    assert (COMMANDS[name].splitlines()[0] if name else "Give it a device and a deadline") in told
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert f"budgetlm {name}" in lines[-1]
    commands = typer.main.get_command(app).commands
    for line in lines:  # each whole in one, also where a terminal is narrow
        for typed in line.split(" || "):
            program, command, *arguments = shlex.split(typed.split(" < ")[0])
            assert program == "budgetlm"
            commands[command].make_context(command, arguments)


def test_a_shell_completes_commands_and_options(tmp_path):
    program, inside = tmp_path / "budgetlm", tmp_path / "inside" / "budgetlm"
    inside.parent.mkdir()
    inside.write_text("from budgetlm.cli import main\nmain()\n")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{inside}" "$@"\n')  # either path may have a space in it
    program.chmod(0o755)
    asks = ["budgetlm fin", "budgetlm final --in", "budgetlm status --"]
    words = "".join(
        f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _budgetlm_completion budgetlm; echo ${{COMPREPLY[*]}}\n"
        for line in asks
    )
    script = f'eval "$(_BUDGETLM_COMPLETE=source_bash budgetlm)"\ncomplete -p budgetlm\n{words}'
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == [
        "complete -o default -F _budgetlm_completion budgetlm",
        "final finetune",
        "--init",
        "--watch --no-watch --study --json --help",
    ], done.stderr


def test_from_a_study_file_to_a_report_and_generated_text(story, monkeypatch):
    monkeypatch.chdir(story.folder)
    searched, final = story.said["search"], story.said["final"]
    assert searched.returncode == 0, searched.stderr
    assert "chosen: trial" in searched.stdout
    assert "evidence: runner-up: trial" in searched.stdout or "evidence: no other trial reached" in searched.stdout
    assert "\x1b[" not in searched.stderr  # no terminal, so plain lines
    assert "trial 0, rung 0" in story.said["SIGINT"].stderr
    assert "best so far" in searched.stderr
    spent = json.loads(here("budget", "--study", "small", "--json"))
    assert {"study", "budget_seconds", "charged_seconds", "remaining_seconds", "by_purpose", "stopped_because"} <= set(spent)
    assert spent["charged_seconds"] <= spent["budget_seconds"] + HEARTBEAT_SECONDS
    assert spent["charged_seconds"] == pytest.approx(sum(spent["by_purpose"].values()))
    assert "the budget is spent" in spent["stopped_because"]

    assert final.returncode == 0, final.stderr
    assert "bits per byte" in final.stdout
    assert "forecast" in final.stdout
    assert json.loads(here("budget", "--json"))["finals"]

    assert here("report").strip() == "reports/small.html"
    assert "Train this" in Path("reports/small.html").read_text()
    status = json.loads(here("status", "--json"))
    assert len(status) == 1
    assert status[0]["name"] == "small"
    assert status[0]["state"] == "spent"
    assert status[0]["trials"] > 1
    assert 0 < status[0]["final_bpb"] < 5
    assert 0 < status[0]["best_forecast_bpb"] < 5
    assert status[0]["report"] == "reports/small.html"
    assert "small" in here("status")
    assert "device-seconds charged" in here("budget")

    texts = [here("generate", "the tree", "--tokens", "20", "--seed", seed) for seed in ("1", "1", "2")]
    assert texts[0].startswith("the tree")
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_within_seconds_settled_and_the_next_command_goes_on(story, number):
    ended, after = story.said[number.name], "SIGTERM" if number == signal.SIGINT else "search"
    assert ended.returncode == (75 if number == signal.SIGTERM else 130), ended.stderr
    assert "the same command goes on" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert story.charged[number.name] >= sum(r.seconds for r in story.records[number.name]) - 0.1
    first = story.records[number.name]
    assert story.records[after][: len(first)] == first
    assert len(story.records[after]) > len(first)


def test_the_same_search_again_says_that_nothing_is_left_to_do(searched, cache, clock, monkeypatch):
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    monkeypatch.setattr("budgetlm.search.ahead.load_ahead", lambda *_: None)
    spent = here("budget", "--study", "tiny", "--json")
    assert "nothing left to do" in here("search", "--file", f"studies/tiny/{STUDY_FILE}")
    assert here("budget", "--study", "tiny", "--json") == spent


MISTAKES = [
    (["search"], "how much may the search spend"),
    (["search", "--hours", "-1"], "a number of hours"),
    (["search", "--hours", "nan"], "a number of hours"),
    (["search", "--hours", "1", "--study", "../up"], "cannot name a study"),
    (["search", "--hours", "1", "--data", "missing.txt"], "no file or folder"),
    (["search", "--hours", "1", "--data", "empty"], "no file that can be read"),
    (["search", "--hours", "1", "--data", "blank.txt"], "documents with text"),
    (["search", "--hours", "1", "--data", "table.jsonl"], "no column 'text'. Its columns are: body"),
    (["search", "--hours", "1", "--data", "small.txt"], "too few for one sequence|a context of"),
    (["search", "--hours", "1", "--data", "empty:0", "--data", "stdlib:1"], "the weight of empty is 0, but must be above 0"),
    (["search", "--hours", "0.001"], "do not pay for a ladder"),
    (["search", "--hours", "1", "--target-hours", "0.001"], "too short for 2 rungs"),
    (["search", "--hours", "1", "--file", "none.toml"], "there is no study file"),
    (["search", "--file", "typo.toml"], "Did you mean `width`"),
    (["search", "--hours", "1", "--device", "cuda"], "sees no GPU"),
    (["search", "--hours", "1", "--proxy", "smaller"], "search.proxy cannot be 'smaller'. Use miniature or truncate"),
    (["run", "--hours", "1", "--proxy", "smaller"], "search.proxy cannot be 'smaller'. Use miniature or truncate"),
    (["search", "--hours", "1", "--device", "tpu"], "train.device cannot be 'tpu'"),
    (["final", "--study", "nobody"], "there is no study 'nobody'"),
    (["final"], "no study here has a finished trial"),
    (["report"], "there is no study to report on"),
    (["report", "--study", "nobody"], "there is no study 'nobody'"),
    (["budget", "--study", "nobody"], "there is no study 'nobody'"),
    (["generate", "x", "--model", "empty"], "missing"),
]


@pytest.fixture
def mess(home):
    (home / "empty").mkdir()
    (home / "blank.txt").write_text(" \n")
    (home / "small.txt").write_text("only a few words")
    (home / "small.jsonl").write_text("")
    (home / "table.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (home / "typo.toml").write_text("[budget]\nhours = 1\n[space]\nwidht = 64\n")
    two = "\n".join(json.dumps({"text": t}) for t in ["a few words", "some others"])
    (home / "small.jsonl").write_text(two)
    return home


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_persons_mistake_is_one_line_exit_code_1_and_no_damage(mess, cache, monkeypatch, capsys, arguments, message):
    if arguments[-1] == "cuda":
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["small.jsonl" if a == "small.txt" else a for a in arguments]
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    monkeypatch.setattr(sys, "argv", ["budgetlm", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("budgetlm: ")]
    assert left.value.code == 1
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not list(mess.glob("studies/*/runs.jsonl"))


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("search", "search.study.search"),
        ("run", "envelope.run_all"),
        ("plan", "outlook.look_ahead"),
        ("doctor", "doctor.examine"),
    ],
)
def test_whatever_looks_for_a_recipe_takes_the_proxy_that_it_is_to_look_with(home, monkeypatch, command, function):
    seen = []

    def stop(config, *_arguments, **_options):
        seen.append(config.search.proxy)
        raise StudyError("enough is seen")

    monkeypatch.setattr("budgetlm.search.ahead.load_ahead", lambda *_: None)
    monkeypatch.setattr("budgetlm.commands.search.begin_again", lambda _: None)  # it would replace the process that tests
    monkeypatch.setattr(f"budgetlm.{function}", stop)
    CliRunner().invoke(app, [command, "--hours", "1", "--proxy", "truncate"])
    assert seen == ["truncate"]


def test_a_bug_keeps_its_traceback(home, monkeypatch):
    monkeypatch.setattr("budgetlm.studies.study_names", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["budgetlm", "status"])
    with pytest.raises(ZeroDivisionError):
        main()
