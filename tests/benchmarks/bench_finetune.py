"""What pre-training an encoder is worth to a classifier, by the commands: search, final, export, five gaps filled, labels taught.

Every fourth file of the larger packages of the standard library is held out, of the encoder's text as well; from the others snippets of a few lines are labelled with the package that
they come from. `budgetlm run --objective mlm` makes an encoder of the text, `budgetlm export` a folder of it, and what `budgetlm finetune` does then is done with that folder and, for the
other side, with fresh weights of the same architecture: at the same rates, seeds and epochs, each at its own best, both measured on snippets of files that neither has seen. The
difference is bootstrapped over the held-out files, since snippets of one file are alike; that of packages and of the pre-training itself (one seed) is in no interval.

The same command goes on: a study that is done is not done again. Hours are of the wall clock, as `run` counts them; seconds of fine-tuning of the processor, on one thread.

    python -m tests.benchmarks.bench_finetune chain --hours 0.4
"""

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetlm.data.config import DataConfig
from budgetlm.data.sources import open_sources
from budgetlm.evaluation import interval
from budgetlm.finetune import Finetuned, Settings, finetune
from tests.benchmarks.bench_learning import ProcessorClock

LEAST_FILES, LEAST_BYTES = 8, 1500
"""A package has at least so many files of that size."""
LINES = 8
"""Of a snippet."""
SENTENCES = (
    "import[MASK]",
    "    def[MASK](self):",
    "if __name__ == '__[MASK]__':",
    "for i in[MASK](len(names)):",
    "    raise[MASK]('bad value')",
)


def packages() -> dict[str, list[Path]]:
    """Files of the larger packages, by package, in an order by chance; the tables of `encodings` are no text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        name = path.relative_to(root).parts[0]
        skipped = {"test", "tests", "idle_test", "site-packages", "encodings", "__pycache__"} & set(path.parts)
        if not skipped and path.stat().st_size >= LEAST_BYTES:
            found.setdefault(name, []).append(path)
    for paths in found.values():
        random.Random(0).shuffle(paths)
    return {name: paths for name, paths in found.items() if len(paths) >= LEAST_FILES}


def snippets(paths: list[Path], most: int) -> list[tuple[str, str]]:
    """Stretches of lines, spread over the files, each with its file."""
    found = []
    for path in paths:
        lines = path.read_text(errors="replace").splitlines()
        starts = list(range(0, max(1, len(lines) - LINES), LINES))
        random.Random(path.name).shuffle(starts)
        found += [("\n".join(lines[at : at + LINES]), str(path), rank) for rank, at in enumerate(starts)]
    found = [(text, path, rank) for text, path, rank in found if len(text.strip()) > 100]
    return [(text, path) for text, path, _ in sorted(found, key=lambda f: f[2])[:most]]


def write_texts(home: Path, most: Sequence[int]) -> list[str]:
    """The encoder's text, without the held-out files, and the labelled rows; returns each held-out row's file."""
    labelled: dict[str, list[dict[str, str]]] = {"train": [], "held": []}
    held: set[Path] = set()
    for name, paths in packages().items():
        held |= set(paths[::4])
        learnt = [path for number, path in enumerate(paths) if number % 4]
        for part, chosen, count in zip(labelled, (learnt, paths[::4]), most, strict=True):
            labelled[part] += [{"text": text, "label": name, "file": file} for text, file in snippets(chosen, count)]
    for part, rows in labelled.items():
        (home / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (home / "text").exists():
        hidden = {path.read_text(errors="replace") for path in held}
        (home / "text").mkdir()
        for number, (text, _) in enumerate(open_sources(DataConfig(source="stdlib"), home / "cache")[0].texts()):
            if text not in hidden:
                (home / "text" / f"{number:04d}.py").write_text(text)
    files = [row["file"] for row in labelled["held"]]
    print(
        f"{len(packages())} packages, {len(labelled['train'])} snippets to train on, {len(files)} held out of {len(set(files))} files"
    )
    return files


def command(home: Path, *arguments: str) -> None:
    """A command, in that folder, with a cache of its own."""
    print("$ budgetlm", *arguments, flush=True)
    environment = {**os.environ, "BUDGETLM_CACHE": str(home / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-m", "budgetlm", *arguments], cwd=home, env=environment, check=True)


def fill_gaps(folder: Path) -> None:
    """Five sentences, by transformers alone."""
    from transformers import pipeline

    fill = pipeline("fill-mask", model=str(folder), device="cpu")
    for sentence in SENTENCES:
        guesses = ", ".join(f"{guess['token_str']!r} {guess['score']:.2f}" for guess in fill(sentence)[:3])
        print(f"{sentence!r}: {guesses}", flush=True)


def probe(folder: Path, home: Path) -> None:
    """Share of held-out snippets that a linear classifier tells, of the mean of each layer's states, for the weights as they are and for fresh ones."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(folder), {}
    parts = [[json.loads(line) for line in (home / f"{part}.jsonl").open()] for part in ("train", "held")]
    names = sorted({row["label"] for row in parts[0]})
    target_N, asked_N = (torch.tensor([names.index(row["label"]) for row in rows]) for rows in parts)
    for weights in ("pre-trained", "fresh"):
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder) if weights == "pre-trained" else AutoModel.from_config(config)
        states = [torch.stack([means(model.eval(), tokenizer, row["text"]) for row in rows], 1) for rows in parts]
        found[weights] = [
            max(linear(train_ND, target_N, held_ND, asked_N, penalty) for penalty in (1e-3, 1e-2, 1e-1))
            for train_ND, held_ND in zip(*states, strict=True)
        ]
    for weights, shares in found.items():
        print(f"linear classifier, {weights}: {' '.join(f'{share:.3f}' for share in shares)} (embeddings, then layers)")


@torch.no_grad()
def means(model: Any, tokenizer: Any, text: str) -> Tensor:
    """The mean state of a text after the embedding and after each layer, shape (layers + 1, width)."""
    tokens = tokenizer(text, return_tensors="pt", truncation=True)
    return torch.stack([state_BLD[0].mean(0) for state_BLD in model(**tokens, output_hidden_states=True).hidden_states])


def linear(train_ND: Tensor, target_N: Tensor, held_ND: Tensor, asked_N: Tensor, penalty: float) -> float:
    """Share that logistic regression on standardised states gets right of what it has not seen."""
    middle, spread = train_ND.mean(0), train_ND.std(0) + 1e-6
    classifier = torch.nn.Linear(train_ND.shape[1], int(target_N.max()) + 1)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.cross_entropy(classifier((train_ND - middle) / spread), target_N)
        total = fit + penalty * classifier.weight.square().sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        return float((classifier((held_ND - middle) / spread).argmax(-1) == asked_N).float().mean())


def difference(one: Finetuned, other: Finetuned, files: list[str]) -> tuple[float, float, float]:
    """How much more of the held-out snippets one gets right, mean over seeds, and its 80 % interval over files."""
    better = np.array(one.got).mean(0) - np.array(other.got).mean(0)
    groups = [[i for i, file in enumerate(files) if file == name] for name in sorted(set(files))]
    sums = np.array([better[group].sum() for group in groups])
    return float(better.mean()), *interval(sums, np.array([len(group) for group in groups]))


def teach(folder: Path, home: Path, rate: float, epochs: float, seeds: int, *, fresh: bool) -> Finetuned:
    """As `budgetlm finetune OUT --model FOLDER --data train.jsonl --validation held.jsonl --seeds N --rate R --epochs E [--from-scratch]` does it."""
    torch.set_num_threads(1)
    settings = Settings(seeds=seeds, epochs=epochs, rate=rate, from_scratch=fresh, seconds=1e6, device="cpu")
    data, held = DataConfig(source=str(home / "train.jsonl")), str(home / "held.jsonl")
    with TemporaryDirectory() as place:
        found = finetune(folder, Path(place) / "out", data, settings, home / "cache", ProcessorClock(), validation=held)
    print(
        f"{rate:<7g} {epochs:<7g} {'fresh' if fresh else 'pre-trained':11}  {found.score:.3f} ({found.low:.3f} to {found.high:.3f})   "
        f"{' '.join(f'{score:.3f}' for score in found.by_seed)}   {found.seconds / seeds:.0f}",
        flush=True,
    )
    return found


def main() -> None:
    """Make the texts and the encoder, fill five gaps, fine-tune from both, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, nargs="?", default=Path("bench-finetune"), help="where everything is kept")
    parser.add_argument("--hours", type=float, default=0.4, help="of `budgetlm run`: search and final together")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, nargs="+", default=[4.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 2e-3], help="for both sides")
    parser.add_argument("--snippets", type=int, nargs=2, default=[40, 20], help="of a package, to train on and held out")
    wanted = parser.parse_args()
    home = wanted.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    files = write_texts(home, wanted.snippets)
    command(home, *f"run --hours {wanted.hours} --objective mlm --data text --study encoder --threads 1".split())
    if not (home / "exported").exists():
        command(home, "export", "exported", "--study", "encoder")
    torch.set_num_threads(1)
    fill_gaps(home / "exported")
    probe(home / "exported", home)
    print("rate    epochs  weights      accuracy (80 % interval over snippets)   by seed   seconds of each")
    best: dict[bool, Finetuned] = {}
    for rate, epochs, fresh in product(wanted.rates, wanted.epochs, (False, True)):
        found = teach(home / "exported", home, rate, epochs, wanted.seeds, fresh=fresh)
        if fresh not in best or found.score > best[fresh].score:
            best[fresh] = found
    gain, low, high = difference(best[False], best[True], files)
    print(
        f"each side at its best: {best[False].score:.3f} pre-trained, {best[True].score:.3f} fresh, gain {gain:+.3f} "
        f"({low:+.3f} to {high:+.3f} over files); commonest {best[False].chance:.3f}"
    )


if __name__ == "__main__":
    main()
