"""A study's runs in other tools: TensorBoard, MLflow, Weights & Biases, trackio, each through its own client.

Runs are read from the study's folder when they have ended, by a thread or a command of its own, so that a tool that is slow, or away,
keeps no search waiting. What each tool was told is kept, so that nothing is told twice.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from budgetlm.config import STUDIES
from budgetlm.errors import ConfigError
from budgetlm.files import read_json, write_json
from budgetlm.records import CurvePoint, Records, RunRecord, read_curve

TRACKED = "tracked.json"
EVERY_SECONDS = 5.0
RESULTS = ("bpb", "bpb_full", "seconds", "tokens", "tokens_per_second", "parameters", "artefact_bytes", "peak_bytes")
"""What of a record is a result; its recipe are the parameters."""
MOST_POINTS = 1000
"""Of a curve."""


class Tracker(Protocol):
    """One tool."""

    def tell(self, study: str, record: RunRecord, curve: Sequence[CurvePoint]) -> None:
        """Let it know of a run that has ended."""


class TensorBoard:
    """A folder of events for each run: `tensorboard --logdir studies/S/tensorboard`."""

    needs = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"

    def tell(self, study: str, record: RunRecord, curve: Sequence[CurvePoint]) -> None:  # noqa: ARG002
        """Write the run's events."""
        tensorboard: Any = import_module("torch.utils.tensorboard")
        with tensorboard.SummaryWriter(str(self._folder / record.run)) as writer:
            for point in curve:
                for name, value in curve_values(point).items():
                    writer.add_scalar(name, value, point.step)
            for name, value in results(record).items():
                writer.add_scalar(f"result/{name}", value, record.steps)
            writer.add_text("recipe", " ".join(f"{name}={value}" for name, value in record.recipe.items()))


class MLflow:
    """Where `MLFLOW_TRACKING_URI` says, or `mlflow.db` here: an experiment for each study."""

    needs = "mlflow"

    def __init__(self, _folder: Path) -> None:
        self._client: Any = import_module("mlflow.tracking").MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        )

    def tell(self, study: str, record: RunRecord, curve: Sequence[CurvePoint]) -> None:
        """Log the run with its curve."""
        entities: Any = import_module("mlflow.entities")
        known = self._client.get_experiment_by_name(study)
        experiment = known.experiment_id if known else self._client.create_experiment(study)
        run = self._client.create_run(experiment, run_name=record.run).info.run_id
        parameters = [entities.Param(name, str(value)) for name, value in record.recipe.items()]
        points = [
            entities.Metric(name, value, int(1000 * p.seconds), p.step)
            for p in curve
            for name, value in curve_values(p).items()
        ]
        points += [entities.Metric(f"result.{name}", value, 0, record.steps) for name, value in results(record).items()]
        self._client.log_batch(run, params=parameters[:100])
        for start in range(0, len(points), 1000):  # as many as a call may have
            self._client.log_batch(run, metrics=points[start : start + 1000])
        self._client.set_terminated(run, "FINISHED" if record.state == "done" else "FAILED")


class WeightsAndBiases:
    """Offline in the study's folder, unless `WANDB_MODE` says otherwise: `wandb sync studies/S/wandb/offline-run-*`."""

    needs = "wandb"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tell(self, study: str, record: RunRecord, curve: Sequence[CurvePoint]) -> None:
        """Log the run with its curve."""
        wandb: Any = import_module("wandb")
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(silent=True, console="off", disable_git=True)
        with wandb.init(
            project="budgetlm",
            group=study,
            name=record.run,
            mode=mode,
            dir=str(self._folder),
            config=dict(record.recipe),
            settings=settings,
            reinit="finish_previous",
        ) as run:
            for point in curve:
                run.log(curve_values(point), step=point.step)
            run.summary.update(results(record))


class Trackio:
    """Where trackio keeps its projects (`TRACKIO_DIR`): `trackio show --project S`."""

    needs = "trackio"

    def __init__(self, _folder: Path) -> None:
        pass

    def tell(self, study: str, record: RunRecord, curve: Sequence[CurvePoint]) -> None:
        """Log the run with its curve."""
        trackio: Any = import_module("trackio")
        run = trackio.init(project=study, name=record.run, config=dict(record.recipe), embed=False)
        for point in curve:
            run.log(curve_values(point), step=point.step)
        run.log({f"result/{name}": value for name, value in results(record).items()}, step=record.steps)
        run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[MLflow] | type[WeightsAndBiases] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def curve_values(point: CurvePoint) -> dict[str, float]:
    """A point as named numbers."""
    values = {
        "loss": point.loss,
        "lr": point.lr,
        "tokens": point.tokens,
        "tokens_per_second": point.tokens_per_second,
        "gradient_norm": point.gradient_norm,
        "bpb": point.bpb,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def results(record: RunRecord) -> dict[str, float]:
    """A record's results as named numbers."""
    found: Mapping[str, Any] = {name: getattr(record, name) for name in RESULTS}
    return {name: float(value) for name, value in found.items() if value is not None}


class Tracking:
    """Tells trackers of the runs of a study, each once.

    Args:
        study: a study's name; it may not have begun.
        names: of trackers.

    Raises:
        ConfigError: there is no such tracker, or its client is not installed.
    """

    def __init__(self, study: str, names: Sequence[str]) -> None:
        for name in names:
            if name not in TRACKERS:
                raise ConfigError(f"there is no tracker {name!r}; known: {', '.join(TRACKERS)}.")
            if find_spec(TRACKERS[name].needs) is None:
                raise ConfigError(f"{name} is not installed: pip install 'budgetlm[{name}]'.")
        self._study, self._folder, self._names = study, STUDIES / study, list(dict.fromkeys(names))
        self._records = Records(self._folder)
        self._trackers: dict[str, Tracker] = {}

    def send(self) -> int:
        """Tell of all runs that have ended and were not told yet; how many tellings that were."""
        path, count = self._folder / TRACKED, 0
        told: dict[str, list[str]] = read_json(path) if path.exists() else {}
        ended = {r.run: r for r in self._records.all() if r.state != "interrupted"}
        for name in self._names:
            for run in [run for run in ended if run not in told.setdefault(name, [])]:
                tracker = self._trackers.get(name) or self._trackers.setdefault(name, TRACKERS[name](self._folder))
                with redirect_stdout(sys.stderr):  # results alone go to stdout
                    tracker.tell(self._study, ended[run], read_curve(self._folder, run, MOST_POINTS))
                told[name].append(run)
                write_json(path, told)
                count += 1
        return count


@contextmanager
def tracking(study: str, names: Sequence[str], note: Callable[[str], None]) -> Iterator[None]:
    """Tell trackers of a study's runs while it is worked on, in a thread. A tracker that fails is said once, and harms nothing.

    Raises:
        ConfigError: as `Tracking`.
    """
    if not names:
        yield
        return
    follower, over = Tracking(study, names), threading.Event()

    def follow() -> None:
        while not over.wait(EVERY_SECONDS):
            if not _sent(follower, note):
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _sent(follower, note)


def _sent(tracking: Tracking, note: Callable[[str], None]) -> bool:
    try:
        tracking.send()
    except Exception as error:  # noqa: BLE001  # whatever another tool may do, the study goes on
        note(f"warning   tracking failed: {type(error).__name__}: {error}. `budgetlm track` tells what is missing later.")
        return False
    return True
