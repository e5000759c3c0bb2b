import re
from pathlib import Path

import pytest

from budgetlm.cli import app

ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/LOG.md", "docs/library.md")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_commands_of_the_readme_exist_with_their_options():
    text = (ROOT / "README.md").read_text()
    commands = {command.callback.__name__: command.callback for command in app.registered_commands}
    named = re.findall(r"(?:^|`|\s{4,})budgetlm ([a-z]+)((?: --?[a-z-]+)*)", text, re.MULTILINE)
    assert {name for name, _ in named} >= {"doctor", "search", "report", "final", "generate", "status", "budget"}
    for name, _ in named:
        assert name in commands, name
    for target in re.findall(r"make (\w+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_the_tree_in_the_readme_names_every_module():
    text = (ROOT / "README.md").read_text()
    modules = [p for p in (ROOT / "budgetlm").rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    assert [p.name for p in modules if p.name not in text] == []
