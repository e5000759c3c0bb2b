"""What README and docs tell people to type works: commands are run on a toy study, what they name is there, and the rest is parsed."""

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
import traceback
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.config import study_config
from tests.conftest import install_clock, sentences

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIVE = [page for page in PAGES if page.name != "LOG.md"]
"""Pages of today. The log tells what was typed on its day, of commands that may have changed since."""
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_live_page = pytest.mark.parametrize("page", LIVE, ids=lambda page: page.stem)


def typed(page):
    """Command lines: indented ones that begin with `budgetlm`, those of shell scripts, and what stands so between back-ticks in a text."""
    text = page.read_text()
    scripts = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"^ {4}(budgetlm [a-z].*)$", text, re.MULTILINE) + re.findall(r"`(budgetlm [a-z][^`]*)`", text)
    lines += re.findall(r"budgetlm [a-z][^;|&'\n]*", scripts)
    for line in lines:
        for command in re.split(r" {3,}(?=budgetlm )", line.split("  #")[0].replace("\n", " ")):
            if "…" not in command and "..." not in command:
                yield command.strip()


@each_page
def test_every_command_is_understood_with_its_options(page):
    commands = typer.main.get_command(app).commands
    for line in typed(page):
        _, name, *arguments = shlex.split(line)
        if name not in commands:
            raise AssertionError(f"{page.name}: {line}")
        if arguments:  # a command that is only named may want more
            commands[name].make_context(name, arguments)


NOT_RUN = {
    r"hf:": "a data set of the Hub; tests/data/test_hub.py has one of this machine",
    r"postgresql": "a database server; tests/budget/test_database.py begins one where it is installed",
    r"--engine ray": "a Ray cluster; tests/workers/test_cluster.py begins one where it is installed",
    r"(search|final) .*--devices": "several devices; tests/train/parallel and tests/workers have two at once",
    r"report --watch": "a server that ends by Ctrl-C; tests/report/test_live.py asks one",
    r"worker": "a search that is led meanwhile; tests/workers/test_hands.py has one",
    r"--tasks": "lm-evaluation-harness; tests/test_harness.py, where it is installed",
    r"--to (mlflow|wandb)": "that tool; tests/test_track.py, where it is installed",
}
"""What is parsed alone, by what is in it, and what it would need."""
ORDER = ("plan", "doctor", "search", "final", "run", "replay")
"""A story that works: these first, then all that look at what they left; last the encoder, which would be `best`, and what begins from an exported model."""
TOY = {
    "hours": "0.0012",
    "target-hours": "0.0009",
    "study": "toy",
    "seeds": "1",
    "data": "texts",
    "file": "my-study.toml",
    "from": "reports/toy.html",
}
"""What stands for an option's value, so that it takes seconds."""
ENVELOPE = {"study": "envelope", "hours": "0.005"}
OTHERS = {
    "my-encoder": {"study": "encoder"},
    "--pick": {"study": "front"},
    "--objectives": {"study": "front"},
    "--max-model-mb": {"study": "limited"},
    ":0.7": {"study": "mixture"},
    "final --init": {"study": "toy", "init": "my-model"},
    "--init": {"study": "continued", "file": "given.toml"},
}
"""Studies that cannot be the same one, by what is in a line."""
SETTINGS = """
    [budget]
    hours = 0.0012
    target_hours = 0.0009
    [data]
    source = "texts"
    vocab_size = 320
    [model]
    context_length = 32
    [train]
    threads = 1
    eval_tokens = 256
    [search]
    least_rung_seconds = 0.15
    [space]
    depth = 1
    width = { low = 16, high = 32, step = 16 }
    batch_tokens = 128
    compression = "none"
"""


def toy(line):
    """The same command of a study that takes seconds; None of one that is only named, and wants more."""
    _, name, *arguments = shlex.split(line)
    if not arguments and name in (*ORDER, "forecast", "eval", "export", "finetune"):
        return None
    known = TOY | (ENVELOPE if name == "run" else {"data": "reviews.csv"} if name == "finetune" else {})
    known |= next((others for what, others in OTHERS.items() if what in line), {})
    for at, argument in enumerate(arguments):
        if argument.startswith("--") and (option := argument.removeprefix("--")) in known and arguments[at + 1] != "best":
            arguments[at + 1] = arguments[at + 1] if ":0." in arguments[at + 1] else known[option]
    wanted = {
        "final": ["study"],
        "replay": ["seeds"],
        **{key: ["study", "file"] for key in ORDER if key not in ("final", "replay")},
    }
    for option in wanted.get(name, []):
        arguments += [f"--{option}", known[option]] * (f"--{option}" not in arguments)
    return name, *arguments


def furnish(folder):
    """What a reader of the docs would have at hand: texts, a labelled table, a table of runs, study files."""
    for name, count in (("texts", 300), ("other-texts", 60)):
        (folder / name).mkdir()
        for number, text in enumerate(sentences(count, seed=count % 7)):
            (folder / name / f"{number:03d}.txt").write_text(text)
    (folder / "my-study.toml").write_text(SETTINGS)
    given = SETTINGS.replace("vocab_size = 320", "").replace("context_length = 32", "")
    (folder / "given.toml").write_text(re.sub("(depth|width) = .*", "", given))
    reviews = [f"the {('tree', 'stone')[number % 2]} of day {number},{number % 2},{number % 2}" for number in range(90)]
    (folder / "reviews.csv").write_text("\n".join(["text,label,stars", *reviews]))
    runs = ["params,tokens,loss,lr"]
    for params, tokens, step in product((2.7e8, 1.07e9), (6e9, 2.5e10, 1e11), (1, 2, 3, 4)):
        loss = 1.7 + 400 * params**-0.34 + 400 * tokens**-0.28 + (step - 2) ** 2 / 50
        runs.append(f"{params},{tokens},{loss},{10 ** -(2 + step / 2)}")
    (folder / "runs.csv").write_text("\n".join(runs))
    (folder / "candidates.csv").write_text("params,tokens,lr\n2e9,1e11,0.001\n2e9,1e11,0.01\n")


@pytest.fixture
def place(home, cache, monkeypatch):
    """Where commands are run in this process, on a clock that only training moves."""
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    for module in ("train.parallel.members", "workers.child", "workers.own"):
        import_module(f"budgetlm.{module}")  # their clocks derive from the one whose place is taken now
    clock = install_clock(monkeypatch, every=24)
    monkeypatch.setattr("budgetlm.budget.clock.Clock", lambda: clock)
    monkeypatch.setattr("budgetlm.search.ahead.load_ahead", lambda *_: None)
    for commands in ("search", "final"):
        monkeypatch.setattr(f"budgetlm.commands.{commands}.begin_again", lambda _: None)  # it would replace this process
    furnish(home)
    return home


def story():
    """What is run, in an order that works, each with the first line that wants it."""
    told: dict[tuple[str, ...], str] = {}
    for page in LIVE:
        for line in typed(page):
            if not any(re.search(what, line) for what in NOT_RUN) and (command := toy(line)):
                told.setdefault(command, f"{page.name}: {line}")
    ranks = {name: rank for rank, name in enumerate(ORDER)}

    def place_of(command):
        return bool({"--init", "encoder"} & set(command)), ranks.get(command[0], len(ranks))

    return {command: told[command] for command in sorted(told, key=place_of)}


def test_every_command_of_readme_and_docs_runs(place):
    told, broken = story(), []
    for command, line in told.items():
        if command[0] in ("finetune", "export"):
            shutil.rmtree(command[1], ignore_errors=True)  # another line made it, for another study
        done = CliRunner().invoke(app, command)
        if done.exit_code:
            why = traceback.format_exception(done.exception)[-1] if done.exception else ""
            broken.append(f"{line}\nas budgetlm {shlex.join(command)}\n{done.output}{why}")
    assert not broken, "\n\n".join(broken)
    assert {name for name, *_ in told} >= {
        *ORDER,
        "generate",
        "eval",
        "export",
        "finetune",
        "forecast",
        "report",
        "receipts",
    }


def test_the_example_at_the_end_of_each_help_is_understood():
    for name, command in typer.main.get_command(app).commands.items():
        for example in re.split(r"\n\n| \|\| ", command.epilog):
            _, called, *arguments = shlex.split(example.split(" < ")[0])
            typer.main.get_command(app).commands[called].make_context(name, arguments)


def test_the_page_of_commands_has_every_option_of_every_command(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = import_module("commands").reference()
    for name, command in typer.main.get_command(app).commands.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert [p.name for p in command.params if p.help and p.help.replace("|", "\\|") not in section] == []
        assert f"    budgetlm {name} " in section


def test_what_is_only_parsed_is_still_there_to_be_excused():
    lines = [line for page in LIVE for line in typed(page)]
    for what in NOT_RUN:
        assert any(re.search(what, line) for line in lines), what


class Understood(Exception):
    """A benchmark has read its options."""


@each_live_page
def test_every_benchmark_is_there_and_takes_its_options(page, monkeypatch):
    read = argparse.ArgumentParser.parse_args
    text = page.read_text()
    found = re.findall(r"`(python -m\s+tests\.benchmarks\.[^`]*)`", text) + re.findall(
        r"^ {4}(python -m tests\.benchmarks\..*)$", text, re.MULTILINE
    )
    for line in found:
        _, _, module, *options = shlex.split(line)
        assert find_spec(module), f"{page.name}: {line}"

        def parse(parser, options=options):
            read(parser, options)
            raise Understood

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse)
            if options:
                with pytest.raises(Understood):
                    import_module(module).main()


@each_live_page
def test_shell_scripts_and_study_files_are_what_they_look_like(page):
    text = page.read_text()
    for script in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    for table in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        study_config(tomllib.loads(table))


@each_page
def test_every_benchmark_and_file_that_is_named_exists(page):
    text = page.read_text()
    for module in set(re.findall(r"python -m\s+(tests\.benchmarks\.\w+)", text)):
        assert find_spec(module), f"{page.name}: {module}"
    for path in set(re.findall(r"`(budgetlm/[\w/]+\.py)`", text)):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_dependency_and_extra_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    own, extras = page.split("## What that costs")[0].split("Extras are asked for")
    reasons = set(re.findall(r"^\| ([\w.-]+) \|", own, re.MULTILINE)) - {"package"}
    assert {re.match(r"[\w.-]+", needed).group() for needed in project["dependencies"]} == reasons
    rows = re.findall(r"^\| `.*$", extras, re.MULTILINE)
    told = {name: row for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(told) == set(project["optional-dependencies"])
    for extra, needs in project["optional-dependencies"].items():
        for needed in needs:
            assert re.match(r"[\w.-]+", needed).group() in told[extra], f"{extra}: {needed}"
