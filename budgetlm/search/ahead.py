"""Loading PyTorch for the workers while the command that wants them is still loading itself. Imports next to nothing."""

from pathlib import Path

from budgetlm.train.compilation import keep_compiled
from budgetlm.workers.processes import start_server

PRELOAD = ("budgetlm.cli", "budgetlm.search.jobs")
"""What a worker imports beside what it trains with: the jobs, and what the command was started from."""


def load_ahead(cache: Path, allocator: str) -> None:
    """Start the server that workers are forked from, with the environment that they are to have, allocator included.

    Raises:
        ConfigError: the allocator is not there.
    """
    keep_compiled(cache)
    start_server(PRELOAD, allocator)
