"""The teacher of a distillation, before it is loaded: where it is, whether its tokens are the student's, what it costs. No torch."""

import math
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

from budgetlm.errors import ConfigError
from budgetlm.files import read_json


def teacher_folder(name: str) -> Path:
    """The folder of a teacher: `name` itself, its `model/` where it is a final's folder, or a download from the Hugging Face Hub.

    Raises:
        ConfigError: there is no such folder, and no such repository.
    """
    for folder in (Path(name), Path(name) / "model"):
        if (folder / "config.json").exists():
            return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # whatever a missing repository or network makes it raise
        raise ConfigError(
            f"train.teacher {name!r} is neither a folder with a config.json nor a repository of Hugging Face that can be read "
            f"({type(error).__name__}). Give the `model` folder of a final, or check the name."
        ) from error


def check_teacher(name: str, tokenizer_file: Path) -> None:
    """Refuse a teacher whose tokens are not the student's.

    Raises:
        ConfigError: they are not, or cannot be compared; the message says what to do.
    """
    path = teacher_folder(name) / "tokenizer.json"
    remedy = f'Set `data.tokenizer = "{path}"`, so that the study uses the teacher\'s, or choose another teacher.'
    if not path.exists():
        raise ConfigError(
            f"train.teacher {name!r} has no tokenizer.json, so its tokens cannot be compared. Choose another teacher."
        )
    theirs, ours = Tokenizer.from_file(str(path)).get_vocab(), Tokenizer.from_file(str(tokenizer_file)).get_vocab()
    if theirs != ours:
        same = len(theirs.items() & ours.items())
        raise ConfigError(
            f"train.teacher {name!r} has {len(theirs):,} tokens and the study {len(ours):,}, of which {same:,} are the same: its "
            f"probabilities would be of other tokens. {remedy}"
        )


def teacher_parameters(name: str) -> int:
    """Parameters of a teacher, by its file: what its forward pass costs and holds."""
    total = 0
    for path in teacher_folder(name).glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118  # it is no mapping
    return total


def seconds_of(folder: Path) -> float:
    """Device-seconds that a final was trained for, as its folder says; 0 where it does not."""
    path = folder / "recipe.json"
    return float(read_json(path).get("seconds", 0.0)) if path.exists() else 0.0
