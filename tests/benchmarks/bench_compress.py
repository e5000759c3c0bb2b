"""What every compression costs and gives, on models trained on the standard library by one thread, in processor time.

    table     one model is trained for `--seconds`. What is done after training is done to it when it has gone on for `--further` more; what is done on
              the way is done in as many further seconds of the same model. Shapes that weigh less are trained for all these seconds from the start, for they cannot be
              made of it. Every artefact is written, and read again, timed and scored by a process of its own.
    steps     seconds of a step with an option beside one without, interleaved.
    students  students of that model, which is free to them, against as many seconds without it (arXiv:2502.08606); with `--read` they have only so many tokens to
              read, again and again. And how the harm of an option grows with tokens per parameter: students without a teacher, rounded or pruned (arXiv:2411.04330).
    rungs     the harm of options to a recipe's miniatures, as a search has them on its rungs, beside that to the recipe at its target, `--target`.
    shapes    what makes a model light before it is trained, each trained for as long from the same seeds, and measured in 8 bits.

Rows that are there are not measured again, and the trained model is kept in `--folder`.

    python -m tests.benchmarks.bench_compress results.jsonl --parts table steps --seconds 180 --further 45
    python -m tests.benchmarks.bench_compress results.jsonl --parts students --students 16 32 64 --read 65536
    python -m tests.benchmarks.bench_compress results.jsonl --parts rungs --target 64 --seeds 2
    python -m tests.benchmarks.bench_compress results.jsonl --parts shapes --seconds 120 --seeds 2
    python -m tests.benchmarks.bench_compress results.jsonl --print
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights

from budgetlm.budget.clock import Meter
from budgetlm.compress.apply import OPTIONS, Compression, shrunk
from budgetlm.compress.artefact import make_artefact, save_artefact
from budgetlm.compress.compressor import Compressor
from budgetlm.compress.measure import load_and_measure
from budgetlm.compress.prune import apply_masks, masks_for
from budgetlm.config import study_config
from budgetlm.data.batches import validation_sample
from budgetlm.files import new_folder
from budgetlm.model.export import save_model
from budgetlm.model.size import ModelConfig, compute_parameters
from budgetlm.model.transformer import LanguageModel, build
from budgetlm.passport import take_passport
from budgetlm.recipe.scale import at_rung, at_target
from budgetlm.search.plan import make_plan
from budgetlm.search.world import guessed_calibration
from budgetlm.train import loop
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.train.evaluate import evaluate
from budgetlm.train.heap import set_heap
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import Stepper, warm_up
from tests.benchmarks.bench_ablation import LABEL, tokens_of
from tests.benchmarks.bench_learning import ProcessorClock
from tests.benchmarks.precision import add_precision, computed_in, precision_of

VOCABULARY, CONTEXT, SCORED = 2048, 256, 2**16
SHAPE = ModelConfig(vocab_size=VOCABULARY, context_length=CONTEXT, depth=4, width=128, norm_embedding=True)
STUDENT = replace(SHAPE, depth=2, width=64)
LARGER = replace(SHAPE, depth=6, width=256)
LIGHTER = {
    "plain": SHAPE,
    "two layers share a block": replace(SHAPE, share_layers=2),
    "embedding of rank 32": replace(SHAPE, embedding_rank=32),
    "untied": replace(SHAPE, tie_embeddings=False),
    "query heads in groups of 2": replace(SHAPE, kv_groups=2),
    "hidden units twice the width": replace(SHAPE, mlp_ratio=2.0),
}
IN_THE_TABLE = list(LIGHTER)[1:3]
"""Of these, what the table of options has."""
AFTER = ("none", "int8", "int8-dynamic", "int4")
ON_THE_WAY = (
    "prune",
    "shrink-layers",
    "int4-qat",
    "shrink-heads",
    "shrink-hidden",
    "prune24",
    "int8-qat",
    "int8-dynamic-qat",
    "distil+shrink-layers",
    "prune+int8",
)
STEPS = (
    "none",
    "prune",
    "prune24",
    "shrink-layers",
    "shrink-heads",
    "shrink-hidden",
    "int8-qat",
    "int8-dynamic-qat",
    "int4-qat",
    "distil",
)
RUNGS = (1 / 16, 1 / 4, 1)
"""Shares of a target."""
PEAK, FURTHER_PEAK = 1e-2, 1e-3
"""Learning rates of a model from nothing, and of one that goes on."""


class Bench:
    """Tokens, a folder, and results that are kept as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.results, self.folder = options, options.results, options.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokens, self.precision = tokens_of("stdlib", VOCABULARY), precision_of(options.precision)
        self.windows = validation_sample(self.tokens, CONTEXT, SCORED)
        self.sample = self.folder / "windows.npz"
        np.savez(self.sample, windows=self.windows, bytes_V=self.tokens.bytes_V)
        self.rows = [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []

    def run_config(self, model: ModelConfig, seconds: float, compression: Compression, **changes: object) -> RunConfig:
        config = RunConfig(
            model=model,
            optimizer=OptimizerConfig(name="muon", peak_lr=PEAK),
            schedule=ScheduleConfig(short_sequences=0.5),
            batch_sequences=12,
            micro_batch_sequences=4,
            products_up_to=64,
            seconds=seconds,
            eval_tokens=4_096,
            compression=compression,
        )
        return computed_in(replace(config, **changes), self.precision)

    def train(self, config: RunConfig) -> loop.Trained:
        return loop.train(config, LABEL, self.tokens, Meter(ProcessorClock()))

    def base(self) -> LanguageModel:
        """The one trained model; its plain folder is the teacher."""
        kept, network = self.folder / f"base-{self.options.seconds:g}.safetensors", build(SHAPE, 0)
        if not kept.exists():
            done = self.train(self.run_config(SHAPE, self.options.seconds, Compression()))
            network = done.network
            per_parameter = done.record.tokens / compute_parameters(SHAPE)
            facts = {"tokens": done.record.tokens, "tokens_per_parameter": per_parameter, "precision": self.precision}
            self.keep(part="base", seconds=self.options.seconds, bpb=self.score(network), **facts)
            with new_folder(self.teacher()) as new:
                save_model(new, network, self.tokens.tokenizer_file, self.tokens.facts.end_of_text)
            save_weights(network, str(kept))
        load_weights(network, str(kept))
        return network

    def teacher(self) -> Path:
        return self.folder / f"teacher-{self.options.seconds:g}"

    def score(self, network: LanguageModel) -> float:
        return evaluate(network, self.windows, self.tokens.bytes_V, micro_batch=8)

    def known(self, **asked: object) -> bool:
        return any(all(row.get(name) == value for name, value in asked.items()) for row in self.rows)

    def keep(self, **facts: object) -> None:
        self.rows.append(facts)
        with self.results.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        print(facts, flush=True)

    def deployed(self, network: LanguageModel, compression: Compression) -> dict[str, float]:
        """An artefact written, and read, measured and scored by a process of its own."""
        began = time.process_time()
        artefact = make_artefact(network, compression)
        seconds = time.process_time() - began
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            save_artefact(Path(folder), artefact, network, self.tokens.tokenizer_file, self.tokens.facts.end_of_text)
            command = [sys.executable, "-m", __spec__.name, "--deployed", folder, str(self.sample)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        return {"bytes": len(artefact.weights), "compress_seconds": seconds, **json.loads(said)}


def deployed(folder: Path, sample: Path) -> None:
    """In a process of its own: read an artefact, measure it, score it."""
    measured, network = load_and_measure(folder, "cpu", time.process_time)
    kept = np.load(sample)
    bpb = evaluate(network, kept["windows"], kept["bytes_V"], micro_batch=8)
    print(json.dumps({"bpb": bpb, **asdict(measured)}))


def table(bench: Bench) -> None:
    """One model, and all that can be made of it."""
    base, asked = bench.base(), {"part": "table", "seconds": bench.options.seconds, "further": bench.options.further}

    def further(option: str) -> tuple[LanguageModel, Compression, int]:
        # What an option does on the way, it does in all of the further seconds.
        compression = Compression(option=option, start=0.0, end=0.5, qat_share=1.0, teacher=str(bench.teacher()))
        gentle = {"optimizer": OptimizerConfig(name="muon", peak_lr=FURTHER_PEAK), "schedule": ScheduleConfig()}
        with mock.patch.object(loop, "build", return_value=copy.deepcopy(base)):
            done = bench.train(bench.run_config(SHAPE, bench.options.further, compression, **gentle))
        return done.network, compression, done.record.tokens

    if not all(bench.known(**asked, option=option) for option in AFTER):
        network, _, tokens = further("none")
        for option in AFTER:
            if not bench.known(**asked, option=option):
                bench.keep(**asked, option=option, tokens=tokens, **bench.deployed(network, Compression(option=option)))
    for option in ON_THE_WAY:
        if not bench.known(**asked, option=option):
            network, compression, tokens = further(option)
            bench.keep(**asked, option=option, tokens=tokens, **bench.deployed(network, compression))
    for name in IN_THE_TABLE:
        compression, option = Compression(option="int8"), f"{name}, int8"
        if not bench.known(**asked, option=option):
            done = bench.train(
                bench.run_config(LIGHTER[name], sum((bench.options.seconds, bench.options.further)), Compression())
            )
            bench.keep(**asked, option=option, tokens=done.record.tokens, **bench.deployed(done.network, compression))


def step_times(bench: Bench) -> None:
    """Seconds of a step with an option beside one without, interleaved."""
    bench.base()
    rows = np.stack([bench.windows[i % len(bench.windows)] for i in range(4)])
    for shape in (SHAPE, LARGER):
        asked = {"part": "step", "shape": f"{shape.depth} x {shape.width}"}
        if bench.known(**asked):
            continue
        steppers = {
            name: _stepper(bench, replace(model, depth=shape.depth, width=shape.width), "none", rows)
            for name, model in LIGHTER.items()
            if name in IN_THE_TABLE
        }
        steppers |= {option: _stepper(bench, shape, option, rows) for option in STEPS}
        seconds: dict[str, list[float]] = {option: [] for option in steppers}
        for _ in range(bench.options.rounds + 1):
            for option, (stepper, compressor) in steppers.items():
                began = time.process_time()
                stepper.step(rows, 1e-3)
                compressor.after_step()
                seconds[option].append(time.process_time() - began)
        usual = statistics.median(seconds["none"][1:])
        for option, values in seconds.items():
            bench.keep(**asked, option=option, n=bench.options.rounds, ratio=statistics.median(values[1:]) / usual)


def _stepper(bench: Bench, shape: ModelConfig, option: str, rows: np.ndarray) -> tuple[Stepper, Compressor]:
    """Steps of a network in the middle of what an option does to it."""
    compression = Compression(option=option, start=0.0, end=0.0, qat_share=1.0, teacher=str(bench.teacher()))
    network = build(shape, 0)
    stepper = Stepper(bench.run_config(shape, 1, compression), network)
    compressor = Compressor(compression, network, stepper.optimizers, None, bench.tokens.tokenizer_file, "cpu")
    stepper.loss = compressor.loss
    if compressor.before_step(1.0, 0, rows):
        stepper.renew(compressor.rounds)
    return stepper, compressor


def students(bench: Bench) -> None:
    """The same seconds with and without a teacher; and the harm of options to those without."""
    bench.base()
    for seconds in bench.options.students:
        for weight in (0.0, *bench.options.weights):
            asked = {"part": "student", "seconds": seconds, "weight": weight, "read": bench.options.read}
            if bench.known(**asked):
                continue
            compression = Compression(option="distil", distil_weight=weight, teacher=str(bench.teacher()))
            done = bench.train(bench.run_config(STUDENT, seconds, compression, unique_tokens=bench.options.read))
            per_parameter = done.record.tokens / compute_parameters(STUDENT)
            facts = {"tokens": done.record.tokens, "epochs": done.record.epochs, "tokens_per_parameter": per_parameter}
            bench.keep(**asked, **facts, bpb=bench.score(done.network))
            if not weight:
                harm(bench, done.network, tokens_per_parameter=per_parameter)


def rungs(bench: Bench) -> None:
    """The harm of options to the default recipe's miniatures, and to itself."""
    target, passport = bench.options.target, take_passport("cpu")
    budget = {"hours": 16 * target / 3600, "target_hours": target / 3600}
    study = study_config({"budget": budget, "model": {"context_length": CONTEXT}, "train": {"threads": 1, "compile": "off"}})
    plan, _ = make_plan(study, passport, bench.tokens, lambda *_: guessed_calibration(study, passport))
    for seed in range(bench.options.seeds):
        for share in RUNGS:
            asked = {"target": target, "share": share, "seed": seed}
            if not bench.known(part="harm", **asked):
                config = at_target if share == 1 else partial(at_rung, target_seconds=target)
                done = bench.train(config(plan.default, seconds=share * target, world=plan.world, seed=seed))
                model = done.network.config
                per_parameter = done.record.tokens / compute_parameters(model)
                shape = f"{model.depth} x {model.width}"
                harm(bench, done.network, shape=shape, tokens_per_parameter=per_parameter, **asked)


def harm(bench: Bench, network: LanguageModel, **facts: object) -> None:
    """What options do to a finished model, no step after them."""
    before = bench.score(network)
    for option in ("int8", "int4", "prune"):
        compression, harmed = Compression(option=option), copy.deepcopy(network)
        if compression.prunes:
            apply_masks(masks_for(harmed, compression), harmed)
        bench.keep(
            part="harm",
            option=option,
            **facts,
            dense_bpb=before,
            bpb=bench.score(make_artefact(harmed, compression).network()),
        )


def lighter(bench: Bench) -> None:
    """Shapes that weigh less than others as deep and wide, or more."""
    compression = Compression(option="int8")
    for seed in range(bench.options.seeds):
        for name, model in LIGHTER.items():
            asked = {"part": "shape", "shape": name, "seed": seed, "seconds": bench.options.seconds}
            if not bench.known(**asked):
                done = bench.train(bench.run_config(model, bench.options.seconds, Compression(), seed=seed))
                plain = len(make_artefact(done.network, Compression()).weights)
                facts = {"tokens": done.record.tokens, "plain_bpb": bench.score(done.network), "plain_bytes": plain}
                bench.keep(**asked, **facts, **bench.deployed(done.network, compression))


PARTS = {"table": table, "steps": step_times, "students": students, "rungs": rungs, "shapes": lighter}


def show(rows: list[dict]) -> None:
    """The table of options, as a document has it."""
    steps = {row["option"]: row["ratio"] for row in rows if row["part"] == "step" and row["shape"] == "4 x 128"}
    found = [row for row in rows if row["part"] == "table"]
    dense = next(row for row in found if row["option"] == "none")
    print(
        "| option | MB | of fp32 | bits per byte | change | a step takes | read, tokens/s | write, tokens/s | MB resident |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        name = row["option"]
        step = next(
            (f"{steps[part]:.2f}" for part in (name, *name.split("+"), name.removesuffix(", int8")) if part in steps), "1.00"
        )
        print(
            f"| `{name}` | {row['bytes'] / 1e6:.2f} | {row['bytes'] / dense['bytes']:.1%} | {row['bpb']:.4f} | {row['bpb'] / dense['bpb'] - 1:+.2%} "
            f"| {step} | {row['prefill_tokens_per_second']:,.0f} | {row['decode_tokens_per_second']:,.0f} | {row['resident_bytes'] / 1e6:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("bench_compress.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["table", "steps", "students"])
    parser.add_argument("--seconds", type=float, default=180, help="processor time that the one model is trained for")
    parser.add_argument("--further", type=float, default=45, help="and that it goes on with each option")
    parser.add_argument("--students", type=float, nargs="+", default=[8, 16, 32])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5], help="of the teacher in a student's loss")
    parser.add_argument("--read", type=int, default=0, help="different tokens that a student may read; 0 for all")
    parser.add_argument("--target", type=float, default=64, help="processor time of the target whose rungs are asked for")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench_compress")
    parser.add_argument("--print", action="store_true", help="the table of what is there")
    parser.add_argument("--deployed", nargs=2, type=Path, help=argparse.SUPPRESS)
    add_precision(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.deployed:
        deployed(*options.deployed)
    elif options.print:
        show([json.loads(line) for line in options.results.read_text().splitlines()])
    else:
        set_heap("cpu")
        warm_up()
        assert {o.name for o in OPTIONS} <= set("+".join(AFTER + ON_THE_WAY).split("+"))
        assert shrunk(SHAPE, Compression()) == SHAPE
        bench = Bench(options)
        for part in options.parts:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
