"""Bytes of a report, seconds to write it, seconds until it can be used, at 10, 1,000 and 10,000 made-up trials with curves.

Beside it the same trials as pages of `optuna.visualization` (history, importances, parallel coordinates, slices, contour of two), each of which
carries plotly once, and the pages of a whole contour; and as a study in optuna-dashboard until its page shows the history. Peers are
passed over where they are not installed: `pip install plotly optuna-dashboard`. Processor time of this process for writing; the
time on the wall in a headless Chromium for the rest, as median of three.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna

from budgetlm.records import RUNS, curve_path, read_curve, read_records
from budgetlm.report.facts import Facts, points_for_each
from budgetlm.report.page import page
from budgetlm.report.pictures import find_browser, sandbox
from tests.report.made import facts

READY = {
    "budgetlm": "body[data-ready=yes]",
    "optuna.visualization": ".js-plotly-plot .main-svg",
}
MOST_SECONDS = 300
PORT = 18_765


def main() -> None:
    """Print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 50, 1_000, 10_000])
    parser.add_argument("--alone", action="store_true", help="without peers")
    asked = parser.parse_args()
    print(f"{'trials':>7} {'what':36} {'MB':>7} {'written, s':>11} {'usable after, s':>16} {'sorted or drawn again, s':>25}")
    for trials in asked.trials:
        made = facts(trials, points=100)
        with tempfile.TemporaryDirectory() as folder:
            ours(made, trials, Path(folder))
            if not asked.alone:
                visualisations(made, trials, Path(folder))
                dashboard(made, trials, Path(folder))


def row(trials: int, what: str, size: float, written: float, usable: float | None, again: float | None = None) -> None:
    """One line of the table."""
    shown = ["-" if s is None else f"{s:.2f}" for s in (usable, again)]
    print(f"{trials:7,} {what:36} {size / 1e6:7.2f} {written:11.2f} {shown[0]:>16} {shown[1]:>25}", flush=True)


def ours(made: Facts, trials: int, folder: Path) -> None:
    """The page of budgetlm."""
    path = folder / "page.html"
    for run, points in made.curves.items():
        curve_path(folder, run).parent.mkdir(exist_ok=True)
        curve_path(folder, run).write_text("".join(f"{json.dumps(asdict(point))}\n" for point in points))
    most = points_for_each(len(made.curves))
    (folder / RUNS).write_text("".join(f"{json.dumps(asdict(record))}\n" for record in made.records))
    read, _ = timed(lambda: [read_records(folder), *(read_curve(folder, run, most) for run in made.curves)])
    row(trials, "budgetlm, its records and curves read", 0, read, None)
    seconds, text = timed(lambda: page(made))
    path.write_text(text)
    times = in_browser(path.as_uri(), READY["budgetlm"], "document.querySelector('th[data-key=bpb] button').click()")
    row(trials, "budgetlm, the whole page", path.stat().st_size, seconds, *times)


def visualisations(made: Facts, trials: int, folder: Path) -> None:
    """Optuna's figures, each written as a page of its own; together, and the contour of all parameters alone."""
    if not find_spec("plotly"):
        return
    study, shown = study_of(made), optuna.visualization
    plots: dict[str, Callable[[], Any]] = {
        "history": lambda: shown.plot_optimization_history(study),
        "importances": lambda: shown.plot_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        ),
        "parallel": lambda: shown.plot_parallel_coordinate(study),
        "slices": lambda: shown.plot_slice(study),
        "contour": lambda: shown.plot_contour(study, params=["peak_lr", "batch_tokens"]),
    }
    size, written, usable = 0, 0.0, 0.0
    for name, plot in plots.items():
        path = folder / f"optuna-{name}.html"
        seconds, _ = timed(lambda: plot().write_html(path))  # noqa: B023  # done before the next
        size, written = size + path.stat().st_size, written + seconds
        opened, _ = in_browser(path.as_uri(), READY["optuna.visualization"])
        usable += opened or 0.0
    row(trials, f"optuna.visualization, {len(plots)} pages", size, written, usable)
    if trials <= 1_000:
        path = folder / "optuna-contours.html"
        seconds, _ = timed(lambda: shown.plot_contour(study).write_html(path))
        times = in_browser(path.as_uri(), READY["optuna.visualization"])
        row(trials, "optuna.visualization, contour of all", path.stat().st_size, seconds, *times)


def dashboard(made: Facts, trials: int, folder: Path) -> None:
    """optuna-dashboard on a study in SQLite, from the request until its history is drawn."""
    if not find_spec("optuna_dashboard") or not find_browser():
        return
    url = f"sqlite:///{folder}/study.db"
    seconds, _ = timed(lambda: study_of(made, url))
    server = subprocess.Popen(
        [sys.executable, "-m", "optuna_dashboard", url, "--port", str(PORT), "--quiet"], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(8)
        times = in_browser(f"http://127.0.0.1:{PORT}/dashboard/studies/1", ".js-plotly-plot .main-svg", repeats=1)
    finally:
        server.terminate()
        server.wait()
    row(trials, "optuna-dashboard (no file, a server)", 0, seconds, *times)


def study_of(made: Facts, storage: str | None = None) -> optuna.Study:
    """The made-up trials as a study of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "depth": optuna.distributions.IntDistribution(1, 4),
        "width": optuna.distributions.IntDistribution(32, 160, step=16),
        "batch_tokens": optuna.distributions.IntDistribution(1024, 8192, log=True),
        "peak_lr": optuna.distributions.FloatDistribution(0.003, 0.1, log=True),
        "schedule": optuna.distributions.CategoricalDistribution(["linear", "cosine"]),
    }
    found = {r.trial: r for r in made.records if r.kind == "rung" and r.bpb is not None}
    study = optuna.create_study(storage=storage, study_name="made", direction="minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(params={name: r.recipe[name] for name in space}, distributions=space, value=r.bpb)
            for r in found.values()
        ]
    )
    return study


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of this process, and what was made."""
    before = time.process_time()
    made = work()
    return time.process_time() - before, made


def in_browser(address: str, ready: str, act: str = "", repeats: int = 3) -> tuple[float | None, float | None]:
    """Seconds until an element is there, and until what is done then has been drawn; medians. None where there is no browser, or it gave up."""
    if not find_spec("playwright") or not find_browser():
        return None, None
    from playwright.sync_api import Error, sync_playwright

    opened, drawn = [], []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=find_browser(), args=sandbox())
        for _ in range(repeats):
            window = browser.new_page(viewport={"width": 1280, "height": 800})
            before = time.perf_counter()
            try:
                window.goto(address, timeout=1000 * MOST_SECONDS)
                window.wait_for_selector(ready, timeout=1000 * MOST_SECONDS)
            except Error:
                return None, None
            opened.append(time.perf_counter() - before)
            if act:
                frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
                before = time.perf_counter()
                window.evaluate(f"async () => {{ {act}; await {frame}; }}")
                drawn.append(time.perf_counter() - before)
            window.close()
        browser.close()
    return statistics.median(opened), statistics.median(drawn) if drawn else None


if __name__ == "__main__":
    main()
