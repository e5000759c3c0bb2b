"""budgetlm: the best language model that you can train by a deadline, found, trained and explained.

From Python: `budgetlm.search`, `budgetlm.final`, `budgetlm.report` and `budgetlm.load_study` (`library.py`).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is loaded when it is asked for, so that `import budgetlm` takes no time. The first three are modules that can be called."""
    if name in ("search", "final", "report"):
        return import_module(f"budgetlm.{name}")
    if name in ("load_study", "Study", "Clock"):
        return getattr(import_module("budgetlm.library"), name)
    raise AttributeError(f"budgetlm has no {name!r}; it has search, final, report, load_study")
