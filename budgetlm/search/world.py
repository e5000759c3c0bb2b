"""The world of a study's recipes, from its settings, its device, its text, and what calibration has measured or would."""

from collections.abc import Sequence
from typing import Any

from budgetlm.compress.teacher import teacher_parameters
from budgetlm.config import StudyConfig
from budgetlm.data.tokens import Tokens
from budgetlm.errors import ConfigError
from budgetlm.inherit import INIT, given_to
from budgetlm.passport import Passport, visible_gpus
from budgetlm.recipe.world import World
from budgetlm.search.sizing import context_of
from budgetlm.train.compilation import expected
from budgetlm.train.config import PRECISIONS, Precision
from budgetlm.train.memory import (
    HEAP_PRICES,
    HEAP_PRICES_IN_BF16,
    OVERHEAD_IN_BF16,
    USUAL_OVERHEAD,
    MemoryModel,
    MemoryPoint,
)
from budgetlm.train.throughput import Calibration, SpeedModel, SpeedPoint

GUESSED_MICRO_BATCH = {"cpu": 4_096, "cuda": 16_384}
"""Tokens of a forward pass that calibration is taken to settle for, by device, before it has."""


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
        speed=speed_model(measured.points, passport, measured.precision),
        memory=memory_model([], passport.device, measured.precision),
        compilation=measured.compilation,
        matmul=config.train.matmul,
        checkpoint_activations=config.train.checkpoint_activations,
        products_up_to=measured.products_up_to,
        document_end=document_end(config, tokens),
        mask_token=mask_token(config, tokens),
        proxy=config.search.proxy,
        objectives=config.search.objectives,
        max_model_bytes=config.search.max_model_bytes,
        init=str(config.folder / INIT) if given else "",
        rope_theta=given.shape.rope_theta if given else World.rope_theta,
        teacher=config.train.teacher,
        teacher_parameters=teacher_parameters(config.train.teacher) if config.train.teacher else 0,
        **final_team(config, passport.device),
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


def speed_model(points: Sequence[SpeedPoint], passport: Passport, precision: Precision) -> SpeedModel:
    """The throughput model of a device, from what was measured of it, or its ceiling where nothing was."""
    known = [point for point in points if point.tokens_per_second > 0]
    return SpeedModel.fit(known, passport.ceiling_gflops(precision), passport.device, precision)


def final_team(config: StudyConfig, device: str) -> dict[str, Any]:
    """Who is to train the study's final, as a world has it. How many devices a Ray cluster has is not known before."""
    gpus = len(visible_gpus()) if device == "cuda" and config.train.engine == "processes" else 1
    return {
        "final_devices": config.train.final_devices or max(1, gpus),
        "final_parallel": config.train.parallel,
        "final_offload": config.train.offload,
    }


def document_end(config: StudyConfig, tokens: Tokens) -> int | None:
    """Id of the token that ends a document, where attention stays within documents."""
    return tokens.facts.end_of_text if config.model.document_attention else None


def mask_token(config: StudyConfig, tokens: Tokens) -> int | None:
    """Id of the token that hides others, where models are encoders."""
    return tokens.facts.mask if config.model.objective == "mlm" else None


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
