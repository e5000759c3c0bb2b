"""Train what was chosen, and let it write."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetlm.allocator import begin_again
from budgetlm.commands.options import EngineOption, PickOption, RayOption, StudyOption, TrackOption, cache_folder
from budgetlm.errors import BudgetlmError, ConfigError

if TYPE_CHECKING:
    from budgetlm.final import FinalResult


def final(
    study: StudyOption = "best",
    hours: Annotated[float, typer.Option(help="Device-hours of the final; 0 for the study's target.", min=0)] = 0.0,
    trial: Annotated[int | None, typer.Option(help="Train this trial's recipe instead of the chosen one.", min=0)] = None,
    pick: PickOption = "best",
    seed: Annotated[int, typer.Option(help="Initialisation and data order.", min=0)] = 0,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a model with the study's vocabulary, whose weights this final alone begins from, in their shape."
        ),
    ] = None,
    track: TrackOption = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Devices that train it together, each of them charged; 0 for all GPUs, or one CPU, or all of a Ray cluster.",
            min=0,
        ),
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            help="How they do: auto, ddp (each holds the model), fsdp (a part), tp (a part of each matrix), pp (some blocks), ddp,tp or fsdp,tp (both)."
        ),
    ] = None,
    engine: EngineOption = None,
    ray_address: RayOption = None,
) -> None:
    """Train the chosen recipe for the full target; run it again to resume.

    budgetlm final --study best        budgetlm final --study demo --hours 2 --seed 1        budgetlm final --devices 8
    budgetlm final --hours 2 --init my-model
    """
    import dataclasses

    from budgetlm.budget.clock import Clock
    from budgetlm.progress import make_watcher
    from budgetlm.studies import open_config, resolve

    if trial is not None and pick != "best":
        raise ConfigError(f"`--trial {trial}` and `--pick {pick}` name two recipes. Give one of them.")
    name = resolve(study)
    config = open_config(name)
    wanted: dict[str, Any] = {
        "final_devices": devices,
        "parallel": parallel,
        "engine": engine,
        "ray_address": ray_address,
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **given))
    begin_again(config.train.allocator)
    watcher = make_watcher(name)
    try:
        from budgetlm.final import final as run_final
        from budgetlm.track import tracking

        with tracking(name, track or [], watcher.note):
            result = run_final(
                name,
                cache_folder(),
                Clock(),
                watcher,
                config=config,
                hours=hours,
                trial=trial,
                seed=seed,
                which=pick,
                init=init,
            )
    finally:
        watcher.close()
    tell_final(name, result)


def tell_final(name: str, result: "FinalResult") -> None:
    """Print how a final ended.

    Raises:
        BudgetlmError: it diverged.
        typer.Exit: it is to be gone on with.
    """
    from budgetlm.tell import describe_final

    record = result.record
    if record.state == "interrupted":
        typer.echo("budgetlm: the final is interrupted, its checkpoint written; the same command goes on.", err=True)
        raise typer.Exit(result.exit_code)
    if record.state == "diverged":
        raise BudgetlmError(
            f"the final of study {name!r} diverged after {record.steps:,} steps and {record.seconds:.0f} s: {record.error}. "
            f"Try another trial (`--trial N`), or another seed."
        )
    typer.echo(describe_final(name, result))


def generate(
    prompt: Annotated[
        str, typer.Argument(help="Text to go on from; empty begins a new text, `-` reads it from stdin.")
    ] = "",
    study: StudyOption = "best",
    model: Annotated[Path | None, typer.Option(help="A model folder, instead of a study's newest final.")] = None,
    tokens: Annotated[int, typer.Option(help="At most so many tokens.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="Higher is wilder; 0 takes the likeliest.", min=0)] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among so many tokens; 0 for all.", min=0)] = 50,
    top_p: Annotated[
        float, typer.Option(help="Choose among the likeliest that have this probability together; 1 for all.", min=0, max=1)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
) -> None:
    """Let a trained model go on from a prompt, or fill its gaps.

    A decoder goes on; an encoder says what `[MASK]` stands for.

    budgetlm generate - --top-p 0.9 < start.txt        budgetlm generate "import [MASK]" --study my-encoder
    """
    if prompt == "-":
        prompt = typer.get_text_stream("stdin").read()
    from budgetlm.studies import newest_final, resolve

    model = model or newest_final(resolve(study))[0]
    from budgetlm.compress.artefact import load_artefact
    from budgetlm.model.generate import generate as sample

    network, tokenizer, end = load_artefact(model)
    if network.config.encodes:
        from budgetlm.model.fill import fill

        filled = fill(network, [end, *tokenizer.encode(prompt, add_special_tokens=False).ids, end])
        typer.echo(tokenizer.decode(filled))
        return
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids or [end]
    shown = ""
    made: list[int] = []
    typer.echo(prompt, nl=False)
    for token in sample(network, ids, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, end_of_text=end):
        made.append(token)
        text = tokenizer.decode(made)
        if not text.endswith("\ufffd"):  # half a character: wait for its other bytes
            typer.echo(text[len(shown) :], nl=False)
            shown = text
    typer.echo()
