"""Beginning from trained weights: which learning rate, and what it gains over a fresh start of the same seconds, on other text than they were trained on.

    python -m tests.benchmarks.bench_init --text django-5.2.8/docs --seconds 40 --before 80

Trains a model on stdlib for `--before` seconds, then goes on with it on `--text` for `--seconds` at shares of the rate that the laws give a fresh
start, beside that fresh start. Seconds are processor time of one thread.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from budgetlm.budget.clock import Meter
from budgetlm.config import study_config
from budgetlm.data.tokens import Tokens
from budgetlm.model.export import save_model
from budgetlm.model.size import ModelConfig
from budgetlm.search.study import prepare
from budgetlm.train.config import Label, OptimizerConfig, RunConfig
from budgetlm.train.heap import set_heap
from budgetlm.train.loop import Trained, train
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import warm_up
from budgetlm.watch import Watcher
from tests.benchmarks.bench_learning import ProcessorClock

LABEL = Label(run="init", kind="rung", trial=0, rung=0, recipe={}, target_seconds=1.0)
SHARES = (1.0, 0.3, 0.1, 0.03)


def run(tokens: Tokens, shape: ModelConfig, seconds: float, lr: float, seed: int, init: str = "") -> Trained:
    """One run of the default kind."""
    config = RunConfig(
        model=shape,
        optimizer=OptimizerConfig(name="muon", peak_lr=lr),
        schedule=ScheduleConfig(shape="linear", warmup=0.05, short_sequences=0.5),
        batch_sequences=16,
        micro_batch_sequences=16,
        seconds=seconds,
        eval_tokens=65_536,
        seed=seed,
        init=init,
    )
    return train(config, LABEL, tokens, Meter(ProcessorClock()))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", required=True)
    parser.add_argument("--before", type=float, default=80.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rate", type=float, default=0.02, help="of a fresh start")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_heap("cpu")
    warm_up()
    folder = Path(tempfile.mkdtemp(prefix="bench-init-"))
    first = study_config({"data": {"source": "stdlib", "vocab_size": 4096}})
    tokens = prepare(first, 4096, folder / "cache", Watcher())
    shape = ModelConfig(vocab_size=4096, depth=2, width=96, context_length=256, norm_embedding=False)
    trained = run(tokens, shape, options.before, options.rate, 0)
    print(f"stdlib, {options.before:.0f} s: {trained.record.bpb:.4f} bits per byte", flush=True)
    model = folder / "model"
    model.mkdir()
    save_model(model, trained.network, tokens.tokenizer_file, tokens.facts.end_of_text)
    data = dataclasses.replace(first.data, source=options.text, tokenizer=str(model / "tokenizer.json"))
    other = prepare(dataclasses.replace(first, data=data), 4096, folder / "cache", Watcher())
    for seed in range(options.seeds):
        fresh = run(other, shape, options.seconds, options.rate, seed)
        print(f"seed {seed}: fresh start {fresh.record.bpb:.4f}", flush=True)
        for share in SHARES:
            went_on = run(other, shape, options.seconds, share * options.rate, seed, str(model))
            print(f"seed {seed}: from those weights, {share:g} of the rate: {went_on.record.bpb:.4f}", flush=True)


if __name__ == "__main__":
    main()
