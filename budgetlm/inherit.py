"""Beginning from weights that are there: what a model's folder settles of a study, and the copy that its runs begin from.

A miniature of trained weights does not exist, so every recipe has the model's own shape and vocabulary, and its proxies are truncated ones. The learning
rate goes up again to what the laws give a fresh start of that shape for the tokens that are read now: less was worse (docs/LOG.md; Ibrahim et al. 2024,
arXiv:2403.08763).
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from budgetlm.config import StudyConfig
from budgetlm.data.config import DataConfig
from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import new_folder, read_json
from budgetlm.model.size import ModelConfig

INIT = "init"
"""Folder of a study in which the weights lie that all its runs begin from."""


def inherited(config: StudyConfig) -> StudyConfig:
    """The study with all that `model.init` settles: shape, vocabulary, context, proxies. As it is where nothing is inherited.

    Raises:
        ConfigError: the folder holds no model that can be begun from, or the study asks for another one.
    """
    if not config.model.init:
        return config
    folder, kept = Path(config.model.init), config.folder / INIT
    shape = _shape(kept if kept.exists() else folder)
    if shape.encodes != (config.model.objective == "mlm"):
        kind, wanted = ("an encoder", "mlm") if shape.encodes else ("a decoder", "clm")
        raise ConfigError(f"model.init {folder} is {kind}, but model.objective is {config.model.objective}. Use {wanted}.")
    context = config.model.context_length or shape.context_length
    if context > shape.context_length:
        raise ConfigError(
            f"model.context_length is {context}, but the model of model.init {folder} was made for {shape.context_length}. Use that, or less."
        )
    tokenizer = str(folder / "tokenizer.json")
    if config.data.tokenizer not in ("", tokenizer):
        raise ConfigError(
            f"data.tokenizer is {config.data.tokenizer}, but weights only mean something with their own, {tokenizer}. Leave it out."
        )
    return replace(
        config,
        data=replace(config.data, tokenizer=tokenizer),
        model=replace(config.model, context_length=context),
        search=replace(config.search, proxy="truncate"),
        space={**config.space, **_settled(shape, config, folder)},
    )


def keep_init(config: StudyConfig) -> None:
    """Copy the weights into the study, so that its runs begin from the same ones whatever becomes of the others.

    Raises:
        StudyError: the disk is full.
    """
    kept = config.folder / INIT
    if config.model.init and not kept.exists():
        with new_folder(kept) as copy:
            for name in ("model.safetensors", "config.json", "tokenizer.json"):
                shutil.copyfile(Path(config.model.init) / name, copy / name)


def data_of(config: StudyConfig) -> DataConfig:
    """The study's text, with the vocabulary of the weights that it keeps, where it does."""
    kept = config.folder / INIT / "tokenizer.json"
    return replace(config.data, tokenizer=str(kept)) if config.model.init and kept.exists() else config.data


def _shape(folder: Path) -> ModelConfig:
    from budgetlm.model.export import CONFIG, WEIGHTS, model_from

    if not (folder / WEIGHTS).exists():
        raise ConfigError(
            f"model.init {folder} holds no weights ({WEIGHTS}). Give the `model` folder of a final, or what `budgetlm export` wrote."
        )
    try:
        shape = model_from(read_json(folder / CONFIG))
    except (StudyError, KeyError, TypeError) as error:
        raise ConfigError(
            f"model.init {folder} is no model of budgetlm's ({type(error).__name__}: {error}): its shape must be one that recipes can have. "
            "Give the `model` folder of a final, or what `budgetlm export` wrote."
        ) from error
    if shape.kept_heads:
        raise ConfigError(
            f"model.init {folder} has had heads taken out, and no recipe has its shape. Give one that has not."
        )
    return shape


def _settled(shape: ModelConfig, config: StudyConfig, folder: Path) -> dict[str, Any]:
    """The part of the space that the weights leave no choice of."""
    names = ["depth", "width", "mlp_ratio", "tie_embeddings"]
    names += [] if shape.encodes else ["kv_groups", "norm_embedding", "share_layers", "embedding_rank", "mixer"]
    settled = {name: getattr(shape, name) for name in names}
    for name, value in settled.items():
        if config.space.get(name, value) != value:
            raise ConfigError(
                f"space.{name} is {config.space[name]!r}, but that of model.init {folder} is {value!r}. Leave it out."
            )
    return settled
