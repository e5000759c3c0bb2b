"""What a study settles once, before its first trial: machine, vocabulary, speed, rungs, space, default recipe.

Kept as `plan.json`, so that repeating the command, the final and the report all work in the same world.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budgetlm.budget.clock import duration
from budgetlm.compress.apply import check_compression
from budgetlm.compress.teacher import check_teacher, seconds_of, teacher_folder, teacher_parameters
from budgetlm.config import StudyConfig
from budgetlm.data.batches import training_batches, validation_sample
from budgetlm.data.masks import EVALUATION_RATE
from budgetlm.data.tokens import Tokens
from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import read_json, write_atomic, write_json
from budgetlm.inherit import INIT, given_to
from budgetlm.model.kinds import FP32
from budgetlm.model.size import WIDTH_STEP, ModelConfig, compute_parameters, flops_per_token, round_width
from budgetlm.passport import Passport, visible_gpus
from budgetlm.recipe.limit import least_artefact_bytes, limited, too_small
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
    offered,
    only_compression,
    read_space,
)
from budgetlm.recipe.world import World
from budgetlm.records import RunRecord
from budgetlm.search.ladder import plan_rungs
from budgetlm.studies import PLAN, PLAN_TEXT
from budgetlm.train.compilation import Compilation, expected
from budgetlm.train.config import PRECISIONS, Precision, RunConfig, run_config_from
from budgetlm.train.memory import (
    HEAP_PRICES,
    HEAP_PRICES_IN_BF16,
    OVERHEAD_IN_BF16,
    USUAL_OVERHEAD,
    MemoryModel,
    MemoryPoint,
    run_memory,
)
from budgetlm.train.pace import EVALUATION_SHARE
from budgetlm.train.throughput import Calibration, SpeedModel, SpeedPoint, Work, learnt_paces

UTILISATION = 0.45
"""Share of the matrix-product ceiling that training is taken to reach before anything is measured."""
PAIRED_SPREAD, SEED_NOISE = 0.4, 0.003
"""Spread of the difference of two models of about equal quality on one token of the same text, and of runs that differ in their seed alone,
both as a share of the bits per byte. Measured (`tests/benchmarks/bench_evaluation.py`, docs/LOG.md): 0.21 to 0.46 in 21 pairs of runs of 15 s,
in the median 0.4; seeds 0.26 %, over four recipes with two or three each."""
SAMPLING_SHARE = 1 / 3
"""Of the noise of two runs' difference, what the error of the sample may be: it adds 5 % to the whole, of which four times the tokens would save 4."""
LEARNT_FROM = 200
"""So many of the newest runs teach speed and memory: more would cost time at every rung and change four prices little."""
LEAST_EVAL_WINDOWS, MOST_EVAL_TOKENS = 8, 2**21
LEAST_VOCABULARY = 512
GUESSED_MICRO_BATCH = {"cpu": 4_096, "cuda": 16_384}
"""Tokens of a forward pass that calibration is taken to settle for, by device, before it has."""
FULL_EVALUATION_SHARE = EVALUATION_SHARE / 2
"""Share of a final that the evaluation on a larger part of the validation split may take; the others have the rest."""


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
        speed = _speed_model([*self.points, *speeds], self.passport, self.world.precision)
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


def memory_of(config: StudyConfig, passport: Passport) -> int:
    """Bytes that one run may take: what was granted, or the device's, which workers on one CPU share, or its share of a GPU's."""
    sharing = max(1, config.train.devices) if passport.device == "cpu" else 1
    return int(config.train.memory_gb * 1e9) or int(config.train.gpu_share * passport.memory_bytes) // sharing


def memory_model(points: Sequence[MemoryPoint], device: str, precision: str) -> MemoryModel:
    """The memory model of a device, from what runs were measured to need."""
    if device != "cpu":
        return MemoryModel.fit(points)
    usual = (HEAP_PRICES, USUAL_OVERHEAD) if precision == "fp32" else (HEAP_PRICES_IN_BF16, OVERHEAD_IN_BF16)
    return MemoryModel.fit(points, *usual)


def suited_vocabulary(target_seconds: float, passport: Passport) -> int:
    """A vocabulary size for the compute that the target will have: a power of two from 512 to 65,536.

    It grows as C^0.2 through the 4,096 that were best, or nearly, at 7e11 to 4e12 FLOPs (docs/LOG.md), which gives the 50,000 at 1e18
    that GPT-2 and the speed runs after it use. The published law (Tao et al. 2024, arXiv:2407.13623, section 4.1: 0.20 · C^0.42
    parameters of the embedding), fitted to far larger models, would say some 400 at 4e12.
    """
    flops = target_seconds * UTILISATION * max(passport.fp32_gflops, passport.bf16_gflops) * 1e9
    vocabulary = 4096 * (flops / 2e12) ** 0.2
    return int(min(65_536, max(LEAST_VOCABULARY, 2 ** round(math.log2(vocabulary)))))


def vocabulary_of(config: StudyConfig, passport: Passport) -> int:
    """The vocabulary of a study that has settled none: as wished, or what suits its target, and its limit of size.

    Raises:
        ConfigError: nothing in the space is as small as the limit wants it.
    """
    check_limit(config)
    if config.data.vocab_size:
        return config.data.vocab_size
    suited, limit = suited_vocabulary(config.budget.target_seconds, passport), config.search.max_model_bytes
    while limit and suited > LEAST_VOCABULARY and not _leaves_room(suited, limit, config):
        suited //= 2
    return suited


def _leaves_room(vocabulary: int, limit: int, config: StudyConfig) -> bool:
    """Whether an embedding leaves half of the limit to the blocks, which then are 12·depth·width² at a depth of width/32 or so."""
    width = max(2 * WIDTH_STEP, (limit / FP32 / 2 * 32 / 12) ** (1 / 3))
    least = least_artefact_bytes(read_space(config.space), vocabulary, context_of(config, "cpu"), offered("cpu"))
    return FP32 * vocabulary * width <= limit / 2 and least <= limit


def check_limit(config: StudyConfig) -> None:
    """Refuse a limit of size that no recipe of the space keeps, as far as that is known before there is a device.

    Raises:
        ConfigError: the message says how small they get.
    """
    limit, vocabulary = config.search.max_model_bytes, config.data.vocab_size or LEAST_VOCABULARY
    least = least_artefact_bytes(read_space(config.space), vocabulary, context_of(config, "cpu"), offered("cpu"))
    if 0 < limit < least:
        raise too_small(least, limit)


def devices_of(config: StudyConfig, device: str) -> int:
    """Devices of this machine that a search uses at once: those asked for, or all GPUs, or one CPU.

    Args:
        device: `cpu` or `cuda`.
    """
    return config.train.devices or (max(1, len(visible_gpus())) if device == "cuda" else 1)


def rungs_of(config: StudyConfig, devices: int, known: Sequence[float] = ()) -> list[float]:
    """The ladder of a study on so many devices, as `plan_rungs` plans it.

    Raises:
        BudgetExhausted: the budget does not pay for one.
    """
    budget, search, left = config.budget, config.search, config.budget.seconds - teacher_charge(config)
    return plan_rungs(left, budget.target_seconds, search.least_rung_seconds, known, search.objectives, devices)


def teacher_charge(config: StudyConfig) -> float:
    """Device-seconds of the teacher's own training that the search is to be charged for; 0 where it is not.

    Raises:
        ConfigError: the teacher's folder does not say what they were, or the budget cannot pay for them.
    """
    if not config.train.charge_teacher:
        return 0.0
    folder, budget = teacher_folder(config.train.teacher), config.budget.seconds
    took = seconds_of(folder)
    if not took:
        raise ConfigError(
            f"{folder} does not say what training the teacher took, so it cannot be charged. Set `train.charge_teacher` to false, or take a "
            "final of budgetlm."
        )
    if took >= budget:
        raise ConfigError(
            f"training the teacher took {duration(took)}, but the search has {duration(budget)} for everything. Give more with `--hours`, or set "
            "`train.charge_teacher` to false."
        )
    return took


def usual_shape(config: StudyConfig, passport: Passport) -> ModelConfig:
    """A shape like those of which a study will train many, as far as that is known before its text is."""
    budget, context = config.budget, context_of(config, passport.device)
    rung = rungs_of(config, devices_of(config, passport.device))[0]
    vocabulary = vocabulary_of(config, passport)
    return _shapes_to_time(rung, budget.target_seconds, passport, vocabulary, context, read_space(config.space))[1]


def _guessed_width(flops: float) -> float:
    """Width of a compute-optimal model at 20 tokens per parameter: 6·N·20·N FLOPs, N about 12·depth·width², width 40·depth."""
    return float((math.sqrt(flops / 120) * 40 / 12) ** (1 / 3))


def context_of(config: StudyConfig, device: str) -> int:
    """Tokens that a model sees at once: as wished, or what suits a kind of device."""
    return config.model.context_length or (1024 if device == "cuda" else 256)


def guessed_calibration(config: StudyConfig, passport: Passport) -> Calibration:
    """What calibration would settle, from the device's ceilings alone.

    Raises:
        ConfigError: the precision and the device cannot be brought together.
    """
    check_precision(config, passport)
    fast = passport.bf16_gflops > passport.fp32_gflops
    # Whether this very device has what is asked for is checked where it is at hand.
    precision = next((p for p in PRECISIONS if p == config.train.precision), "bf16" if fast else "fp32")
    up_to = context_of(config, passport.device) if config.train.attention == "products" else 0
    compilation = expected(passport.device, precision)
    return Calibration(precision, fast, GUESSED_MICRO_BATCH[passport.device], [], 0.0, up_to, compilation)


def check_precision(config: StudyConfig, passport: Passport) -> None:
    """Refuse a precision that a device does not compute in: no speed could be foretold.

    Raises:
        ConfigError: it is asked for; the message says what to use.
    """
    wanted = config.train.precision
    if wanted not in ("auto", "fp32") and not passport.bf16_gflops:
        raise ConfigError(f"`train.precision` is {wanted}, but {passport.name} has no bf16. Use `auto` or `fp32`.")


def world_of(config: StudyConfig, passport: Passport, tokens: Tokens, measured: Calibration) -> World:
    """All that recipes are scaled by; where no speeds were measured, a share of the device's ceiling stands in for them."""
    given = given_to(config)
    return World(
        vocab_size=tokens.facts.vocab_size,
        context_length=context_of(config, passport.device),
        train_tokens=tokens.train_tokens,
        eval_tokens=config.train.eval_tokens,
        full_eval_tokens=0,
        micro_batch_tokens=measured.micro_batch_tokens,
        precision=measured.precision,
        bf16_is_fast=measured.bf16_is_fast,
        compile=config.train.compile,
        device=passport.device,
        memory_bytes=memory_of(config, passport),
        clip=config.train.clip,
        speed=_speed_model(measured.points, passport, measured.precision),
        memory=memory_model([], passport.device, measured.precision),
        compilation=measured.compilation,
        matmul=config.train.matmul,
        checkpoint_activations=config.train.checkpoint_activations,
        products_up_to=measured.products_up_to,
        document_end=_document_end(config, tokens),
        mask_token=_mask_token(config, tokens),
        proxy=config.search.proxy,
        objectives=config.search.objectives,
        max_model_bytes=config.search.max_model_bytes,
        init=str(config.folder / INIT) if given else "",
        rope_theta=given.shape.rope_theta if given else World.rope_theta,
        teacher=config.train.teacher,
        teacher_parameters=teacher_parameters(config.train.teacher) if config.train.teacher else 0,
        **final_team(config, passport.device),
    )


def final_team(config: StudyConfig, device: str) -> dict[str, Any]:
    """Who is to train the study's final, as a world has it. How many devices a Ray cluster has is not known before."""
    gpus = len(visible_gpus()) if device == "cuda" and config.train.engine == "processes" else 1
    return {
        "final_devices": config.train.final_devices or max(1, gpus),
        "final_parallel": config.train.parallel,
        "final_offload": config.train.offload,
    }


def _document_end(config: StudyConfig, tokens: Tokens) -> int | None:
    return tokens.facts.end_of_text if config.model.document_attention else None


def _mask_token(config: StudyConfig, tokens: Tokens) -> int | None:
    return tokens.facts.mask if config.model.objective == "mlm" else None


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
    shapes = _shapes_to_time(rungs[0], target, passport, tokens.facts.vocab_size, context, wanted)
    end, mask = _document_end(config, tokens), _mask_token(config, tokens)
    shapes = [replace(shape, document_end=end, mask_token=mask) for shape in shapes]
    measured = measure(shapes, optimizers)
    world = world_of(config, passport, tokens, measured)
    space, default = limited(
        *complete_space(wanted, default_recipe(target, world, only_compression(wanted), wanted), world), world
    )
    sample, full = _evaluation_sizes(default, rungs[0], target, world, tokens)
    world = replace(world, eval_tokens=sample, full_eval_tokens=full)
    plan = Plan(passport, world, rungs, target, space, default, measured.points, tokens.facts.fingerprint)
    return plan, measured


def _check_compressions(wanted: Space, config: StudyConfig, passport: Passport, tokens: Tokens) -> None:
    for option in compressions(wanted):
        check_compression(option, passport.device, config.train.teacher)
    if config.train.teacher:
        check_teacher(config.train.teacher, tokens.tokenizer_file)


def _evaluation_sizes(default: Recipe, rung: float, target: float, world: World, tokens: Tokens) -> tuple[int, int]:
    """Validation tokens for every run, the same ones in all of them, and for a final's second look.

    As few as resolve what seeds leave to be resolved, and as a share of the cheapest rung pays for. A forward pass runs at about 3 times the
    speed of a step.
    """
    available = tokens.facts.tokens["validation"]

    def affordable(seconds: float, share: float, most: int) -> int:
        config = at_rung(default, seconds, target, world)
        tokens = int(3 * expected_speed(config, world) * config.seconds * share)
        return max(LEAST_EVAL_WINDOWS * world.context_length, min(available, most, tokens))

    sample = world.eval_tokens or affordable(rung, EVALUATION_SHARE, _resolving_tokens(encodes=world.mask_token is not None))
    return sample, affordable(target, FULL_EVALUATION_SHARE, MOST_EVAL_TOKENS)


def _resolving_tokens(*, encodes: bool) -> int:
    """The least tokens whose sampling error is small beside the noise of seeds in the difference of two runs; an encoder is asked for a share of them."""
    error = SAMPLING_SHARE * math.sqrt(2) * SEED_NOISE
    return math.ceil((PAIRED_SPREAD / error) ** 2 / (EVALUATION_RATE if encodes else 1))


def _shapes_to_time(
    cheapest: float, target: float, passport: Passport, vocab_size: int, context: int, wanted: Space
) -> list[ModelConfig]:
    """Four shapes from a miniature's to beyond the target's, for the throughput model."""
    ceiling = max(passport.fp32_gflops, passport.bf16_gflops) * 1e9 * UTILISATION
    small, large = (_guessed_width(seconds * ceiling) for seconds in (cheapest, target))
    if isinstance(width := wanted.get("width"), Fixed):
        large = width.value
        small = min(small, large / 2)
    widths = [max(32, small), math.sqrt(max(32, small) * max(48, large)), max(48, large), 1.5 * max(48, large)]
    depths = [max(1, round(w / 40)) for w in widths]
    depths[1] += 2  # so that depth and width do not move together alone
    return [
        ModelConfig(vocab_size=vocab_size, context_length=context, depth=depth, width=round_width(width))
        for depth, width in zip(depths, widths, strict=True)
    ]


def _optimizers(wanted: Space) -> list[str]:
    domain = wanted.get("optimizer", Choices(("muon", "adamw")))
    return [domain.value] if isinstance(domain, Fixed) else list(domain.values) if isinstance(domain, Choices) else []


def _speed_model(points: Sequence[SpeedPoint], passport: Passport, precision: Precision) -> SpeedModel:
    known = [point for point in points if point.tokens_per_second > 0]
    return SpeedModel.fit(known, passport.ceiling_gflops(precision), passport.device, precision)


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


def _world_of(seconds: float, config: RunConfig, plan: Plan) -> World:
    """That of a device which trains a rung, or, of those that train it together, the target."""
    return of_final(plan.world, config) if seconds == plan.target_seconds else plan.world


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
        lines.append(
            f"{'target' if seconds == plan.target_seconds else 'rung':9} {seconds:8.1f} s: default recipe is depth "
            f"{config.model.depth} x width {config.model.width}, {tokens / 1e6:.2f} M tokens, "
            f"{tokens / compute_parameters(config.model):.0f} a parameter, {tokens * flops_per_token(config.model):.1e} FLOP, "
            f"{expected_peak_bytes(config, _world_of(seconds, config, plan)) / 2**30:.2f} GiB"
        )
    return "\n".join(lines)
