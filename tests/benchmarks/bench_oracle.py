"""The oracle against the machine: predicted and measured peak memory and tokens/s of shapes that it was not fitted to.

Every run is a real one (`train`: steps and an evaluation, one thread) in a process forked for it, as a trial's is. Memory
is above what that process held before (torch itself), without pages of files. Speed, and the ceiling that the model of it knows, are in
seconds of this thread's CPU time, which waiting for a processor that others use does not lengthen; rounds are interleaved all the
same, and the median over rounds of the median step is taken. The models are fitted to one shape in four, small to large, and judged on
the rest.

    python -m tests.benchmarks.bench_oracle [measurements.json] [--seed 2] [--precision fp32]     # judges them again where the file exists
"""

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.data.tokens import TokenFacts, Tokens
from budgetlm.model.footprint import evaluation_sequences
from budgetlm.model.size import ModelConfig, flops_per_token
from budgetlm.passport import take_passport
from budgetlm.records import CurvePoint
from budgetlm.search.world import memory_model
from budgetlm.train.config import OptimizerConfig, Precision, RunConfig, as_dict, run_config_from
from budgetlm.train.loop import Label, train
from budgetlm.train.memory import MemoryModel, MemoryPoint, run_memory
from budgetlm.train.throughput import SpeedModel, SpeedPoint
from tests.benchmarks.precision import add_precision, computed_in, precision_of

SHAPES, CALIBRATED_ONE_IN = 32, 4
ROUNDS, STEPS = 3, 4
MOST_STEP_FLOPS = 16e9
VOCABULARIES = (512, 2048, 4096, 8192, 16384)


def shapes(seed: int, precision: Precision) -> list[RunConfig]:
    """Varied runs, the same every time, none of which takes long."""
    chance, found = random.Random(seed), list[RunConfig]()
    while len(found) < SHAPES:
        model = ModelConfig(
            vocab_size=chance.choice(VOCABULARIES),
            depth=chance.choice((2, 3, 4, 6, 8, 12)),
            width=chance.choice((64, 128, 192, 256, 384, 512)),
            context_length=chance.choice((128, 256, 512)),
            kv_groups=chance.choice((1, 2)),
            tie_embeddings=chance.random() < 0.5,
        )
        micro, passes = chance.choice((1, 2, 4, 8, 16)), chance.choice((1, 1, 2, 4))
        config = RunConfig(
            model=model,
            optimizer=OptimizerConfig(name=chance.choice(("adamw", "muon"))),
            batch_sequences=micro * passes,
            micro_batch_sequences=micro,
            steps=STEPS,
            checkpoint_activations=chance.random() < 0.4,
        )
        if config.batch_tokens * flops_per_token(model) <= MOST_STEP_FLOPS:
            found.append(computed_in(config, precision))
    return sorted(found, key=lambda config: run_memory(config).peak)


class ThreadClock(Clock):
    """Tells the CPU time of this thread, which does all the work."""

    def now(self) -> float:
        return time.thread_time()


def random_tokens(folder: Path, vocab_size: int) -> Tokens:
    folder.mkdir(exist_ok=True)
    random_ids = np.random.default_rng(0)
    counts = {"train": 2**20, "validation": 2**17}
    for name, count in counts.items():
        random_ids.integers(vocab_size, size=count).astype("uint16").tofile(folder / f"{name}.bin")
    np.save(folder / "bytes.npy", np.ones(vocab_size, dtype=np.int64))
    return Tokens(folder, TokenFacts("random", vocab_size, 0, "uint16", counts, {}))


def in_own_process(function, *arguments):
    """What a function returns, computed in a process forked for it."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def measured(config: RunConfig, tokens: Tokens) -> tuple[float, int]:
    """Tokens per second of the median step, and peak memory in bytes."""
    points: list[CurvePoint] = []
    label = Label(run="oracle", kind="rung", trial=0, rung=0, recipe={}, target_seconds=1.0)
    record = train(config, label, tokens, Meter(ThreadClock()), on_point=points.append).record
    return statistics.median(point.tokens_per_second for point in points[1:-1]), record.peak_bytes


def speed_point(config: RunConfig, tokens_per_second: float) -> SpeedPoint:
    model, micro = config.model, config.micro_batch_sequences * config.model.context_length
    return SpeedPoint(
        model, config.batch_tokens, micro, config.optimizer.name, tokens_per_second, config.checkpoint_activations
    )


def predicted_speed(model: SpeedModel, config: RunConfig) -> float:
    point = speed_point(config, 0.0)
    return model.tokens_per_second(
        point.model, point.batch_tokens, point.micro_batch_tokens, point.optimizer, point.checkpoint_activations
    )


def ceiling(precision: Precision) -> float:
    """GFLOP/s of a large matrix product on this thread."""
    with mock.patch("budgetlm.passport.time", SimpleNamespace(monotonic=time.thread_time, perf_counter=time.thread_time)):
        return max(take_passport("cpu").ceiling_gflops(precision) for _ in range(5))


def title(config: RunConfig) -> str:
    m, passes = config.model, config.batch_sequences // config.micro_batch_sequences
    return (
        f"{m.depth:2} x {m.width:3} v{m.vocab_size:<5} {config.micro_batch_sequences:2} x {m.context_length} x {passes} "
        f"{config.optimizer.name:5} {'tied' if m.tie_embeddings else '    '} {'gqa' if m.kv_groups > 1 else '   '} "
        f"{'again' if config.checkpoint_activations else '     '}"
    )


def errors(pairs: list[tuple[float, float]]) -> str:
    wrong = sorted(abs(predicted / true - 1) for predicted, true in pairs)
    return f"median {statistics.median(wrong):.1%}, worst {wrong[-1]:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurements", nargs="?", type=Path)
    parser.add_argument("--seed", type=int, default=1, help="of the shapes; the priors were chosen on those of seed 0")
    add_precision(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if (kept := options.measurements) and kept.exists():
        known = json.loads(kept.read_text())
        rows = [(run_config_from(r["config"]), statistics.median(r["speeds"]), r["peak"]) for r in known["rows"]]
        judge(*(list(column) for column in zip(*rows, strict=True)), known["gflops"])
        return
    precision = in_own_process(precision_of, options.precision)
    configs = shapes(options.seed, precision)
    speeds: list[list[float]] = [[] for _ in configs]
    peaks = [0] * len(configs)
    with tempfile.TemporaryDirectory() as folder:
        tokens = {size: random_tokens(Path(folder) / str(size), size) for size in VOCABULARIES}
        gflops = in_own_process(ceiling, precision)
        for number in range(ROUNDS):
            for index, config in enumerate(configs):
                # An evaluation of one full pass belongs to the peak, and is not needed for speed.
                passes = evaluation_sequences(config.model, config.micro_batch_sequences) if number == 0 else 1
                run = replace(config, eval_tokens=passes * config.model.context_length)
                speed, peak = in_own_process(measured, run, tokens[config.model.vocab_size])
                speeds[index].append(speed)
                peaks[index] = max(peaks[index], peak)
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
    if kept:  # the raw measurements, for whoever looks for a better model
        rows = [{"config": as_dict(c), "speeds": s, "peak": p} for c, s, p in zip(configs, speeds, peaks, strict=True)]
        kept.write_text(json.dumps({"gflops": gflops, "rows": rows}))
    judge(configs, [statistics.median(column) for column in speeds], peaks, gflops)


def judge(configs: list[RunConfig], speeds: list[float], peaks: list[int], gflops: float) -> None:
    rows = list(zip(configs, speeds, peaks, strict=True))
    known = rows[CALIBRATED_ONE_IN // 2 :: CALIBRATED_ONE_IN]
    memory = memory_model([MemoryPoint(run_memory(c), peak) for c, _, peak in known], "cpu", configs[0].precision)
    precision = configs[0].precision
    speed = SpeedModel.fit([speed_point(c, s) for c, s, _ in known], gflops, precision=precision)
    bare_memory, bare_speed = MemoryModel(), SpeedModel.fit([], gflops, precision=precision)
    print(f"{'shape, micro-batch, passes':52} {'peak MiB, predicted, error':>30} {'tokens/s, predicted, error':>30}")
    table = []
    for config, true_speed, peak in (row for row in rows if row not in known):
        counted = run_memory(config)
        row = (
            (memory.peak_bytes(counted), peak),
            (bare_memory.peak_bytes(counted), peak),
            (predicted_speed(speed, config), true_speed),
            (predicted_speed(bare_speed, config), true_speed),
        )
        table.append(row)
        (bytes_, _), _, (tokens, _), _ = row
        print(
            f"{title(config):52} {peak / 2**20:9.1f} {bytes_ / 2**20:9.1f} {bytes_ / peak - 1:+9.1%} "
            f"{true_speed:9.0f} {tokens:9.0f} {tokens / true_speed - 1:+9.1%}"
        )
    names = ("memory, fitted", "memory, formula alone", "tokens/s, fitted", "tokens/s, from the ceiling alone")
    print(
        f"\nfitted to {len(known)} shapes, judged on {len(table)} others, {ROUNDS} rounds, in {configs[0].precision}; memory above what torch itself holds"
    )
    for name, pairs in zip(names, zip(*table, strict=True), strict=True):
        print(f"{name:34} {errors(list(pairs))}")
    print(memory, speed, sep="\n")


if __name__ == "__main__":
    main()
