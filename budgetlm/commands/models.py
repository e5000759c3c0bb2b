"""What is done with a trained model: measured on other text, handed on to other programs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from budgetlm.commands.options import DataOption, JsonOption, StudyOption, cache_folder
from budgetlm.errors import ConfigError


def export(
    out: Annotated[Path, typer.Argument(help="The folder to be made, or for gguf the file.")],
    to: Annotated[str, typer.Option(help="hf: a folder for transformers; gguf: a file for llama.cpp.")] = "hf",
    study: StudyOption = "best",
    model: Annotated[Path | None, typer.Option(help="A model folder, instead of a study's newest final.")] = None,
    push: Annotated[str, typer.Option(help="Also upload the folder to the Hugging Face Hub, as owner/name.")] = "",
    private: Annotated[bool, typer.Option(help="Where it is pushed, only for its owner.")] = False,
) -> None:
    """Write a trained model so that others load it without budgetlm.

    budgetlm export my-model        budgetlm export my-model --push owner/name        budgetlm export my.gguf --to gguf
    """
    if push and to != "hf":
        raise ConfigError(f"`--push` uploads a folder for transformers, and `--to {to}` makes none. Use `--to hf`.")
    from budgetlm.export import export as write
    from budgetlm.export import model_of
    from budgetlm.export import push as upload
    from budgetlm.studies import resolve

    folder, origin = (model, None) if model else model_of(resolve(study))
    typer.echo(write(folder, out, to, origin))
    if push:
        typer.echo(upload(out, push, private))


def eval(
    data: DataOption = None,
    study: StudyOption = "best",
    model: Annotated[
        Path | None, typer.Option(help="A model folder, of budgetlm or for transformers, instead of a study's newest final.")
    ] = None,
    max_mb: Annotated[float, typer.Option(help="Read so much of the text, in megabytes; 0 for all.", min=0)] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Measure a trained model's bits per byte on any text, with an interval.

    budgetlm eval --data texts/        budgetlm eval --data new.jsonl.gz --model my-model --json
    """
    import dataclasses

    from budgetlm.data.config import TOGETHER, DataConfig
    from budgetlm.evaluation import evaluate_text
    from budgetlm.studies import newest_final, resolve

    if not data:
        raise ConfigError("on which text? Give `--data`, e.g. `budgetlm eval --data texts/`.")
    model = model or newest_final(resolve(study))[0]
    found = evaluate_text(model, DataConfig(source=TOGETHER.join(data)), cache_folder(), round(max_mb * 1e6))
    typer.echo(
        json.dumps(dataclasses.asdict(found), indent=1) if as_json else found.summary(f"{model} on {TOGETHER.join(data)}")
    )
