"""What is done with a trained model: measured on other text, handed on to other programs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from budgetlm.commands.options import ColumnOption, DataOption, JsonOption, StudyOption, TextOption, cache_folder
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
    column: ColumnOption = "text",
    text: TextOption = "",
    max_mb: Annotated[float, typer.Option(help="Read so much of the text, in megabytes; 0 for all.", min=0)] = 2.0,
    tasks: Annotated[str, typer.Option(help="Instead of a text, tasks of lm-evaluation-harness, with commas.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="A folder with tasks of your own, as yaml.")] = None,
    limit: Annotated[int, typer.Option(help="So many questions of each task; 0 for all.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a trained model's bits per byte on any text, with an interval.

    Or put tasks of lm-evaluation-harness to it (`pip install 'budgetlm[eval]'`).

    budgetlm eval --data new.jsonl.gz --column body --model my-model        budgetlm eval --tasks mine --include-path tasks/ --json
    """
    import dataclasses

    from budgetlm.data.config import TOGETHER, DataConfig
    from budgetlm.evaluation import evaluate_text
    from budgetlm.studies import newest_final, resolve

    if not data and not tasks:
        raise ConfigError("on which text? Give `--data`, e.g. `budgetlm eval --data texts/`, or `--tasks`.")
    if data and tasks:
        raise ConfigError("`--data` and `--tasks` are two measurements. Give one of them.")
    model = model or newest_final(resolve(study))[0]
    if not data:
        from budgetlm.harness import run_tasks, table_of

        answers = run_tasks(model, [name.strip() for name in tasks.split(",") if name.strip()], include_path, limit)
        typer.echo(json.dumps(answers["results"], indent=1, default=str) if as_json else table_of(answers))
        return
    config = DataConfig(source=TOGETHER.join(data), column=column, text=text)
    found = evaluate_text(model, config, cache_folder(), round(max_mb * 1e6))
    typer.echo(
        json.dumps(dataclasses.asdict(found), indent=1) if as_json else found.summary(f"{model} on {TOGETHER.join(data)}")
    )


def finetune(
    out: Annotated[Path, typer.Argument(help="The folder to be made.")],
    data: Annotated[
        str, typer.Option(help="A labelled table: csv, jsonl, parquet, a folder or address of them, or hf:owner/name.")
    ],
    label: Annotated[
        str,
        typer.Option(help="The column of labels; to tag, as many as there are words; to continue, the text that follows."),
    ] = "label",
    task: Annotated[
        str, typer.Option(help="classify: a label for a text; tag: one for each word; continue: a text that follows.")
    ] = "classify",
    column: ColumnOption = "text",
    text: TextOption = "",
    validation: Annotated[str, typer.Option(help="A table to measure on, in place of a fifth of the data.")] = "",
    study: StudyOption = "best",
    model: Annotated[
        Path | None, typer.Option(help="A model folder, of budgetlm or for transformers, instead of a study's newest final.")
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="The same architecture with fresh weights, to see what training was worth."),
    ] = False,
    seeds: Annotated[int, typer.Option(help="How often, each time with other new weights and another order.", min=1)] = 1,
    epochs: Annotated[float, typer.Option(help="How often the rows are read.", min=0.01)] = 3.0,
    hours: Annotated[float, typer.Option(help="Most device-hours, all seeds together.", min=0.0001)] = 1.0,
    rate: Annotated[float, typer.Option(help="Peak learning rate; 0 for one that suits the width.", min=0)] = 0.0,
    batch: Annotated[int, typer.Option(help="Rows in a step.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Teach a trained model labels of your own, and measure what it has learnt.

    A study's final is charged to the study; another model to nobody.

    budgetlm finetune my-classifier --data reviews.csv --label stars        budgetlm finetune tagger --data words.jsonl --task tag --model my-model
    """
    from typing import cast

    from budgetlm.budget.clock import Clock
    from budgetlm.data.config import DataConfig
    from budgetlm.data.labelled import TaskName
    from budgetlm.finetune import Settings
    from budgetlm.finetune import finetune as teach
    from budgetlm.studies import newest_final, resolve

    name = None if model else resolve(study)
    settings = Settings(
        task=cast("TaskName", task),  # what it is not is refused where it is read
        label=label,
        seeds=seeds,
        from_scratch=from_scratch,
        epochs=epochs,
        seconds=hours * 3600,
        rate=rate,
        batch=batch,
        device=device,
    )
    found = teach(
        newest_final(name)[0] if name else cast("Path", model),
        out,
        DataConfig(source=data, column=column, text=text),
        settings,
        cache_folder(),
        Clock(),
        validation=validation,
        study=name,
        note=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.summary(out))
