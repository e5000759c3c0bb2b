"""Attention, LSTM and convolution in the same shape, batch and rates, for the same processor time of one thread: bits per byte on 131,072
validation tokens, and tokens a second.

    python -m tests.benchmarks.bench_mixers --seconds 60 240 --seeds 3
"""

import argparse
from pathlib import Path

import torch

from budgetlm.budget.clock import Meter
from budgetlm.commands.options import cache_folder
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import prepare_tokens
from budgetlm.model.size import MIXERS, ModelConfig, parameters
from budgetlm.train.config import Label, OptimizerConfig, RunConfig
from budgetlm.train.loop import train
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import warm_up
from tests.benchmarks.bench_learning import ProcessorClock

LABEL = Label(run="bench", kind="rung", trial=0, rung=0, recipe={}, target_seconds=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 240.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--shape", type=int, nargs=2, default=[2, 64], help="depth and width")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=0.02)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    data, cache = DataConfig(source=wanted.text), Path(cache_folder())
    tokens = prepare_tokens(data, prepare_corpus(data, cache), wanted.vocabulary, cache)
    print("seconds  seed  mixer      parameters   M tokens   tokens/s   bits per byte")
    for seconds in wanted.seconds:
        for seed in range(wanted.seeds):
            for mixer in MIXERS:
                depth, width = wanted.shape
                model = ModelConfig(
                    vocab_size=tokens.facts.vocab_size,
                    depth=depth,
                    width=width,
                    context_length=256,
                    norm_embedding=True,
                    mixer=mixer,
                )
                run = RunConfig(
                    model=model,
                    optimizer=OptimizerConfig(name="muon", peak_lr=wanted.rate),
                    schedule=ScheduleConfig(shape="linear", warmup=0.05, short_sequences=0.5),
                    batch_sequences=12,
                    micro_batch_sequences=12,
                    seconds=seconds,
                    eval_tokens=16_384,
                    full_eval_tokens=131_072,
                    seed=seed,
                )
                done = train(run, LABEL, tokens, Meter(ProcessorClock())).record
                print(
                    f"{seconds:7.0f}  {seed:4}  {mixer:9}  {parameters(model):10,}  {done.tokens / 1e6:9.3f}  "
                    f"{done.tokens_per_second:9,.0f}  {done.bpb_full or done.bpb or 0:14.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
