"""What a study settles once, before its first trial: machine, vocabulary, speed, rungs, space, default recipe.

Kept as `plan.json`, so that repeating the command, the final and the report all work in the same world.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budgetlm.compress.apply import check_compression
from budgetlm.compress.teacher import check_teacher
from budgetlm.config import StudyConfig
from budgetlm.data.batches import training_batches, validation_sample
from budgetlm.data.tokens import Tokens
from budgetlm.errors import StudyError
from budgetlm.files import read_json, write_atomic, write_json
from budgetlm.model.size import ModelConfig, compute_parameters, flops_per_token
from budgetlm.passport import Passport
from budgetlm.recipe.limit import limited
from budgetlm.recipe.oracle import expected_peak_bytes, expected_speed, of_final
from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.recipe.scale import at_rung
from budgetlm.recipe.space import (
    Choices,
    Domain,
    Fixed,
    Range,
    Space,
    complete_space,
    compressions,
    default_recipe,
    only_compression,
    read_space,
)
from budgetlm.recipe.world import World
from budgetlm.records import RunRecord
from budgetlm.search.sizing import context_of, evaluation_sizes, rungs_of, shapes_to_time
from budgetlm.search.world import check_precision, document_end, mask_token, memory_model, speed_model, world_of
from budgetlm.studies import PLAN, PLAN_TEXT
from budgetlm.train.compilation import Compilation
from budgetlm.train.config import RunConfig, run_config_from
from budgetlm.train.memory import (
    MemoryModel,
    MemoryPoint,
    run_memory,
)
from budgetlm.train.throughput import Calibration, SpeedModel, SpeedPoint, Work, learnt_paces

LEARNT_FROM = 200
"""So many of the newest runs teach speed and memory: more would cost time at every rung and change four prices little."""

Measure = Callable[[Sequence[ModelConfig], Sequence[str]], Calibration]
"""Calibrates a device for models of some shapes, and for optimizers by name."""


@dataclass(frozen=True)
class Plan:
    """The settled facts of a study."""

    passport: Passport
    world: World
    rungs: list[float]
    """Device-seconds of each rung, cheapest first."""
    target_seconds: float
    space: Space
    default: Recipe
    points: list[SpeedPoint]
    """Speeds measured in calibration."""
    data: str
    """Fingerprint of the tokens."""

    def world_of(self, config: RunConfig) -> World:
        """That of the device which trains a rung, or of each of those that train the target together."""
        return of_final(self.world, config) if config.seconds == self.target_seconds else self.world

    def save(self, folder: Path) -> None:
        """Keep the plan with the study."""
        values = dataclasses.asdict(self)
        values["space"] = {name: _domain_as_dict(domain) for name, domain in self.space.items()}
        write_json(folder / PLAN, values)
        write_atomic(folder / PLAN_TEXT, describe(self) + "\n")

    def learning(self, records: Sequence[RunRecord]) -> "Plan":
        """The plan with its models of throughput, memory and compilation fitted to the study's own runs on one device as well."""
        runs = [(r, run_config_from(r.config)) for r in records[-LEARNT_FROM:] if r.steps >= 5 and r.devices == 1]
        speeds = [
            SpeedPoint(
                c.model,
                r.tokens // r.steps,  # a batch ramp's mean
                c.micro_batch_sequences * c.model.context_length,
                c.optimizer.name,
                r.tokens_per_second,
                c.checkpoint_activations,
            )
            for r, c in runs
            if r.tokens_per_second > 0 and not c.compile and not c.compression.changes_training
        ]
        speed = speed_model([*self.points, *speeds], self.passport, self.world.precision)
        memory = memory_model(
            [MemoryPoint(run_memory(c), r.peak_bytes) for r, c in runs if r.peak_bytes > 0 and not c.compact_heap],
            self.world.device,
            self.world.precision,
        )
        world = replace(self.world, speed=speed, memory=memory)
        compiled = [
            (r.tokens_per_second / expected_speed(replace(c, compile=False), world), r.by_purpose.get("compile", 0.0))
            for r, c in runs
            if r.tokens_per_second > 0 and c.compile
        ]
        plain = replace(world, paces={})
        paces = learnt_paces(
            [
                (c.compression.option, r.tokens_per_second, expected_speed(c, plain))
                for r, c in runs
                if r.tokens_per_second > 0 and not c.compile and c.compression.changes_training
            ]
        )
        return replace(self, world=replace(world, compilation=world.compilation.learning(compiled), paces=paces))


def make_plan(
    config: StudyConfig,
    passport: Passport,
    tokens: Tokens,
    measure: Measure,
    devices: int = 1,
) -> tuple[Plan, Calibration]:
    """Calibrate, and settle rungs, space and default recipe.

    Args:
        measure: calibrates the device for models of some shapes, and for optimizers by name.
        devices: that are used at once.

    Raises:
        BudgetExhausted: the budget does not pay for a ladder.
        DataError: the text is too short for the context.
        ConfigError: the space or the precision, and the device, cannot be brought together.
    """
    check_precision(config, passport)
    target = config.budget.target_seconds
    rungs = rungs_of(config, devices)
    context = context_of(config, passport.device)
    # Too little text is noticed before anything is measured on its behalf.
    training_batches(tokens, context, config.search.seed)
    validation_sample(tokens, context, context)
    wanted = read_space(config.space)
    _check_compressions(wanted, config, passport, tokens)
    optimizers = _optimizers(wanted)
    shapes = shapes_to_time(rungs[0], target, passport, tokens.facts.vocab_size, context, wanted)
    end, mask = document_end(config, tokens), mask_token(config, tokens)
    shapes = [replace(shape, document_end=end, mask_token=mask) for shape in shapes]
    measured = measure(shapes, optimizers)
    world = world_of(config, passport, tokens, measured)
    space, default = limited(
        *complete_space(wanted, default_recipe(target, world, only_compression(wanted), wanted), world), world
    )
    sample, full = evaluation_sizes(default, rungs[0], target, world, tokens)
    world = replace(world, eval_tokens=sample, full_eval_tokens=full)
    plan = Plan(passport, world, rungs, target, space, default, measured.points, tokens.facts.fingerprint)
    return plan, measured


def _check_compressions(wanted: Space, config: StudyConfig, passport: Passport, tokens: Tokens) -> None:
    for option in compressions(wanted):
        check_compression(option, passport.device, config.train.teacher)
    if config.train.teacher:
        check_teacher(config.train.teacher, tokens.tokenizer_file)


def _optimizers(wanted: Space) -> list[str]:
    domain = wanted.get("optimizer", Choices(("muon", "adamw")))
    return [domain.value] if isinstance(domain, Fixed) else list(domain.values) if isinstance(domain, Choices) else []


def load_plan(folder: Path) -> Plan | None:
    """The plan of a study, if it has settled one.

    Raises:
        StudyError: the file is damaged, or of another version.
    """
    if not (folder / PLAN).exists():
        return None
    try:
        return _plan_from_dict(read_json(folder / PLAN))
    except (KeyError, TypeError) as error:
        raise StudyError(
            f"{folder / PLAN} was written by another version of budgetlm, or by hand (at {error}). Begin another study with "
            "`--study`, or go on with the version that began it."
        ) from None


def _plan_from_dict(values: dict[str, Any]) -> Plan:
    return Plan(
        passport=Passport(**values["passport"]),
        world=_world_from_dict(values["world"]),
        rungs=values["rungs"],
        target_seconds=values["target_seconds"],
        space={name: _domain_from_dict(domain) for name, domain in values["space"].items()},
        default=recipe_from(values["default"]),
        points=[
            SpeedPoint(ModelConfig(**p["model"]), **{k: v for k, v in p.items() if k != "model"}) for p in values["points"]
        ],
        data=values["data"],
    )


def _world_from_dict(values: dict[str, Any]) -> World:
    memory = values["memory"]
    models = {
        "speed": SpeedModel(Work(*values["speed"]["prices"]), values["speed"]["floor"]),
        "compilation": Compilation(**values["compilation"]),
        "memory": MemoryModel((memory["prices"][0], memory["prices"][1]), memory["overhead_bytes"]),
    }
    return World(**{**values, **models})


def _domain_as_dict(domain: Domain) -> dict[str, Any]:
    return {"kind": type(domain).__name__, **dataclasses.asdict(domain)}


def _domain_from_dict(values: dict[str, Any]) -> Domain:
    kind, values = values["kind"], {k: v for k, v in values.items() if k != "kind"}
    if kind == "Choices":
        return Choices(tuple(values["values"]))
    return Range(**values) if kind == "Range" else Fixed(**values)


def describe(plan: Plan) -> str:
    """A few lines for people: the machine, the ladder, the default recipe at each of its rungs."""
    world = plan.world
    lines = [
        f"machine   {plan.passport.summary()}; {world.precision}, {world.micro_batch_tokens:,} tokens a pass",
        f"data      {world.train_tokens:,} training tokens of a vocabulary of {world.vocab_size:,}, "
        f"validation sample {world.eval_tokens:,} tokens",
    ]
    for seconds in [*plan.rungs, plan.target_seconds]:
        config = at_rung(plan.default, seconds, plan.target_seconds, world)
        tokens = expected_speed(config, world) * config.seconds
        each = tokens / compute_parameters(config.model)
        lines.append(
            f"{'target' if seconds == plan.target_seconds else 'rung':9} {seconds:8.1f} s: default recipe is depth "
            f"{config.model.depth} x width {config.model.width}, {tokens / 1e6:.2f} M tokens, "
            f"{each:.{0 if each >= 10 else 1}f} a parameter, {tokens * flops_per_token(config.model):.1e} FLOP, "
            f"{expected_peak_bytes(config, plan.world_of(config)) / 2**30:.2f} GiB"
        )
    return "\n".join(lines)
