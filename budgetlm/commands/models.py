"""What is done with a trained model: handed on to other programs."""

from pathlib import Path
from typing import Annotated

import typer

from budgetlm.commands.options import StudyOption
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
    from budgetlm.export import newest_final
    from budgetlm.export import push as upload
    from budgetlm.studies import resolve

    folder, origin = (model, None) if model else newest_final(resolve(study))
    typer.echo(write(folder, out, to, origin))
    if push:
        typer.echo(upload(out, push, private))
