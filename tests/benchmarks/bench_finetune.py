"""What pre-training an encoder is worth to a classifier: which package of the standard library does a snippet come from?

Every fourth file of the larger packages is held out, of the encoder's text as well; from the others snippets of a few lines are labelled. The encoder learns from them, and from
fresh weights, at the same rates, seeds and epochs, and both are measured on snippets of files that neither has seen. The difference is bootstrapped over the held-out files, since
snippets of one file are alike; that of packages and of the pre-training itself (one seed) is in no interval. Seconds are of the processor, on one thread.

    python -m tests.benchmarks.bench_finetune --seconds 90
"""

import argparse
import json
import random
import statistics
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from budgetlm.budget.clock import Meter
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.sources import open_sources
from budgetlm.data.tokens import prepare_tokens
from budgetlm.evaluation import interval
from budgetlm.finetune import Finetuned, Settings, finetune
from budgetlm.model.export import save_model
from budgetlm.model.size import ModelConfig, parameters
from budgetlm.train.config import Label, OptimizerConfig, RunConfig
from budgetlm.train.loop import train
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import warm_up
from tests.benchmarks.bench_learning import ProcessorClock

LABEL = Label(run="bench", kind="rung", trial=0, rung=0, recipe={}, target_seconds=0.0)
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


def pretrain(folder: Path, held: set[Path], out: Path, seconds: float, cache: Path) -> None:
    """An encoder of the standard library but for the held-out files, written as a final is."""
    folder.mkdir()
    root = Path(sysconfig.get_paths()["stdlib"])
    names = {path.read_text(errors="replace") for path in held}
    for number, (text, _) in enumerate(open_sources(DataConfig(source="stdlib"), cache)[0].texts()):
        if text not in names:
            (folder / f"{number:04d}.py").write_text(text)
    data = DataConfig(source=str(folder))
    tokens = prepare_tokens(data, prepare_corpus(data, cache), 1024, cache, masks=True)
    model = ModelConfig(
        vocab_size=tokens.facts.vocab_size,
        depth=2,
        width=96,
        context_length=256,
        norm_embedding=True,
        mask_token=tokens.facts.mask,
    )
    run = RunConfig(
        model=model,
        optimizer=OptimizerConfig(name="muon", peak_lr=0.02),
        schedule=ScheduleConfig(shape="linear", warmup=0.05, short_sequences=0.5),
        batch_sequences=12,
        micro_batch_sequences=12,
        seconds=seconds,
        eval_tokens=16_384,
    )
    done = train(run, LABEL, tokens, Meter(ProcessorClock()))
    out.mkdir()
    save_model(out, done.network.cpu(), tokens.tokenizer_file, tokens.facts.end_of_text)
    print(
        f"encoder of {root.name}: {model.depth} x {model.width}, {parameters(model) / 1e6:.2f} M parameters, {done.record.tokens / 1e6:.2f} M tokens in "
        f"{done.record.seconds:.0f} s, pseudo-log-likelihood {done.record.bpb:.3f} bits per byte",
        flush=True,
    )


def difference(one: Finetuned, other: Finetuned, files: list[str]) -> tuple[float, float, float]:
    """How much more of the held-out snippets one gets right, mean over seeds, and its 80 % interval over files."""
    better = np.array(one.got).mean(0) - np.array(other.got).mean(0)
    groups = [[i for i, file in enumerate(files) if file == name] for name in sorted(set(files))]
    sums = np.array([better[group].sum() for group in groups])
    return float(better.mean()), *interval(sums, np.array([len(group) for group in groups]))


def main() -> None:
    """Pre-train, fill five gaps, fine-tune from both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0, help="of pre-training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 5e-4])
    parser.add_argument("--snippets", type=int, nargs=2, default=[40, 20], help="of a package, to train on and held out")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    with TemporaryDirectory() as place:
        home, labelled = Path(place), {"train": [], "held": []}
        held, files = set(), []
        for name, paths in packages().items():
            held |= set(paths[::4])
            learnt = [path for number, path in enumerate(paths) if number % 4]
            for part, chosen, most in zip(labelled, (learnt, paths[::4]), wanted.snippets, strict=True):
                labelled[part] += [{"text": text, "label": name, "file": file} for text, file in snippets(chosen, most)]
        for part, rows in labelled.items():
            (home / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [row["file"] for row in labelled["held"]]
        print(
            f"{len(packages())} packages, {len(labelled['train'])} snippets to train on, {len(files)} held out of {len(set(files))} files"
        )
        pretrain(home / "text", held, home / "encoder", wanted.seconds, home / "cache")

        from transformers import pipeline

        fill = pipeline("fill-mask", model=str(home / "encoder"), device="cpu")
        for sentence in SENTENCES:
            print(f"{sentence!r}: {', '.join(repr(guess['token_str']) for guess in fill(sentence)[:3])}")
        print("rate    weights      accuracy (80 % interval over snippets)   by seed   seconds of each")
        for rate in wanted.rates:
            found = {}
            for fresh in (False, True):
                settings = Settings(
                    seeds=wanted.seeds, epochs=wanted.epochs, rate=rate, from_scratch=fresh, seconds=1e6, device="cpu"
                )
                torch.set_num_threads(1)
                made = finetune(
                    home / "encoder",
                    home / f"out-{rate}-{fresh}",
                    DataConfig(source=str(home / "train.jsonl")),
                    settings,
                    home / "cache",
                    ProcessorClock(),
                    validation=str(home / "held.jsonl"),
                )
                found[fresh] = made
                seeds = " ".join(f"{score:.3f}" for score in made.by_seed)
                print(
                    f"{rate:<7g} {'fresh' if fresh else 'pre-trained':11}  {made.score:.3f} ({made.low:.3f} to {made.high:.3f})   {seeds}   "
                    f"sd {statistics.pstdev(made.by_seed):.3f}   {made.seconds / wanted.seeds:.0f}",
                    flush=True,
                )
            gain, low, high = difference(found[False], found[True], files)
            print(f"{rate:<7g} gain         {gain:+.3f} ({low:+.3f} to {high:+.3f} over files); commonest {made.chance:.3f}")


if __name__ == "__main__":
    main()
