"""One network trained by two processes against one: how near their losses are, what a step costs, and how much memory a process takes.

All train the same steps of the same text. `one pass` is one process that sums a batch's gradients in another order, which is what
rounding alone comes to: a high learning rate makes much of it. Speed is in tokens a second of processor time of the busiest process: what two devices
would do of which each had a core to itself, with what they tell each other over the loopback. Memory is resident, above what the process held before.

    python -m tests.benchmarks.bench_parallel
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from budgetlm.budget.clock import ManualClock, Meter
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import Tokens, prepare_tokens
from budgetlm.model.size import ModelConfig, parameters
from budgetlm.records import CurvePoint
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.train.loop import train
from budgetlm.train.parallel.kinds import KINDS as ALL
from budgetlm.train.parallel.member import make_team
from budgetlm.train.parallel.team import ALONE, Team
from tests.train.parallel.gang import LABEL, together

VOCABULARY = 1_024
KINDS = tuple(kind for kind in ALL if "," not in kind)  # for two processes
Figures = tuple[list[float], float, int]
"""Losses of the steps, seconds of processor time, bytes."""


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--depth", type=int, default=6)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--sequences", type=int, default=8)
    options.add_argument("--context", type=int, default=64)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--rate", type=float, default=3e-4, help="peak learning rate")
    options.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    options.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    options.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "budgetlm-bench")
    given = options.parse_args()
    torch.set_num_threads(1)
    data = DataConfig(source="stdlib", vocab_size=VOCABULARY)
    tokens = prepare_tokens(data, prepare_corpus(data, given.cache), VOCABULARY, given.cache)
    model = ModelConfig(
        vocab_size=tokens.facts.vocab_size, depth=given.depth, width=given.width, context_length=given.context
    )
    print(
        f"{model.depth} x {model.width}, {parameters(model) / 1e6:.1f} M parameters, {given.steps} steps of {given.sequences} x {given.context} tokens"
    )
    print("optimizer kind     loss differs by    tokens/s     of one's   peak MB   of one's")
    for name in given.optimizers:
        config = RunConfig(
            model=model,
            optimizer=OptimizerConfig(name=name, peak_lr=given.rate),
            batch_sequences=given.sequences,
            micro_batch_sequences=given.sequences // 2,  # of the size of a member's pass
            steps=given.steps,
            eval_tokens=given.context,  # its memory is not what is asked
        )
        found: dict[str, list[Figures]] = {}
        for _ in range(given.rounds):  # in turns, each in processes of its own
            for kind in ("alone", "one pass", *KINDS):
                with tempfile.TemporaryDirectory() as logs:
                    count = 2 if kind in KINDS else 1
                    each = together(figures, config, tokens, kind, logs=Path(logs), devices=count)
                seconds, peak = (max(e[i] for e in each.values()) for i in (1, 2))
                found.setdefault(kind, []).append((each[0][0], seconds, peak))
        losses, seconds, peak = best(found["alone"])
        work = given.steps * given.sequences * given.context
        for kind, runs in found.items():
            theirs, took, most = best(runs)
            apart = max(abs(a - b) / a for a, b in zip(losses, theirs, strict=True))
            print(
                f"{name:9} {kind:8} {apart:15.1e} {work / took:11,.0f} {seconds / took:11.2f} {most / 1e6:9.1f} {most / peak:10.2f}"
            )


def best(runs: list[Figures]) -> Figures:
    """Losses of the first, the fastest, and the median of the peaks."""
    return runs[0][0], min(r[1] for r in runs), sorted(r[2] for r in runs)[len(runs) // 2]


def figures(config: RunConfig, tokens: Tokens, kind: str) -> Figures:
    """Losses, seconds of processor time that the steps took, and the most memory, of this process: of the steps after the first, in which much is loaded."""
    torch.set_num_threads(1)
    team: Team = ALONE
    if kind == "one pass":
        config = replace(config, micro_batch_sequences=config.batch_sequences)
    if kind in KINDS:
        dist.init_process_group("gloo")
        team = make_team(kind, ManualClock(), lambda: False)
    points: list[CurvePoint] = []
    marks: list[float] = []

    def on_point(point: CurvePoint) -> None:
        points.append(point)
        marks.append(time.process_time())

    small = replace(config, model=replace(config.model, depth=2, width=128), steps=2)
    train(small, LABEL, tokens, Meter(getattr(team, "clock", ManualClock())), team=team)  # loads what each kind loads
    record = train(config, LABEL, tokens, Meter(getattr(team, "clock", ManualClock())), on_point=on_point, team=team).record
    if kind in KINDS:
        dist.destroy_process_group()
    return [p.loss for p in points], (marks[-2] - marks[0]) * config.steps / (config.steps - 1), record.peak_bytes


if __name__ == "__main__":
    main()
