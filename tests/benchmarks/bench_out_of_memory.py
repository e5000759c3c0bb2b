"""How many trials run out of memory, with the oracle and without, in a space most of which is too large for the place.

Recipes are drawn at random. Without the oracle each is trained as calibration would have it; with it, a recipe that cannot
fit is refused, and the others get the micro-batch and the checkpointing that fit. Each makes two real steps in a process of its
own, whose memory is limited.

    python -m tests.benchmarks.bench_out_of_memory --recipes 60
"""

import argparse
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna

from budgetlm.budget.clock import Clock
from budgetlm.config import study_config
from budgetlm.passport import pick_device, take_passport
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import at_target, memory_violation
from budgetlm.recipe.space import suggest
from budgetlm.search.ahead import PRELOAD
from budgetlm.search.rehearse import guessed_plan
from budgetlm.search.study import prepare
from budgetlm.train.config import RunConfig
from budgetlm.watch import Watcher
from budgetlm.workers.child import Place
from budgetlm.workers.job import Ended, Failure
from budgetlm.workers.processes import Processes


@dataclass(frozen=True)
class TwoSteps:
    """Builds a model and trains it on two batches, and evaluates it once."""

    config: RunConfig

    def work(self, desk) -> str:
        """`fits`, if it gets there."""
        from budgetlm.model.size import evaluation_sequences
        from budgetlm.model.transformer import build
        from budgetlm.train.evaluate import evaluate
        from budgetlm.train.heap import set_heap
        from budgetlm.train.step import Stepper

        config = self.config
        model = config.model
        set_heap(config.device, compact=config.compact_heap)
        network = build(model, 0)
        stepper = Stepper(config, network)
        # Two passes are as many as any number: gradients are there from the first on.
        sequences = min(config.batch_sequences, 2 * config.micro_batch_sequences)
        rows = np.random.default_rng(0).integers(model.vocab_size, size=(sequences, model.context_length + 1))
        for _ in range(2):
            stepper.step(rows, 1e-4)
        micro = evaluation_sequences(model, config.micro_batch_sequences)
        bytes_v = np.ones(model.vocab_size, dtype=np.int64)
        evaluate(network, np.repeat(rows, micro, axis=0)[:micro], bytes_v, micro_batch=micro)
        return "fits"


def outcome(workers: Processes, config: RunConfig) -> str:
    """What became of a run: `fits`, `memory`, or another cause."""
    workers.start(0, TwoSteps(config), 300.0)
    while True:
        for _, event in workers.wait(1.0):
            if isinstance(event, Ended):
                return event.outcome.cause if isinstance(event.outcome, Failure) else event.outcome


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=60)
    parser.add_argument("--memory-gb", type=float, default=0.4)
    options = parser.parse_args()
    cache = Path(os.environ.get("BUDGETLM_CACHE") or Path.home() / ".cache" / "budgetlm")
    config = study_config(
        {
            "budget": {"hours": 1.0, "target_hours": 1.0},
            "data": {"vocab_size": 1024},
            "train": {"memory_gb": options.memory_gb},
            "space": {
                "depth": {"low": 2, "high": 12},
                "width": {"low": 64, "high": 640, "step": 64},
                "batch_tokens": {"low": 1024, "high": 16384, "log": True},
            },
        }
    )
    tokens = prepare(config, 1024, cache, Watcher())
    plan = guessed_plan(config, take_passport(pick_device("cpu", 0)), tokens)
    workers = Processes([Place("cpu", memory_bytes=int(options.memory_gb * 1e9))], Clock(), preload=PRELOAD)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    recipes: list[Recipe] = [suggest(study.ask(), plan.space) for _ in range(options.recipes)]
    naive, oracle = Counter(), Counter()
    roomy = replace(plan.world, memory_bytes=10**15)
    for recipe in recipes:
        naive[outcome(workers, at_target(recipe, plan.target_seconds, roomy))] += 1
        if memory_violation(recipe, plan.target_seconds, plan.world) > 0:
            oracle["refused"] += 1
            continue
        fitted = at_target(recipe, plan.target_seconds, plan.world)
        how = "compact heap" if fitted.compact_heap else "checkpointed" if fitted.checkpoint_activations else "plain"
        oracle[f"{how}: {outcome(workers, fitted)}"] += 1
    workers.close()
    ran = sum(count for name, count in oracle.items() if name != "refused")
    failed = sum(count for name, count in oracle.items() if name.endswith("memory"))
    print(f"{options.recipes} random recipes, {options.memory_gb} GB for a run")
    print(f"without the oracle: {dict(naive)}; out of memory {naive['memory'] / options.recipes:.1%}")
    print(f"with it:            {dict(oracle)}; out of memory {failed / max(1, ran):.1%} of the {ran} that were run")


if __name__ == "__main__":
    main()
