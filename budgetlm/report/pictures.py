"""The figures of a page as PNG and SVG files: a browser without a window draws them, as it would on a screen."""

import os
import shutil
from pathlib import Path

from budgetlm.errors import ConfigError
from budgetlm.files import write_atomic

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT, SCALE = 1000, 800, 2
"""Of the window, and how many dots of a picture there are to one of its."""
MOST_SECONDS = 120


def write_pictures(page: Path, folder: Path) -> list[Path]:
    """Write every figure of a page as `<figure>.png` and `<figure>.svg`.

    Args:
        page: a report.

    Raises:
        ConfigError: playwright or a browser is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise ConfigError(
            "pictures are drawn by a browser, which playwright speaks to: `pip install 'budgetlm[png]'`, and a Chromium "
            "(`apt install chromium`, or `playwright install chromium`)."
        ) from None
    written = []
    try:
        with sync_playwright() as player:
            browser = player.chromium.launch(executable_path=find_browser(), args=sandbox())
            try:
                window = browser.new_page(
                    viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE, color_scheme="light"
                )
                window.goto(page.resolve().as_uri())
                window.wait_for_selector("body[data-ready=yes]", timeout=1000 * MOST_SECONDS)
                for figure in window.query_selector_all("figure[data-figure]:not([hidden]):not([data-failed])"):
                    plot = figure.query_selector(".plot")
                    if plot is None or plot.query_selector("svg") is None:
                        continue
                    name = figure.get_attribute("data-figure")
                    write_atomic(folder / f"{name}.png", plot.screenshot())
                    drawn: str = figure.evaluate("figure => window.budgetlm.svgText(figure)")
                    write_atomic(folder / f"{name}.svg", drawn)
                    written += [folder / f"{name}.png", folder / f"{name}.svg"]
            finally:
                browser.close()
    except Error as error:
        raise ConfigError(
            f"the browser that draws pictures did not work: {error.message.splitlines()[0]}. Install Chromium (`apt install "
            "chromium`, or `playwright install chromium`)."
        ) from error
    return written


def sandbox() -> list[str]:
    """Chromium refuses to begin as root with its sandbox on, as in most containers."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []


def find_browser() -> str | None:
    """A browser of the system; None for playwright's own."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)
