"""What a model can be fine-tuned to do: which of transformers' classes does it, how examples become its input, and how it is scored.

A score is a sum over held-out examples of what each got, over a sum of what each counts for: labels that are right of all, or bits of all bytes.

Shapes: B batch, L length, C labels or vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from budgetlm.data.labelled import Example, TaskName

IGNORED = -100
"""A target that PyTorch's cross-entropy passes over."""
Row = dict[str, Any]
"""An example as transformers' collators take it: token ids, attention mask, and target or targets."""


@dataclass(frozen=True)
class Task:
    """One kind of fine-tuning."""

    loader: str
    """Of transformers."""
    measure: str
    """What its score is, for people."""
    encode: Callable[[Any, Example, dict[str, int], int], Row]
    """Tokenizer, example, number of each label, tokens that the model sees at once -> what the model is given."""
    score: Callable[[Tensor, Tensor], list[float]]
    """Logits and targets of a batch -> what each example got."""
    counts: Callable[[Any, Example, Row], int]
    """Tokenizer, example, what became of it -> what it counts for."""
    collator: str
    """Of transformers."""


def _encode_text(tokenizer: Any, example: Example, number_of: dict[str, int], length: int) -> Row:
    row: Row = dict(tokenizer(example.text, truncation=True, max_length=length))
    return row | {"labels": number_of[example.labels[0]]}


def _encode_words(tokenizer: Any, example: Example, number_of: dict[str, int], length: int) -> Row:
    """Every word's label stands at its first token; one beyond the length has none, and so cannot be right."""
    row: Row = dict(tokenizer(example.text, truncation=True, max_length=length, return_offsets_mapping=True))
    spans, targets, at, word = row.pop("offset_mapping"), [IGNORED] * len(row["input_ids"]), 0, 0
    starts = []
    for one in example.words:
        starts.append(at)
        at += len(one) + 1
    for place, (start, end) in enumerate(spans):
        while word < len(starts) and start >= starts[word] + len(example.words[word]):
            word += 1  # no token begins in it: it shares one with the word before
        if word < len(starts) and end > starts[word]:
            targets[place] = number_of[example.labels[word]]
            word += 1
    return row | {"labels": targets}


def _encode_continuation(tokenizer: Any, example: Example, _: dict[str, int], length: int) -> Row:
    """The text, cut at its beginning where it is too long, and what follows, which alone is learnt, to the end-of-text token."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompt = [*([] if first is None else [first]), *tokenizer(example.text, add_special_tokens=False)["input_ids"]]
    target = [*tokenizer(example.labels[0], add_special_tokens=False)["input_ids"], *ends][: length - 1]
    prompt = prompt[-(length - len(target)) :]
    ids = [*prompt, *target]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [*[IGNORED] * len(prompt), *target]}


def _right_text(logits_BC: Tensor, target_B: Tensor) -> list[float]:
    return (logits_BC.argmax(-1) == target_B).float().tolist()


def _right_words(logits_BLC: Tensor, target_BL: Tensor) -> list[float]:
    return ((logits_BLC.argmax(-1) == target_BL) & (target_BL != IGNORED)).sum(-1).float().tolist()


def _bits(logits_BLC: Tensor, target_BL: Tensor) -> list[float]:
    nats = F.cross_entropy(
        logits_BLC[:, :-1].flatten(0, 1).float(), target_BL[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return (nats.view(len(target_BL), -1).sum(-1) / math.log(2)).tolist()


def _bytes(tokenizer: Any, example: Example, row: Row) -> int:
    """UTF-8 bytes of what follows, as far as the model saw it."""
    text = example.labels[0]
    seen = [token for token in row["labels"] if token != IGNORED]
    if seen and seen[-1] != tokenizer.eos_token_id:
        text = tokenizer.decode(seen)
    return max(1, len(text.encode("utf-8", errors="replace")))


TASKS: dict[TaskName, Task] = {
    "classify": Task(
        loader="AutoModelForSequenceClassification",
        measure="accuracy",
        encode=_encode_text,
        score=_right_text,
        counts=lambda _tokenizer, _example, _row: 1,
        collator="DataCollatorWithPadding",
    ),
    "tag": Task(
        loader="AutoModelForTokenClassification",
        measure="accuracy of words",
        encode=_encode_words,
        score=_right_words,
        counts=lambda _tokenizer, example, _row: len(example.words),
        collator="DataCollatorForTokenClassification",
    ),
    "continue": Task(
        loader="AutoModelForCausalLM",
        measure="bits per byte",
        encode=_encode_continuation,
        score=_bits,
        counts=_bytes,
        collator="DataCollatorForTokenClassification",
    ),
}


@torch.no_grad()
def score_rows(task: Task, model: Any, rows: Sequence[Row], collate: Callable[[list[Row]], Any], batch: int) -> list[float]:
    """What each example got of a model."""
    model.eval()
    got: list[float] = []
    for at in range(0, len(rows), batch):
        inputs = {name: value.to(model.device) for name, value in collate(list(rows[at : at + batch])).items()}
        targets = inputs.pop("labels")
        got += task.score(model(**inputs).logits, targets)
    return got
