"""What budgetlm costs before it does anything: seconds of `import budgetlm`, of `budgetlm --help` and of an import of torch beside them,
in turns; and the bytes of what is installed, of the package, of all that it needs, and of what every extra adds to that.

    python -m tests.benchmarks.bench_install --repeats 9

Only what is installed here is weighed; an extra with a part that is not is named so.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

COMMANDS = {
    "python, nothing": ["-c", "pass"],
    "import budgetlm": ["-c", "import budgetlm"],
    "budgetlm --help": ["-m", "budgetlm", "--help"],
    "import torch": ["-c", "import torch"],
}
PACKAGE = "budgetlm"


def seconds(arguments: list[str]) -> float:
    """Of a Python process on the wall."""
    before = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - before


def requirements(name: str, extras: Iterable[str]) -> list[Requirement]:
    """What a distribution asks for with some of its extras."""
    found = map(Requirement, distribution(name).requires or [])
    return [r for r in found if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in ("", *extras))]


def closure(name: str, extras: tuple[str, ...] = ()) -> tuple[set[str], set[str]]:
    """The distributions that one needs, itself left out: those that are installed, and those that are not."""
    found: set[str] = set()
    missing: set[str] = set()
    todo = [(name, extras)]
    seen = set(todo)
    while todo:
        for need in requirements(*todo.pop()):
            one = (need.name.lower().replace("_", "-"), tuple(sorted(need.extras)))
            if one in seen:
                continue
            seen.add(one)
            try:
                distribution(one[0])
            except PackageNotFoundError:
                missing.add(one[0])
                continue
            found.add(one[0])
            todo.append(one)
    return found - {PACKAGE}, missing


def weight(names: Iterable[str]) -> float:
    """Megabytes of the files of some distributions."""
    total = 0
    for name in names:
        for file in distribution(name).files or []:
            path = Path(str(distribution(name).locate_file(file)))
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.repeats):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    for name, measured in times.items():
        print(
            f"{name:16} {statistics.median(measured):6.2f} s ({min(measured):.2f} to {max(measured):.2f}, n = {options.repeats})"
        )
    own = sum(
        f.stat().st_size
        for f in Path(__file__).parents[2].joinpath(PACKAGE).rglob("*")
        if "__pycache__" not in f.parts and f.is_file()
    )
    base, _ = closure(PACKAGE)
    print(
        f"{PACKAGE:16} {own / 1e6:8.1f} MB\n{'its needs':16} {weight(base):8.1f} MB in {len(base)} packages, torch {weight(['torch']):.1f} of it"
    )
    for extra in sorted(distribution(PACKAGE).metadata.get_all("Provides-Extra") or []):
        with_it, missing = closure(PACKAGE, (extra,))
        lacking = f"; not installed here: {', '.join(sorted(missing))}" if missing else ""
        print(f"+ {extra:14} {weight(with_it - base):8.1f} MB in {len(with_it - base)} packages{lacking}")


if __name__ == "__main__":
    main()
