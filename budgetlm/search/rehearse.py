"""A search rehearsed: the real scheduler, ledger and sampler, on a clock moved by hand, with nothing trained.

How many trials climb how far depends on their losses, which nobody knows before. Here they are imagined: every recipe
follows one power law, with a level of its own. What is real is everything that the budget decides: rungs, sizes, tokens,
memory, and which run is still paid for.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace

from budgetlm.config import StudyConfig
from budgetlm.data.tokens import Tokens
from budgetlm.model.footprint import saved_bytes
from budgetlm.model.size import flops_per_token, parameters
from budgetlm.passport import Passport
from budgetlm.recipe.oracle import deployed_bytes, expected_peak_bytes, expected_speed, model_of, token_milliseconds
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import at_rung
from budgetlm.recipe.world import World
from budgetlm.records import RunRecord
from budgetlm.search.engines.simulated import simulate
from budgetlm.search.jobs import RungJob
from budgetlm.search.plan import Plan, make_plan
from budgetlm.search.trunks import KEPT
from budgetlm.search.world import guessed_calibration
from budgetlm.train.checkpoint import KEEP
from budgetlm.train.config import bare_record

FLOOR, DECAY = 0.5, 0.2
"""The imagined law: bits per byte = FLOOR + exp(level - DECAY · log(seconds / target))."""
LEVELS = (0.1, 0.15)
"""Mean and spread of the imagined recipes' levels; the default one's is 0."""
CALIBRATION_SECONDS = 8.0


@dataclass(frozen=True)
class Stage:
    """One rung, or the final, as the default recipe would be there."""

    seconds: float
    runs: int
    """How many runs the rehearsal paid for."""
    depth: int
    width: int
    parameters: int
    tokens: float
    tokens_per_second: float
    flops: float
    micro_batch_tokens: int
    checkpoint_activations: bool
    peak_bytes: float
    """Predicted memory of a run, on each of the devices that train it."""
    disk_bytes: int
    """Most that its checkpoints take at a time, and for a final the exported model."""


@dataclass(frozen=True)
class Rehearsal:
    """What a search and its final would be."""

    device: str
    devices: int
    search_hours: float
    """Device-hours."""
    target_hours: float
    trials: int
    refused: int
    """Trials that the oracle refused: their finals would not fit the memory, or their artefacts not keep the limit."""
    objectives: str
    """What recipes are judged by."""
    max_model_bytes: int
    """Most that the final's artefact may weigh; 0 for no limit."""
    model_bytes: int
    """That the default recipe's would."""
    token_ms: float
    """Milliseconds in which that would write a token, as foretold."""
    rungs: list[Stage]
    final: Stage
    epochs: float
    """How often the final would read its training data."""
    disk_bytes: int
    """Most that is on the disk at a time, beside the prepared data."""
    final_devices: int
    """That train the final together."""
    wall_hours: float
    """Search and final, one after the other."""


def guessed_plan(config: StudyConfig, passport: Passport, tokens: Tokens, devices: int = 1) -> Plan:
    """The plan that a search on so many devices would settle, with their ceilings in place of measured speeds.

    Raises:
        BudgetExhausted, ConfigError, DataError: as a search would.
    """
    guessed = guessed_calibration(config, passport)
    plan, _ = make_plan(config, passport, tokens, lambda _shapes, _optimizers: guessed, devices)
    return plan


def rehearse(config: StudyConfig, plan: Plan, tokens: Tokens, places: int) -> Rehearsal:
    """Run a search without training anything, and say what it came to.

    Args:
        places: devices that are used at once.
    """
    seconds = max(0.0, config.budget.seconds - CALIBRATION_SECONDS)
    search = config.search
    simulation = simulate(
        plan, tokens, seconds, lambda job: imagine(job, plan.world), search.seed, places, stops_early=search.stop_early
    )
    records = simulation.records
    runs, world = Counter(r.rung for r in records), plan.world
    stages = [stage(plan.default, seconds, plan, runs[k]) for k, seconds in enumerate(plan.rungs)]
    final = stage(plan.default, plan.target_seconds, plan, 1)
    return Rehearsal(
        device=plan.passport.name,
        devices=places,
        search_hours=config.budget.hours,
        target_hours=config.budget.target_hours,
        trials=len({r.trial for r in records}),
        refused=simulation.refused,
        objectives=world.objectives,
        max_model_bytes=world.max_model_bytes,
        model_bytes=deployed_bytes(plan.default, world),
        token_ms=token_milliseconds(plan.default, world),
        rungs=stages,
        final=final,
        epochs=final.tokens / world.train_tokens,
        disk_bytes=max(final.disk_bytes, places * max(s.disk_bytes for s in stages) + _trunk_bytes(plan, places)),
        final_devices=world.final_devices,
        wall_hours=config.budget.hours / places + config.budget.target_hours / world.final_devices,
    )


def _trunk_bytes(plan: Plan, places: int) -> int:
    """Most that a search's trunks take at a time: those of the trials at work, and of the others that keep theirs."""
    if plan.world.proxy != "truncate":
        return 0
    return (places + KEPT) * saved_bytes(model_of(plan.default, plan.world), checkpoints=KEEP * len(plan.rungs))


def stage(recipe: Recipe, seconds: float, plan: Plan, runs: int) -> Stage:
    """A recipe on one rung, or at the target."""
    config = at_rung(recipe, seconds, plan.target_seconds, plan.world)
    model, speed = config.model, expected_speed(config, plan.world)
    tokens = speed * config.seconds
    return Stage(
        seconds=seconds,
        runs=runs,
        depth=model.depth,
        width=model.width,
        parameters=parameters(model),
        tokens=tokens,
        tokens_per_second=speed,
        flops=tokens * flops_per_token(model),
        micro_batch_tokens=config.micro_batch_sequences * model.context_length,
        checkpoint_activations=config.checkpoint_activations,
        peak_bytes=expected_peak_bytes(config, plan.world_of(config)),
        disk_bytes=saved_bytes(
            model, checkpoints=KEEP + 1, exported=seconds == plan.target_seconds, averaged=config.ema > 0
        ),
    )


def imagine(job: RungJob, world: World) -> RunRecord:
    """The record that a run might leave."""
    config, label = job.config, job.label
    chance = random.Random(label.trial)  # noqa: S311  # there is nothing to keep secret
    level = chance.gauss(*LEVELS) if label.trial else 0.0
    speed = expected_speed(config, world)
    return replace(
        bare_record(label, config),
        state="done",
        seconds=config.seconds,
        by_purpose={"train": config.seconds},
        tokens=int(speed * config.seconds),  # of no steps, so that nothing is learnt of speed and memory
        flops=speed * config.seconds * flops_per_token(config.model),
        tokens_per_second=speed,
        bpb=FLOOR + math.exp(level - DECAY * math.log(config.seconds / label.target_seconds)),
    )
