"""Bits per byte of a trained model on any text, with an interval: `budgetlm eval`.

Every document is read by itself, from the end-of-text token on, in windows as long as the model sees at once, of which each knows nothing of the one before it. The
interval says how much depends on which documents they are: it is bootstrapped over them, and there is none of one document.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from budgetlm.compress.artefact import load_artefact
from budgetlm.data.config import DataConfig
from budgetlm.data.sources import open_sources
from budgetlm.errors import ConfigError, DataError, StudyError
from budgetlm.files import read_json
from budgetlm.model.export import CONFIG

AT_ONCE = 16
"""Windows in a forward pass."""
RESAMPLES = 2000
SAFELY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How a folder of somebody else's is read: no code of its own is run, and no pickle opened."""
SHARE = 0.8
"""Of the interval, as of a forecast's."""


@dataclass(frozen=True)
class Evaluation:
    """What a model takes to code a text."""

    bpb: float
    """Bits per byte."""
    low: float | None
    """Of the 80 % interval over documents; None for fewer than two."""
    high: float | None
    documents: int
    bytes: int
    tokens: int

    def summary(self, what: str) -> str:
        """For people."""
        interval = "" if self.low is None else f" (80 % interval over documents {self.low:.4f} to {self.high:.4f})"
        return f"{what}: {self.bpb:.4f} bits per byte{interval}; {self.documents:,} documents, {self.bytes / 1e6:,.2f} MB, {self.tokens:,} tokens"


@dataclass(frozen=True)
class Reader:
    """A model that reads text."""

    ids: Callable[[str], list[int]]
    """Token ids of a text, without any for its ends."""
    nats: Callable[[Tensor], Tensor]
    """Windows (B, L + 1) -> loss of each token but the first, (B, L)."""
    end: int
    context_length: int


def evaluate_text(model: Path, data: DataConfig, cache: Path, most_bytes: int = 0) -> Evaluation:
    """Read a text with a model.

    Args:
        model: a final's `model` folder, or another folder that transformers loads as a causal language model.
        data: which text, and how its tables are read; all of it is read, nothing is split off or dropped but empty documents.
        cache: where addresses are fetched to.
        most_bytes: where reading stops, at the end of a document; 0 for nowhere.

    Raises:
        DataError: there is no text, or it cannot be read.
        StudyError, ConfigError: there is no such model, or it needs a package that is missing.
    """
    reader = open_reader(model)
    bits, sizes, tokens = [], [], 0
    for text in _texts(data, cache):
        ids = reader.ids(text)
        bits.append(_nats(reader, ids) / math.log(2))
        sizes.append(len(text.encode("utf-8", errors="replace")))
        tokens += len(ids)
        if most_bytes and sum(sizes) >= most_bytes:
            break
    if not sizes:
        raise DataError(f"{data.source} has no text in it, so there is nothing to evaluate on.")
    low, high = interval(np.array(bits), np.array(sizes)) if len(sizes) > 1 else (None, None)
    return Evaluation(sum(bits) / sum(sizes), low, high, len(sizes), sum(sizes), tokens)


def _texts(data: DataConfig, cache: Path) -> Iterator[str]:
    for source in open_sources(data, cache):
        for text, _ in source.texts():
            if text.strip():
                yield text


@torch.no_grad()
def _nats(reader: Reader, ids: list[int]) -> float:
    """The loss of a whole document, in nats."""
    length, total = reader.context_length, 0.0
    sequence = torch.tensor([reader.end, *ids])
    whole = (len(sequence) - 1) // length
    if whole:
        windows = sequence[: whole * length + 1].unfold(0, length + 1, length)
        for at in range(0, whole, AT_ONCE):
            total += float(reader.nats(windows[at : at + AT_ONCE]).double().sum())
    left = sequence[whole * length :]
    return total + (float(reader.nats(left[None]).double().sum()) if len(left) > 1 else 0.0)


def interval(bits: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """The 80 % interval of `bits.sum() / sizes.sum()` over which documents they are of, by the percentile bootstrap (Efron & Tibshirani 1993, chapter 13)."""
    chance, found = np.random.default_rng(0), np.empty(RESAMPLES)
    for at in range(RESAMPLES):  # one at a time: there may be many documents
        chosen = chance.integers(0, len(bits), len(bits))
        found[at] = bits[chosen].sum() / sizes[chosen].sum()
    low, high = np.quantile(found, ((1 - SHARE) / 2, (1 + SHARE) / 2))
    return float(low), float(high)


def open_reader(folder: Path) -> Reader:
    """A model as something that reads text.

    Raises:
        StudyError: the folder holds no causal language model.
        ConfigError: it is not budgetlm's, and transformers is not installed.
    """
    if not (folder / CONFIG).exists():
        raise StudyError(f"{folder} does not hold a model. Give the `model` folder of a final, or name a study.")
    config = read_json(folder / CONFIG)
    if "budgetlm_mlp_ratio" not in config:
        return _foreign(folder)
    network, tokenizer, end = load_artefact(folder)
    if network.config.encodes:
        raise StudyError(f"{folder} holds an encoder, whose bits per byte are of another kind (README, `--objective mlm`).")

    def nats(windows: Tensor) -> Tensor:
        return network.loss(windows[:, :-1], windows[:, 1:], reduction="none").view(len(windows), -1)

    return Reader(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids, nats, end, network.config.context_length
    )


def load_foreign(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder that transformers loads.

    Raises:
        StudyError: the folder holds no causal language model.
        ConfigError: transformers is not installed.
    """
    if not (folder / CONFIG).exists():
        raise StudyError(f"{folder} does not hold a model. Give the `model` folder of a final, or name a study.")
    if find_spec("transformers") is None:
        raise ConfigError(
            f"{folder} is not a model of budgetlm's, and reading it needs transformers: pip install transformers."
        )
    transformers: Any = import_module("transformers")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **SAFELY, use_safetensors=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **SAFELY)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(f"{folder} does not hold a causal language model that transformers loads: {reason}") from error
    return model, tokenizer


def _foreign(folder: Path) -> Reader:
    model, tokenizer = load_foreign(folder)
    end = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
    length = min(getattr(model.config, "max_position_embeddings", 1024), 2048)

    def nats(windows: Tensor) -> Tensor:
        logits = model(windows[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none").view(
            len(windows), -1
        )

    return Reader(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], nats, end, length)
