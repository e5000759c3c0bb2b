"""Bits per byte of a trained model on any text, with an interval: `budgetlm eval`.

Every document is read by itself, from the end-of-text token on, in windows as long as the model sees at once, of which each knows nothing of the one before it. The
interval says how much depends on which documents they are: it is bootstrapped over them, and there is none of one document. An encoder's are those of the
pseudo-log-likelihood, as training measures them (`train/evaluate.py`): a share of every window's tokens is hidden, and their mean loss stands for that of all.
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
from budgetlm.data.masks import EVALUATION_RATE, EVALUATION_SEED, hide
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
    hidden: int
    """Of these, the tokens that an encoder was asked for; 0 of a decoder, which is asked for all."""

    def summary(self, what: str) -> str:
        """For people."""
        of = f" of the pseudo-log-likelihood, by {self.hidden:,} hidden tokens" if self.hidden else ""
        interval = "" if self.low is None else f" (80 % interval over documents {self.low:.4f} to {self.high:.4f})"
        return f"{what}: {self.bpb:.4f} bits per byte{of}{interval}; {self.documents:,} documents, {self.bytes / 1e6:,.2f} MB, {self.tokens:,} tokens"


@dataclass(frozen=True)
class Reader:
    """A model that reads text."""

    ids: Callable[[str], list[int]]
    """Token ids of a text, without any for its ends."""
    nats: Callable[[Tensor], Tensor]
    """Windows (B, L + 1) -> loss of each token but the first, (B, L); an encoder's (B, L), with marks on N hidden tokens -> loss of each of these, (N,)."""
    ends: tuple[int, int]
    """What stands before a text, and, for an encoder, after it."""
    context_length: int
    encodes: bool


def evaluate_text(model: Path, data: DataConfig, cache: Path, most_bytes: int = 0) -> Evaluation:
    """Read a text with a model.

    Args:
        model: a final's `model` folder, or another folder that transformers loads as a causal or masked language model.
        data: which text, and how its tables are read; all of it is read, nothing is split off or dropped but empty documents.
        cache: where addresses are fetched to.
        most_bytes: where reading stops, at the end of a document; 0 for nowhere.

    Raises:
        DataError: there is no text, or it cannot be read.
        StudyError, ConfigError: there is no such model, or it needs a package that is missing.
    """
    reader = open_reader(model)
    found, size, windows = [], 0, 0
    for text in _texts(data, cache):
        ids = reader.ids(text)
        nats, asked = _hidden_nats(reader, ids, windows) if reader.encodes else (_nats(reader, ids), len(ids))
        found.append((nats, asked, len(ids), len(text.encode("utf-8", errors="replace"))))
        size, windows = size + found[-1][-1], windows - -(len(ids) + 2) // reader.context_length
        if most_bytes and size >= most_bytes:
            break
    if not found:
        raise DataError(f"{data.source} has no text in it, so there is nothing to evaluate on.")
    sums = np.array(found)
    asked, tokens = int(sums[:, 1].sum()), int(sums[:, 2].sum())
    if not asked:
        raise DataError(f"no token of the text in {data.source} was hidden, it is so short. Give more of it.")
    low, high = resampled(sums, _bits_per_byte) if len(found) > 1 else (None, None)
    return Evaluation(_bits_per_byte(sums.sum(0)), low, high, len(found), size, tokens, asked if reader.encodes else 0)


def _bits_per_byte(sums: np.ndarray) -> float:
    """Of the sums of nats, tokens that these are of, all tokens, and bytes: bits of a token, by the bytes of one."""
    nats, asked, tokens, size = sums
    return float(nats / asked / math.log(2) * tokens / size) if asked else math.nan


def _texts(data: DataConfig, cache: Path) -> Iterator[str]:
    for source in open_sources(data, cache):
        for text, _ in source.texts():
            if text.strip():
                yield text


@torch.no_grad()
def _nats(reader: Reader, ids: list[int]) -> float:
    """The loss of a whole document, in nats."""
    length, total = reader.context_length, 0.0
    sequence = torch.tensor([reader.ends[0], *ids])
    whole = (len(sequence) - 1) // length
    if whole:
        windows = sequence[: whole * length + 1].unfold(0, length + 1, length)
        for at in range(0, whole, AT_ONCE):
            total += float(reader.nats(windows[at : at + AT_ONCE]).double().sum())
    left = sequence[whole * length :]
    return total + (float(reader.nats(left[None]).double().sum()) if len(left) > 1 else 0.0)


@torch.no_grad()
def _hidden_nats(reader: Reader, ids: list[int], position: int) -> tuple[float, int]:
    """The loss of a document's hidden tokens, in nats, and how many they are; the ends of the text, where they are hidden, are none of it.

    Args:
        position: of its first window among all, which decides with a seed what is hidden.
    """
    length, nats, asked = reader.context_length, 0.0, 0
    before, after = reader.ends
    sequence = np.array([before, *ids, after])
    for at in range(0, len(sequence), AT_ONCE * length):
        part = sequence[at : at + AT_ONCE * length]
        whole = len(part) // length * length
        for rows in (part[:whole].reshape(-1, length), part[None, whole:]):
            if not rows.size:
                continue
            read = np.pad(rows, ((0, 0), (0, 1)))  # where training has the next window's first token
            rows_BL = torch.from_numpy(hide(read, EVALUATION_RATE, EVALUATION_SEED, position)[:, :-1])
            hidden_N = ~rows_BL[rows_BL < 0]
            of_text_N = (hidden_N != before) & (hidden_N != after)
            nats += float(reader.nats(rows_BL)[of_text_N].double().sum())
            asked, position = asked + int(of_text_N.sum()), position + len(rows)
    return nats, asked


def interval(bits: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """The 80 % interval of `bits.sum() / sizes.sum()` over which documents they are of."""
    return resampled(np.stack([bits, sizes], axis=1), lambda sums: float(sums[0] / sums[1]))


def resampled(rows: np.ndarray, of_sums: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The 80 % interval of what is made of the rows' sums, over which rows there are, by the percentile bootstrap (Efron & Tibshirani 1993, chapter 13)."""
    chance, found = np.random.default_rng(0), np.empty(RESAMPLES)
    for at in range(RESAMPLES):  # one at a time: there may be many documents
        found[at] = of_sums(rows[chance.integers(0, len(rows), len(rows))].sum(0))
    low, high = np.nanquantile(found, ((1 - SHARE) / 2, (1 + SHARE) / 2))
    return float(low), float(high)


def open_reader(folder: Path) -> Reader:
    """A model as something that reads text.

    Raises:
        StudyError: the folder holds no language model.
        ConfigError: it is not budgetlm's, and transformers is not installed.
    """
    if not (folder / CONFIG).exists():
        raise StudyError(f"{folder} does not hold a model. Give the `model` folder of a final, or name a study.")
    config = read_json(folder / CONFIG)
    if "budgetlm_mlp_ratio" not in config:
        return _foreign(folder, config)
    network, tokenizer, end = load_artefact(folder)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text like any other, as training had it

    def nats(windows: Tensor) -> Tensor:
        return network.loss(windows[:, :-1], windows[:, 1:], reduction="none").view(len(windows), -1)

    def hidden_nats(windows: Tensor) -> Tensor:
        return network.loss(windows, windows, reduction="none")

    encodes = network.config.encodes
    return Reader(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        hidden_nats if encodes else nats,
        (end, end),
        network.config.context_length,
        encodes,
    )


def load_foreign(folder: Path, *, encodes: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer of a folder that transformers loads.

    Args:
        encodes: whether as a masked language model, not as a causal one.

    Raises:
        StudyError: the folder holds no such language model.
        ConfigError: transformers is not installed.
    """
    if not (folder / CONFIG).exists():
        raise StudyError(f"{folder} does not hold a model. Give the `model` folder of a final, or name a study.")
    if find_spec("transformers") is None:
        raise ConfigError(
            f"{folder} is not a model of budgetlm's, and reading it needs transformers: pip install transformers."
        )
    transformers: Any = import_module("transformers")
    kind, what = ("AutoModelForMaskedLM", "masked") if encodes else ("AutoModelForCausalLM", "causal")
    try:
        model = getattr(transformers, kind).from_pretrained(folder, **SAFELY, use_safetensors=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **SAFELY)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(f"{folder} does not hold a {what} language model that transformers loads: {reason}") from error
    return model, tokenizer


def _foreign(folder: Path, config: dict[str, Any]) -> Reader:
    encodes = any(name.endswith("ForMaskedLM") for name in config.get("architectures") or [])
    model, tokenizer = load_foreign(folder, encodes=encodes)
    roles = ("cls", "bos", "eos") if encodes else ("bos", "eos")
    before, after = (
        next((i for i in (getattr(tokenizer, f"{role}_token_id") for role in order) if i is not None), 0)
        for order in (roles, ("sep", *roles))
    )
    length = min(getattr(model.config, "max_position_embeddings", 1024), 2048)

    def nats(windows: Tensor) -> Tensor:
        logits = model(windows[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none").view(
            len(windows), -1
        )

    def hidden_nats(windows: Tensor) -> Tensor:
        hidden_BL = windows < 0
        logits_NV = model(windows.masked_fill(hidden_BL, tokenizer.mask_token_id)).logits[hidden_BL]
        return F.cross_entropy(logits_NV.float(), ~windows[hidden_BL], reduction="none")

    if encodes and tokenizer.mask_token_id is None:
        raise StudyError(f"{folder} has a tokenizer without a mask token, so nothing can be hidden from its model.")
    return Reader(
        lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        hidden_nats if encodes else nats,
        (before, after),
        length,
        encodes,
    )
