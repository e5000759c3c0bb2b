"""How many validation tokens it takes to tell two models of about equal quality apart, beside the noise of their seeds.

Short real trainings (`--seconds` of processor time on one thread): the default recipe and one that is a block deeper, with several seeds each,
all measured on the whole validation split, window by window. Two models are compared on the same windows, so what a sample adds to the
noise of a comparison is the spread of their windows' differences. It is printed as a share of the bits per byte and for one token: the
standard error of a sample of N tokens is that by sqrt(N), and `PAIRED_SPREAD` of `search/sizing.py` is taken from here.

    python -m tests.benchmarks.bench_evaluation --seconds 15 --seeds 3
"""

import argparse
import itertools
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from budgetlm.budget.clock import Meter
from budgetlm.commands.options import cache_folder
from budgetlm.config import study_config
from budgetlm.data.batches import validation_sample
from budgetlm.data.tokens import Tokens
from budgetlm.passport import take_passport
from budgetlm.recipe.scale import at_rung
from budgetlm.search.rehearse import guessed_plan
from budgetlm.search.study import prepare
from budgetlm.train.config import RunConfig
from budgetlm.train.loop import train
from budgetlm.train.step import warm_up
from budgetlm.watch import Watcher
from tests.benchmarks.bench_ablation import LABEL
from tests.benchmarks.bench_learning import ProcessorClock

MICRO_BATCH, WHOLE_SPLIT = 16, 2**24


def recipes(seconds: float, text: str, vocabulary: int) -> tuple[Tokens, list[RunConfig]]:
    """The text, and two runs of shapes that a search would try beside each other."""
    budget = {"hours": 64 * seconds / 3600, "target_hours": 4 * seconds / 3600}
    data, settings = {"source": text, "vocab_size": vocabulary}, {"threads": 1, "eval_tokens": 2_048}
    config = study_config({"budget": budget, "data": data, "train": settings})
    tokens = prepare(config, vocabulary, Path(cache_folder()), Watcher())
    plan = guessed_plan(config, take_passport("cpu"), tokens)
    run = at_rung(plan.default, seconds, 4 * seconds, plan.world)
    return tokens, [run, replace(run, model=replace(run.model, depth=run.model.depth + 1))]


def nats_of(config: RunConfig, tokens: Tokens, windows: np.ndarray) -> np.ndarray:
    """A trained model's nats on the bytes of every window."""
    network = train(config, LABEL, tokens, Meter(ProcessorClock())).network
    counted = torch.from_numpy(tokens.bytes_V > 0)
    sums = []
    for part in np.split(windows, range(MICRO_BATCH, len(windows), MICRO_BATCH)):
        rows = torch.from_numpy(part)
        with torch.no_grad():
            nats = network.loss(rows[:, :-1], rows[:, 1:], reduction="none").reshape(len(part), -1)
        sums.append((nats.double() * counted[rows[:, 1:]]).sum(dim=1))
    return torch.cat(sums).numpy()


def paired_spread(mine: np.ndarray, other: np.ndarray, bytes_: np.ndarray, context: int) -> float:
    """Spread of the difference of two models on one token, as a share of their bits per byte, from windows of `context` tokens."""
    difference = mine - other
    away = difference - difference.sum() / bytes_.sum() * bytes_  # of a ratio's estimate: nats over bytes
    return float(away.std(ddof=1) / ((mine.mean() + other.mean()) / 2) * math.sqrt(context))


def main() -> None:
    """Train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of processor time, of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--vocabulary", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    tokens, configs = recipes(options.seconds, options.text, options.vocabulary)
    context = configs[0].model.context_length
    windows = validation_sample(tokens, context, WHOLE_SPLIT)
    bytes_ = tokens.bytes_V[windows[:, 1:]].sum(axis=1)
    print(f"{options.text}: {len(windows):,} windows of {context} tokens; runs of {options.seconds:.0f} s")
    found: list[list[np.ndarray]] = []
    for config in configs:
        found.append([nats_of(replace(config, seed=seed), tokens, windows) for seed in range(options.seeds)])
        bits = [float(nats.sum() / math.log(2) / bytes_.sum()) for nats in found[-1]]
        spread = statistics.stdev(bits) / statistics.fmean(bits)
        shape = f"{config.model.depth} x {config.model.width}"
        print(f"{shape:>9}: " + ", ".join(f"{b:.4f}" for b in bits) + f"; spread of seeds {spread:.2%}", flush=True)
    pairs = {
        "seeds of one recipe": [pair for runs in found for pair in itertools.combinations(runs, 2)],
        "two recipes": list(itertools.product(*found)),
    }
    for name, them in pairs.items():
        spreads = sorted(paired_spread(a, b, bytes_, context) for a, b in them)
        middle = statistics.median(spreads)
        errors = ", ".join(f"{n:,}: {middle / math.sqrt(n):.2%}" for n in (4_096, 16_384, 65_536, 262_144))
        print(
            f"{name}: paired spread {middle:.2f} ({spreads[0]:.2f} to {spreads[-1]:.2f}, n = {len(them)}); error of {errors}"
        )
    one = found[0][0]
    alone = paired_spread(one, np.zeros_like(one), bytes_, context) / 2
    print(f"one model by itself: spread {alone:.2f}; error of 65,536 tokens {alone / 256:.2%}")


if __name__ == "__main__":
    main()
