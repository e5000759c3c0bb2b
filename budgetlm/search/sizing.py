"""How large things are in a study, from its settings and its device: vocabulary, context, ladder, shapes to time, samples to evaluate."""

import math
from collections.abc import Sequence

from budgetlm.budget.clock import duration
from budgetlm.compress.teacher import seconds_of, teacher_folder
from budgetlm.config import StudyConfig
from budgetlm.data.masks import EVALUATION_RATE
from budgetlm.data.tokens import Tokens
from budgetlm.errors import ConfigError
from budgetlm.model.kinds import FP32
from budgetlm.model.size import WIDTH_STEP, ModelConfig, round_width
from budgetlm.passport import Passport, visible_gpus
from budgetlm.recipe.limit import least_artefact_bytes, too_small
from budgetlm.recipe.oracle import expected_speed
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import at_rung
from budgetlm.recipe.space import Fixed, Space, offered, read_space
from budgetlm.recipe.world import World
from budgetlm.search.ladder import plan_rungs
from budgetlm.train.pace import EVALUATION_SHARE

UTILISATION = 0.45
"""Share of the matrix-product ceiling that training is taken to reach before anything is measured."""
LEAST_VOCABULARY = 512
PAIRED_SPREAD, SEED_NOISE = 0.4, 0.003
"""Spread of the difference of two models of about equal quality on one token of the same text, and of runs that differ in their seed alone,
both as a share of the bits per byte. Measured (`tests/benchmarks/bench_evaluation.py`, docs/LOG.md): 0.21 to 0.46 in 21 pairs of runs of 15 s,
in the median 0.4; seeds 0.26 %, over four recipes with two or three each."""
SAMPLING_SHARE = 1 / 3
"""Of the noise of two runs' difference, what the error of the sample may be: it adds 5 % to the whole, of which four times the tokens would save 4."""
LEAST_EVAL_WINDOWS, MOST_EVAL_TOKENS = 8, 2**21
FULL_EVALUATION_SHARE = EVALUATION_SHARE / 2
"""Share of a final that the evaluation on a larger part of the validation split may take; the others have the rest."""


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


def context_of(config: StudyConfig, device: str) -> int:
    """Tokens that a model sees at once: as wished, or what suits a kind of device."""
    return config.model.context_length or (1024 if device == "cuda" else 256)


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
    return shapes_to_time(rung, budget.target_seconds, passport, vocabulary, context, read_space(config.space))[1]


def shapes_to_time(
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


def _guessed_width(flops: float) -> float:
    """Width of a compute-optimal model at 20 tokens per parameter: 6·N·20·N FLOPs, N about 12·depth·width², width 40·depth."""
    return float((math.sqrt(flops / 120) * 40 / 12) ** (1 / 3))


def evaluation_sizes(default: Recipe, rung: float, target: float, world: World, tokens: Tokens) -> tuple[int, int]:
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
