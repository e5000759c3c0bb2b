"""The command line: which commands there are, and how each can end.

Exit codes: 0 done, 1 a mistake or shortage that a person can put right (one line says what to do), 2 options that cannot
be parsed, 75 stopped by SIGTERM and to be run again, 130 interrupted. Results go to stdout, progress to stderr. Heavy imports happen
inside the commands, so that `--help` is instant.
"""

import inspect
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from budgetlm.commands.final import final, generate
from budgetlm.commands.look import budget, receipts, report, status, track
from budgetlm.commands.models import eval as evaluate
from budgetlm.commands.models import export, finetune
from budgetlm.commands.search import doctor, plan, run, search, worker
from budgetlm.commands.tables import forecast, replay
from budgetlm.errors import BudgetlmError
from budgetlm.interrupt import INTERRUPTED, RESUME_ME


def _shown(command: Callable[..., Any]) -> dict[str, Any]:
    """What a command's docstring says, and the examples that end it, each in a line of its own below the options."""
    told, _, examples = inspect.cleandoc(command.__doc__ or "").rpartition("\n\n")
    return {"help": told, "epilog": re.sub(r" {8}|\n", "\n\n", examples)}


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Give it a device and a deadline: it finds the language model worth training, trains it, and shows why.",
    epilog="budgetlm run --hours 24",
)
for command in (
    search,
    doctor,
    plan,
    replay,
    final,
    run,
    worker,
    report,
    forecast,
    status,
    receipts,
    budget,
    track,
    generate,
    evaluate,
    export,
    finetune,
):
    app.command(**_shown(command))(command)


def main() -> None:
    """Run the command line: a person's mistake is one line, a bug keeps its traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # NumPy's matrices are small here: more threads only take time from the workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _leave)  # until a command knows better
    try:
        app()
    except BudgetlmError as error:
        print(f"budgetlm: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("budgetlm: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(RESUME_ME)
