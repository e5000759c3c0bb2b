"""Beginning from weights that are there: what a model's folder settles of a study, or of one final, and the copy that runs begin from.

A miniature of trained weights does not exist, so every recipe has the model's own shape and vocabulary, and its proxies are truncated ones. The learning
rate goes up again to what the laws give a fresh start of that shape for the tokens that are read now: less was worse (docs/LOG.md; Ibrahim et al. 2024,
arXiv:2403.08763). A final that alone begins from given weights keeps the study's recipe, which was searched for fresh ones, and its rate is carried to their
shape by the same laws (`recipe/scale.py`).

The folder is a final's `model`, what `export` wrote, or a plain Qwen3 or ModernBERT of somebody else's, which the copy makes one of ours (`model/foreign.py`).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budgetlm.config import StudyConfig
from budgetlm.data.config import DataConfig
from budgetlm.data.tokens import MASK, Tokens, end_of_text_of, read_tokenizer
from budgetlm.errors import BudgetlmError, ConfigError
from budgetlm.files import new_folder, read_json
from budgetlm.model.size import ModelConfig
from budgetlm.recipe.recipe import shape_values

INIT = "init"
"""Folder of a study, or of a final, in which the weights lie that its runs begin from."""
UNASKED_CONTEXT = 1024
"""Most tokens that a study has its models see at once because a foreign model could: published ones name what their positions allow."""
PARTS = ("normalizer", "pre_tokenizer", "model")
"""Of a `tokenizer.json`, those that decide what a text becomes."""
OWN_KEY = "budgetlm_mlp_ratio"
"""In the `config.json` of all folders of ours."""
REMEDY = "Give the `model` folder of a final, what `budgetlm export` wrote, or a plain Qwen3 or ModernBERT"


@dataclass(frozen=True)
class Given:
    """A model that is to be begun from."""

    folder: Path
    shape: ModelConfig
    foreign: bool
    """Whether it is none of ours, and is to be made one."""

    def keep(self, kept: Path, context_length: int) -> None:
        """Copy it, so that runs begin from the same weights whatever becomes of the others.

        Args:
            kept: the folder to be made; nothing is done if it is there.
            context_length: that its runs have.

        Raises:
            StudyError: the disk is full.
            ConfigError: it is a foreign one, and its weights are not what its `config.json` says.
        """
        if kept.exists():
            return
        with new_folder(kept) as copy:
            if not self.foreign:
                for name in ("model.safetensors", "config.json", "tokenizer.json"):
                    shutil.copyfile(self.folder / name, copy / name)
                return
            from budgetlm.model.foreign import adopt

            end = end_of_text_of(read_tokenizer(str(self.folder / "tokenizer.json")))
            with _told(self.folder):
                adopt(self.folder, copy, replace(self.shape, context_length=context_length), end)

    @property
    def mark(self) -> str:
        """What tells these weights from others."""
        content = hashlib.blake2b(digest_size=4)
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                while part := file.read(2**24):
                    content.update(part)
        return content.hexdigest()


def inherited(config: StudyConfig) -> StudyConfig:
    """The study with all that `model.init` settles: shape, vocabulary, context, proxies. As it is where nothing is inherited.

    Raises:
        ConfigError: the folder holds no model that can be begun from, or the study asks for another one.
    """
    given = given_to(config)
    if given is None:
        return config
    folder, shape = Path(config.model.init), given.shape
    _check_objective(folder, shape, config.model.objective)
    context = config.model.context_length or (
        min(UNASKED_CONTEXT, shape.context_length) if given.foreign else shape.context_length
    )
    _check_context(folder, shape, context)
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


def given_to(config: StudyConfig) -> Given | None:
    """The model that a study's runs begin from, its own copy where it has one; None of a study that begins with fresh weights.

    Raises:
        ConfigError: as `look_at`.
    """
    if not config.model.init:
        return None
    kept = config.folder / INIT
    return look_at(kept if kept.exists() else Path(config.model.init))


def keep_init(config: StudyConfig) -> None:
    """Copy the weights into the study.

    Raises:
        StudyError, ConfigError: as `Given.keep`.
    """
    if given := given_to(config):
        given.keep(config.folder / INIT, config.model.context_length)


def data_of(config: StudyConfig) -> DataConfig:
    """The study's text, with the vocabulary of the weights that it keeps, where it does."""
    kept = config.folder / INIT / "tokenizer.json"
    return replace(config.data, tokenizer=str(kept)) if config.model.init and kept.exists() else config.data


def look_at(folder: Path) -> Given:
    """What is in a folder that is to be begun from.

    Raises:
        ConfigError: there is no model, or none that recipes can have the shape of; the message says why.
    """
    from budgetlm.model.export import CONFIG, TOKENIZER, WEIGHTS, model_from
    from budgetlm.model.foreign import INDEX, shape_from

    for name, what in ((WEIGHTS, "weights"), (CONFIG, "config"), (TOKENIZER, "tokenizer")):
        if not ((folder / name).exists() or (name == WEIGHTS and (folder / INDEX).exists())):
            raise ConfigError(f"init {folder} holds no {what} ({name}). {REMEDY}.")
    with _told(folder):
        config = read_json(folder / CONFIG)
        foreign = OWN_KEY not in config
        if foreign:
            tokenizer = read_tokenizer(str(folder / TOKENIZER))
            end_of_text_of(tokenizer)
            shape = shape_from(config, tokenizer.get_vocab_size(), tokenizer.token_to_id(MASK))
        else:
            shape = model_from(config)
        if shape.kept_heads:
            raise ConfigError("it has had heads taken out, and no recipe has its shape")
    return Given(folder, shape, foreign)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say whose fault it is, and what to do."""
    try:
        yield
    except (BudgetlmError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, BudgetlmError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"init {folder} cannot be begun from: {reason.rstrip('.')}. {REMEDY}.") from error


def _check_objective(folder: Path, shape: ModelConfig, objective: str) -> None:
    if shape.encodes != (objective == "mlm"):
        kind, wanted = ("an encoder", "mlm") if shape.encodes else ("a decoder", "clm")
        raise ConfigError(f"init {folder} is {kind}, but model.objective is {objective}. Use {wanted}.")


def _check_context(folder: Path, shape: ModelConfig, context: int) -> None:
    if context > shape.context_length:
        raise ConfigError(
            f"model.context_length is {context}, but the model of init {folder} was made for {shape.context_length}. Use that, or less."
        )


def _settled(shape: ModelConfig, config: StudyConfig, folder: Path) -> dict[str, Any]:
    """The part of the space that the weights leave no choice of."""
    settled = shape_values(shape)
    for name, value in settled.items():
        if config.space.get(name, value) != value:
            raise ConfigError(
                f"space.{name} is {config.space[name]!r}, but that of init {folder} is {value!r}. Leave it out."
            )
    return settled


# --- of one final ---


def given_to_final(folder: Path, config: StudyConfig, context_length: int) -> Given:
    """The model that one final of a study is to begin from.

    Args:
        context_length: of the study's models.

    Raises:
        ConfigError: there is none, or it has another objective or too short a context.
    """
    given = look_at(folder)
    _check_objective(folder, given.shape, config.model.objective)
    _check_context(folder, given.shape, context_length)
    return given


def check_vocabulary(folder: Path, tokens: Tokens) -> None:
    """See that weights know a study's tokens by the same numbers.

    Args:
        folder: that the weights are in.

    Raises:
        ConfigError: they do not.
    """
    theirs, ours = (_vocabulary(path) for path in (folder / "tokenizer.json", tokens.tokenizer_file))
    if theirs != ours:
        raise ConfigError(
            f"the weights of init {folder} were made for another vocabulary ({len(theirs[0]):,} tokens) than the study's ({len(ours[0]):,}), so its text "
            f"would mean nothing to them. Begin a study with theirs: `budgetlm search --init {folder} --study NAME`."
        )


def _vocabulary(path: Path) -> tuple[dict[str, int], list[Any]]:
    """All that decides which numbers a text becomes."""
    tokenizer = read_tokenizer(str(path))
    told = json.loads(tokenizer.to_str())
    return tokenizer.get_vocab(), [told[name] if name != "model" else told[name].get("merges") for name in PARTS]
