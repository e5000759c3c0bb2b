"""What every compression costs and gives, on models trained on the standard library by one thread, in processor time.

(a) A table of all options: bytes, bits per byte, speed of a step, and of the artefact, loaded from disk in a process of its own, tokens a second and
memory. What is done after training is done to one model of `--seconds`; what is done on the way, to runs of `--each` seconds, beside one
without. (b) How the harm of an option grows with tokens per parameter: one shape, trained for longer and longer (arXiv:2411.04330).
(c) Students of a free teacher, the model of (a), against as many seconds without it (arXiv:2502.08606). (d) With `--shapes`, alone: what makes a
model light before it is trained, each trained for as long from the same seeds, and measured in 8 bits.

    python -m tests.benchmarks.bench_compress results.jsonl --seconds 180 --each 15 --students 8 16 32
    python -m tests.benchmarks.bench_compress results.jsonl --shapes --seconds 120 --seeds 2
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from budgetlm.budget.clock import Meter
from budgetlm.compress.apply import OPTIONS, Compression, shrunk
from budgetlm.compress.artefact import make_artefact, save_artefact
from budgetlm.compress.compressor import Compressor
from budgetlm.compress.measure import measure_apart
from budgetlm.compress.prune import apply_masks, masks_for
from budgetlm.data.batches import validation_sample
from budgetlm.files import new_folder
from budgetlm.model.export import load_model, save_model
from budgetlm.model.size import ModelConfig, compute_parameters
from budgetlm.model.transformer import build
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.train.evaluate import evaluate
from budgetlm.train.loop import train
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import Stepper, warm_up
from tests.benchmarks.bench_ablation import LABEL, tokens_of
from tests.benchmarks.bench_learning import ProcessorClock

VOCABULARY, CONTEXT, SCORED = 2048, 256, 2**15
SHAPE = ModelConfig(vocab_size=VOCABULARY, context_length=CONTEXT, depth=4, width=128, norm_embedding=True)
STUDENT = replace(SHAPE, depth=2, width=64)
LARGER = replace(SHAPE, depth=6, width=256)
LIGHTER = {
    "plain": SHAPE,
    "untied": replace(SHAPE, tie_embeddings=False),
    "query heads in groups of 2": replace(SHAPE, kv_groups=2),
    "hidden units twice the width": replace(SHAPE, mlp_ratio=2.0),
    "two layers share a block": replace(SHAPE, share_layers=2),
    "embedding of rank 32": replace(SHAPE, embedding_rank=32),
}
AFTER = ("none", "int8", "int8-dynamic", "int4", "prune", "prune24", "prune+int8")
ON_THE_WAY = ("none", "int4", "int4-qat", "prune", "prune24", "shrink-layers", "shrink-heads+shrink-hidden")


def run_config(model: ModelConfig, seconds: float, compression: Compression, seed: int = 0) -> RunConfig:
    return RunConfig(
        model=model,
        seed=seed,
        optimizer=OptimizerConfig(name="muon", peak_lr=1e-2),
        schedule=ScheduleConfig(short_sequences=0.5),
        batch_sequences=12,
        micro_batch_sequences=4,
        products_up_to=64,
        seconds=seconds,
        eval_tokens=4_096,
        compression=compression,
    )


class Bench:
    """Tokens, a folder, and results that are kept as they come."""

    def __init__(self, results: Path, folder: Path) -> None:
        self.results, self.folder, self.tokens = results, folder, tokens_of("stdlib", VOCABULARY)
        self.windows = validation_sample(self.tokens, CONTEXT, SCORED)

    def score(self, network) -> float:
        return evaluate(network, self.windows, self.tokens.bytes_V, micro_batch=8)

    def train(self, model: ModelConfig, seconds: float, compression: Compression, seed: int = 0):
        return train(run_config(model, seconds, compression, seed), LABEL, self.tokens, Meter(ProcessorClock()))

    def keep(self, **facts) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        print(facts, flush=True)

    def deployed(self, network, compression: Compression, name: str) -> dict:
        """An artefact written, and measured by a process of its own."""
        began = time.process_time()
        artefact = make_artefact(network, compression)
        seconds, again = time.process_time() - began, artefact.network()
        with new_folder(self.folder / name) as new:
            save_artefact(new, artefact, network, self.tokens.tokenizer_file, self.tokens.facts.end_of_text)
        apart = asdict(measure_apart(self.folder / name, 1, "cpu", "--processor-time"))
        return {"bytes": len(artefact.weights), "bpb": self.score(again), "compress_seconds": seconds, **apart}


def after_training(bench: Bench, seconds: float) -> None:
    """(a) What is done to a finished model; which is also the teacher of (c)."""
    done = bench.train(SHAPE, seconds, Compression())
    (bench.folder / "teacher").mkdir()
    parts = (done.network, bench.tokens.tokenizer_file, bench.tokens.facts.end_of_text)
    save_model(bench.folder / "teacher", *parts)
    per_parameter = done.record.tokens / compute_parameters(SHAPE)
    dense = bench.score(done.network)
    bench.keep(part="teacher", seconds=seconds, bpb=dense, tokens=done.record.tokens, tokens_per_parameter=per_parameter)
    harm(bench, done.network, per_parameter, "4 x 128", AFTER, measured=True)


def harm(bench: Bench, network, per_parameter: float, shape: str, options, *, measured: bool = False) -> None:
    """What options do to one finished model, no step after them."""
    before = bench.score(network)
    for option in options:
        compression, pruned = Compression(option=option), network
        if compression.prunes:
            with TemporaryDirectory() as copied:
                save_model(Path(copied), network, bench.tokens.tokenizer_file, 0)
                pruned = load_model(Path(copied))[0]
            apply_masks(masks_for(pruned, compression), pruned)
        facts = {
            "part": "after",
            "shape": shape,
            "option": option,
            "tokens_per_parameter": per_parameter,
            "dense_bpb": before,
        }
        if measured:
            bench.keep(**facts, **bench.deployed(pruned, compression, f"after-{option}"))
        elif option != "none":
            bench.keep(**facts, bpb=bench.score(make_artefact(pruned, compression).network()))


def on_the_way(bench: Bench, seconds: float) -> None:
    """(a) What is done while a model is trained."""
    for option in ON_THE_WAY:
        compression = Compression(option=option)
        done = bench.train(SHAPE, seconds, compression)
        facts = bench.deployed(done.network, compression, f"way-{option}")
        bench.keep(part="on the way", option=option, seconds=seconds, tokens=done.record.tokens, **facts)


def step_times(bench: Bench, rounds: int) -> None:
    """(a) Seconds of a step with an option beside one without, interleaved."""
    rows = np.stack([bench.windows[i % len(bench.windows)] for i in range(4)])
    teacher = str(bench.folder / "teacher")
    for shape in (SHAPE, LARGER):
        steppers = {}
        for option in ("none", "prune", "shrink-layers", "shrink-heads+shrink-hidden", "int8-qat", "int4-qat", "distil"):
            compression = Compression(option=option, start=0.0, end=0.0, qat_share=1.0, teacher=teacher)
            network = build(shape, 0)
            stepper = Stepper(run_config(shape, 1, compression), network)
            compressor = Compressor(compression, network, stepper.optimizers, None, bench.tokens.tokenizer_file, "cpu")
            stepper.loss = compressor.loss
            if compressor.before_step(1.0, 0, rows):
                stepper.renew(compressor.rounds)
            steppers[option] = (stepper, compressor)
        seconds: dict[str, list[float]] = {option: [] for option in steppers}
        for _ in range(rounds + 1):
            for option, (stepper, compressor) in steppers.items():
                began = time.process_time()
                stepper.step(rows, 1e-3)
                compressor.after_step()
                seconds[option].append(time.process_time() - began)
        usual = statistics.median(seconds["none"][1:])
        for option, values in seconds.items():
            bench.keep(
                part="step",
                shape=f"{shape.depth} x {shape.width}",
                option=option,
                n=rounds,
                ratio=statistics.median(values[1:]) / usual,
            )


def students(bench: Bench, budgets: list[float]) -> None:
    """(c) The same seconds with and without a teacher; and (b) the harm of options to those without."""
    for seconds in budgets:
        for option in ("none", "distil"):
            compression = Compression(option=option, teacher=str(bench.folder / "teacher"))
            done = bench.train(STUDENT, seconds, compression)
            per_parameter = done.record.tokens / compute_parameters(STUDENT)
            facts = {"tokens": done.record.tokens, "tokens_per_parameter": per_parameter, "bpb": bench.score(done.network)}
            bench.keep(part="student", option=option, seconds=seconds, **facts)
            if option == "none":
                harm(bench, done.network, per_parameter, "2 x 64", ("int8", "int4", "prune"))


def lighter(bench: Bench, seconds: float, seeds: int) -> None:
    """(d) Shapes that weigh less than others as deep and wide, or more."""
    compression = Compression(option="int8")
    for seed in range(seeds):
        for name, model in LIGHTER.items():
            done = bench.train(model, seconds, Compression(), seed)
            plain = len(make_artefact(done.network, Compression()).weights)
            facts = {"tokens": done.record.tokens, "plain_bpb": bench.score(done.network), "plain_bytes": plain}
            deployed = bench.deployed(done.network, compression, f"shape-{name}-{seed}")
            bench.keep(part="shape", shape=name, seed=seed, seconds=seconds, **facts, **deployed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("bench_compress.jsonl"))
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--each", type=float, default=15)
    parser.add_argument("--students", type=float, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", action="store_true", help="part (d) alone")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    assert {o.name for o in OPTIONS} >= set("+".join(AFTER + ON_THE_WAY).split("+")) - {"none"}
    assert shrunk(SHAPE, Compression()) == SHAPE
    with TemporaryDirectory() as folder:
        bench = Bench(options.results, Path(folder))
        if options.shapes:
            lighter(bench, options.seconds, options.seeds)
            return
        after_training(bench, options.seconds)
        step_times(bench, options.rounds)
        students(bench, options.students)
        on_the_way(bench, options.each)


if __name__ == "__main__":
    main()
