"""What README and docs tell people to type is understood by the commands, and what they name is there."""

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from budgetlm.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def typed(page):
    """Command lines: indented ones that begin with `budgetlm`, and what stands so between back-ticks in a text."""
    text = page.read_text()
    lines = re.findall(r"^ {4}(budgetlm [a-z].*)$", text, re.MULTILINE) + re.findall(r"`(budgetlm [a-z][^`]*)`", text)
    for line in lines:
        for command in re.split(r" {3,}(?=budgetlm )", line.split("  #")[0].replace("\n", " ")):
            if "…" not in command and "..." not in command:
                yield command.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_understood_with_its_options(page):
    commands = typer.main.get_command(app).commands
    for line in typed(page):
        _, name, *arguments = shlex.split(line)
        if name not in commands:
            raise AssertionError(f"{page.name}: {line}")
        if arguments:  # a command that is only named may want more
            commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
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
