"""Options that several commands take, and what they come to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetlm.data.config import TOGETHER

if TYPE_CHECKING:
    from budgetlm.config import StudyConfig

StudyOption = Annotated[str, typer.Option(help="Name of the study, or `best`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
HoursOption = Annotated[float | None, typer.Option(help="Device-hours that the search may spend in total, e.g. 24 or 0.1.")]
TargetOption = Annotated[float | None, typer.Option(help="Device-hours of the final that it searches for (default 24).")]
NameOption = Annotated[str | None, typer.Option(help="Name of the study; repeat it to go on where it stopped.")]
FileOption = Annotated[Path | None, typer.Option(help="A study file (TOML), e.g. studies/demo.toml.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="stdlib, site, a file or folder, http(s)://…/file, or hf:owner/name. Several: repeat it, with shares of what is read (a:0.7) or without."
    ),
]
ColumnOption = Annotated[str, typer.Option(help="The column that holds the text, in tables.")]
TextOption = Annotated[
    str, typer.Option(help="In place of one column, a text with columns in braces, e.g. '{title} {body}'.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", "--workers", help="Devices to use at once, each of them charged; 0 for all GPUs, or one CPU."),
]
ProxyOption = Annotated[
    str | None,
    typer.Option(help="What stands for a recipe on a rung: miniature, or truncate for its own shape in less time."),
]
LimitOption = Annotated[
    float | None, typer.Option(help="Most that the final's weights may weigh on the disk, in megabytes; 0 for no limit.")
]
ObjectivesOption = Annotated[
    str | None, typer.Option(help="What recipes are judged by: loss, or loss,size or loss,latency.")
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(
        help="What models learn: clm, the next token (a decoder), or mlm, hidden ones (an encoder). Stays for a study's life."
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="Where the study's database is, for workers on several machines: postgresql+psycopg://user@host/database."
    ),
]
SharedOption = Annotated[
    str | None,
    typer.Option(
        help="A bucket for workers on machines that do not see the study's folder: s3://bucket/folder, or any address of fsspec's."
    ),
]
EngineOption = Annotated[str | None, typer.Option(help="Who runs the workers: processes, or ray.")]
RayOption = Annotated[
    str | None, typer.Option(help="Ray's cluster: auto, or ray://host:10001; left out, one on this machine alone.")
]
InitOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of a model whose weights all runs begin from: a final's `model` folder, what `export` wrote, or a plain Qwen3 or ModernBERT."
    ),
]
PickOption = Annotated[
    str, typer.Option(help="Of the front, where more than the loss counts: smallest, fastest, best, or a trial's number.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads of a worker; 0 for what is fastest, one per core at most.")
]
TrackOption = Annotated[
    list[str] | None, typer.Option(help="Tell tensorboard, mlflow, wandb or trackio of runs as they end; may be repeated.")
]


def sections(
    hours: float | None,
    target_hours: float | None,
    data: list[str] | None,
    device: str | None,
    devices: int | None,
    threads: int | None,
    objective: str | None,
    search: Mapping[str, object],
    init: str | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
) -> dict[str, dict[str, object]]:
    """The options of a search as the sections of a study file; None where an option was not given."""
    return {
        "budget": {"hours": hours, "target_hours": target_hours},
        "data": {"source": TOGETHER.join(data) if data else None},
        "model": {"objective": objective, "init": init},
        "train": {
            "device": device,
            "devices": devices,
            "threads": threads,
            "engine": engine,
            "ray_address": ray_address,
        },
        "search": dict(search),
    }


def search_config(study: str | None, file: Path | None, options: dict[str, dict[str, object]]) -> "StudyConfig":
    """Study file, then the study's own earlier settings, then the options of this call."""
    import dataclasses

    from budgetlm.config import STUDIES, STUDY_FILE, read_study_file, study_config
    from budgetlm.files import checked_name
    from budgetlm.studies import PLAN

    base = dataclasses.asdict(read_study_file(file)) if file else {}
    name = checked_name(study or str(base.get("name", "default")))
    known = STUDIES / name
    if (known / PLAN).exists() and not file:
        base = dataclasses.asdict(read_study_file(known / STUDY_FILE))
    table = {**base, "name": name}
    for section, values in options.items():
        given = {key: value for key, value in values.items() if value is not None}
        table[section] = {**base.get(section, {}), **given}
    from budgetlm.inherit import inherited

    return inherited(study_config(table))


def cache_folder() -> Path:
    """Where prepared data and calibrations are kept: `BUDGETLM_CACHE`, or the user's cache folder."""
    given = os.environ.get("BUDGETLM_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(root) / "budgetlm"
