"""Tasks of lm-evaluation-harness on a trained model: `budgetlm eval --tasks`.

The model is loaded as `eval` loads any folder, without code of its own or a pickle, and handed to the harness's own Hugging Face backend, which asks and scores. Tasks may be local
files (`--include-path`); what these refer to, a `!function` of theirs too, is run, so they are to be read before they are used.
"""

import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from budgetlm.errors import ConfigError, StudyError
from budgetlm.evaluation import load_foreign
from budgetlm.export import plain_folder
from budgetlm.passport import pick_device

AT_ONCE = 8
"""Questions in a forward pass."""


def run_tasks(model: Path, tasks: Sequence[str], include: Path | None, most: int = 0) -> dict[str, Any]:
    """Put a harness's tasks to a model, and return its results as it gives them.

    Args:
        model: a final's `model` folder, or another that transformers loads as a causal language model.
        tasks: their names.
        include: a folder with tasks of one's own, as yaml; those that come with the harness are looked for where a name is not in it.
        most: questions of each task; 0 for all.

    Raises:
        ConfigError: the harness is missing, or knows no such task.
        StudyError: there is no such model, or a task cannot be read or put to it.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("tasks need lm-evaluation-harness: pip install 'budgetlm[eval]'.")
    if include and not include.is_dir():
        raise ConfigError(f"there is no folder {include}. `--include-path` names one with tasks as yaml.")
    lm_eval, backend, manager = (import_module(name) for name in ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))
    known: Any = manager.TaskManager(include_path=str(include), include_defaults=False) if include else None
    if known is None or set(tasks) - set(known.all_tasks):
        known = manager.TaskManager(include_path=str(include) if include else None)
    if unknown := set(tasks) - set(known.all_tasks):
        raise ConfigError(
            f"lm-evaluation-harness knows no task {', '.join(sorted(unknown))}. `lm_eval ls tasks` lists its own; others need `--include-path`."
        )
    with tempfile.TemporaryDirectory() as place:
        network, tokenizer = load_foreign(plain_folder(model, Path(place)))
        network.to(pick_device("auto", 0))
        asked: Any = backend.HFLM(pretrained=network, tokenizer=tokenizer, batch_size=AT_ONCE)
        try:
            found: dict[str, Any] = lm_eval.simple_evaluate(
                model=asked, tasks=list(tasks), task_manager=known, limit=most or None, log_samples=False
            )
        except Exception as error:  # whatever a task, its data set or its own code raises
            reason = " ".join(str(error).split())[:300]
            raise StudyError(
                f"lm-evaluation-harness gave up on {', '.join(tasks)}: {type(error).__name__}: {reason}"
            ) from error
    return found


def table_of(found: dict[str, Any]) -> str:
    """The harness's own table of its results."""
    return str(import_module("lm_eval.utils").make_table(found)).rstrip()
