"""The page of commands, made from the commands themselves whenever the site is (`conf.py`), so that it cannot say anything else."""

import inspect
from pathlib import Path
from typing import Any

import typer

from budgetlm.cli import app

PAGE = Path(__file__).parent / "_made" / "commands.md"
HEAD = """# Commands

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 something that a person can put right (one line says what), or a fault that `doctor` found, 2 options that cannot be parsed, 75 stopped by
SIGTERM, to be run again, 130 interrupted; after these two the same command goes on. `budgetlm --install-completion` completes commands and options in your shell.
"""


def reference() -> str:
    """All commands, in the order of `budgetlm --help`, with their arguments, options, defaults and examples."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in typer.main.get_command(app).commands.items())])


def _section(name: str, command: Any) -> str:
    words = inspect.cleandoc(command.help or "")
    examples = "\n".join(f"    {line}" for line in (command.epilog or "").splitlines() if line)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join(["budgetlm", name, *(f"{p.name.upper()}" if p.required else f"[{p.name.upper()}]" for p in arguments)])
    rows = [f"| `{p.name.upper()}` | {_cell(p.help)} | {'required' if p.required else _default(p)} |" for p in arguments]
    rows += [f"| `{'`, `'.join(p.opts)}` | {_cell(p.help)} | {'required' if p.required else _default(p)} |" for p in options]
    table = "\n".join(["| | | if left out |", "|---|---|---|", *rows]) if rows else ""
    return "\n\n".join(part for part in (f"## {name}", words, f"`{usage}`", table, examples) if part) + "\n"


def _cell(help_text: str | None) -> str:
    return (help_text or "").replace("|", "\\|").replace("<", "&lt;")


def _default(parameter: Any) -> str:
    value = parameter.default
    if getattr(parameter, "is_flag", False):
        return "no"
    return "" if value in (None, "", (), []) or callable(value) else f"`{value}`"


def write() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference())
