"""Documents -> tokens in memory-mapped files, with the bytes behind every token, so that bits per byte are exact.

The tokenizer is a byte-level BPE, trained on the training split alone or given as a `tokenizer.json`. After each document
comes one end-of-text token, which stands for no bytes.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import SPLITS, Corpus, CorpusFacts
from budgetlm.data.fetch import Tick
from budgetlm.errors import DataError
from budgetlm.files import digest, new_folder, read_json, write_json

END_OF_TEXT = "<|endoftext|>"
MASK = "[MASK]"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
WORD = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What merges never cross: words, numbers by up to three digits, punctuation, and runs of white space, which in source
code keep a line break and the indentation after it together."""
BPE_SAMPLE_BYTES = 64 * 2**20
"""How much of the training split the BPE learns from; more changes its merges little."""
BATCH = 256
REST, COMPLETE = "rest", "complete.json"
"""Where the shards of a streamed source's rest lie within the tokens' folder, and what says that none are missing."""
LEAST_SHARD = 4096
"""A shard has as many tokens as the head, and at least so many."""
FORMAT = 1


@dataclass(frozen=True)
class TokenFacts:
    """What the token files hold."""

    fingerprint: str
    vocab_size: int
    end_of_text: int
    """Id of the token after each document."""
    dtype: str
    tokens: dict[str, int]
    """Tokens in each split; of a streamed source, in its head."""
    corpus: dict[str, Any]
    """Facts of the corpus, as a dictionary."""
    parts: list[dict[str, int]] = field(default_factory=list)
    """Tokens in each split of each source, where there are several: they lie one after the other."""
    mask: int | None = None
    """Id of the token that stands for a hidden one, where there is one; it is never in the text."""

    @property
    def weights(self) -> list[float]:
        """Shares of the training and validation tokens that are read from each source; they add up to 1."""
        given = [float(part["weight"]) for part in self.corpus.get("parts", [])]
        if all(given):
            return given or [1.0]
        return [part["train"] / self.tokens["train"] for part in self.parts]  # so all are read equally often

    @property
    def uniform_bpb(self) -> float:
        """Bits per byte of guessing every token alike: what knowing nothing is worth."""
        tokens = [part["validation"] for part in self.parts or [self.tokens]]
        bytes = [float(part["bytes"]["validation"]) for part in self.corpus.get("parts") or [self.corpus]]
        shares = zip(self.weights, tokens, bytes, strict=True)
        return math.log2(self.vocab_size) / sum(weight * size / count for weight, count, size in shares)


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus on disk."""

    folder: Path
    facts: TokenFacts

    def split(self, name: str) -> np.ndarray:
        """Token ids of `train` or `validation`, memory-mapped, shape (tokens,). Of a streamed source, those of its head."""
        return self._map(self.folder / f"{name}.bin")

    def parts(self, name: str) -> list[np.ndarray]:
        """The same, of each source apart."""
        whole = self.split(name)
        ends = np.cumsum([part[name] for part in self.facts.parts])
        return np.split(whole, ends[:-1]) if len(ends) else [whole]

    def _map(self, path: Path) -> np.ndarray:
        return np.memmap(path, dtype=self.facts.dtype, mode="r")

    # --- a streamed source: `split` is its head, and shards follow while training goes on (`data/rest.py`) ---

    @property
    def streamed(self) -> bool:
        """Whether these are the head of a larger source."""
        return bool(self.facts.corpus.get("whole_bytes"))

    @property
    def rest(self) -> Path:
        """Folder of the shards that follow the head."""
        return self.folder / REST

    @property
    def totals(self) -> dict[str, Any] | None:
        """What the rest came to, once all of it is there."""
        return read_json(self.rest / COMPLETE) if (self.rest / COMPLETE).exists() else None

    @property
    def complete(self) -> bool:
        """Whether all training text is there."""
        return not self.streamed or self.totals is not None

    @property
    def shard_tokens(self) -> int:
        """Tokens of each shard but the last: the same whoever writes it."""
        return max(LEAST_SHARD, self.facts.tokens["train"])

    def shards(self, known: int = 0) -> list[np.ndarray]:
        """Token ids of the shards that are there beyond the first `known`, in order, memory-mapped."""
        found: list[np.ndarray] = []
        while (path := self.shard_file(known + len(found))).exists():
            found.append(self._map(path))
        return found

    def shard_file(self, number: int) -> Path:
        """Where a shard lies, counted from 0."""
        return self.rest / f"{number:06d}.bin"

    @property
    def train_tokens(self) -> int:
        """Training tokens: counted, or estimated from the head while the rest of a streamed source is not there.

        Of several sources, the tokens that can be read by their weights before any of them has to be read again.
        """
        if self.facts.parts:
            return min(
                int(part["train"] / weight) for part, weight in zip(self.facts.parts, self.facts.weights, strict=True)
            )
        head = self.facts.tokens["train"]
        if totals := self.totals:
            return head + int(totals["tokens"])
        whole = self.facts.corpus.get("whole_bytes") or self.corpus.kept_bytes
        return int(head * whole // self.corpus.kept_bytes)

    def state(self) -> str:
        """How much of a streamed source is there, for people."""
        there = self.facts.tokens["train"] + sum(map(len, self.shards()))
        return f"{there:,} training tokens of {'' if self.complete else 'about '}{self.train_tokens:,} are there"

    @property
    def bytes_V(self) -> np.ndarray:
        """UTF-8 bytes behind each token id, int64, shape (V,); 0 for special tokens."""
        bytes_V: np.ndarray = np.load(self.folder / "bytes.npy")
        return bytes_V

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer, in the format of the `tokenizers` library."""
        return self.folder / "tokenizer.json"

    @property
    def corpus(self) -> CorpusFacts:
        """Facts of the corpus behind the tokens."""
        return CorpusFacts(**self.facts.corpus)


def prepare_tokens(
    config: DataConfig, corpus: Corpus, vocab_size: int, cache: Path, tick: Tick | None = None, *, masks: bool = False
) -> Tokens:
    """Tokenise a corpus into the cache, or find it there. Two processes may do so at once.

    Args:
        vocab_size: size of the vocabulary to train; not used where `config.tokenizer` gives one.
        tick: called with the bytes done; each byte is met once in the BPE's sample and once in encoding.
        masks: whether the vocabulary is to have a token that hides others; a given one that has none gets it in addition.

    Raises:
        DataError: the given tokenizer cannot be used, or a split is left without tokens.
    """
    given = read_tokenizer(config.tokenizer) if config.tokenizer else None
    if given and masks:
        _add_mask(given)
    facts = [FORMAT, corpus.facts.fingerprint, given.to_str() if given else vocab_size, WORD]
    key = digest([*facts, MASK] if masks else facts)
    folder = cache / "tokens" / key
    if not (folder / "tokens.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "tokens.json").exists():
                tokenizer = given or train_bpe(corpus, vocab_size - masks, tick)
                if masks:
                    _add_mask(tokenizer)
                _encode_corpus(tokenizer, corpus, key, folder, tick)
    found = tokens_of(cache, key)
    assert found
    return found


def tokens_of(cache: Path, fingerprint: str) -> Tokens | None:
    """The tokens of that fingerprint, where the cache has them."""
    folder = cache / "tokens" / fingerprint
    facts = folder / "tokens.json"
    return Tokens(folder, TokenFacts(**read_json(facts))) if facts.exists() else None


def train_bpe(corpus: Corpus, vocab_size: int, tick: Tick | None = None) -> Tokenizer:
    """Train a byte-level BPE on the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    tokenizer.train_from_iterator(_sample(corpus, tick or (lambda _: None)), trainer)
    return tokenizer


def _sample(corpus: Corpus, tick: Tick) -> Iterator[str]:
    """What the BPE learns from: the beginning of the training split, or of each source's by its weight, one that is too small again."""
    parts = corpus.facts.parts
    if not parts:
        yield from _beginning(corpus.documents("train"), BPE_SAMPLE_BYTES, tick)
        return
    text = corpus.facts.bytes["train"]
    for number, part in enumerate(parts):
        size = (part["weight"] or part["bytes"]["train"] / text) * min(BPE_SAMPLE_BYTES, text)
        yield from _beginning(cycle(corpus.documents_of(number, "train")), size, tick)


def _beginning(documents: Iterable[str], size: float, tick: Tick) -> Iterator[str]:
    met = 0
    for text in documents:
        met += len(text)
        tick(len(text.encode()))
        yield text
        if met >= size:
            return


def read_tokenizer(path: str) -> Tokenizer:
    """A given `tokenizer.json`, which is to read texts whole.

    Raises:
        DataError: it cannot be read, or does not stand for bytes.
    """
    try:
        tokenizer = Tokenizer.from_file(str(Path(path).expanduser()))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise DataError(f"could not read the tokenizer {path}: {error}. Give a `tokenizer.json`.") from error
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        raise DataError(
            f"the tokenizer {path} is not byte-level, so the bytes behind a token, and bits per byte, are not exact. Give "
            "a byte-level one (GPT-2, Llama 3, Qwen …), or leave `data.tokenizer` empty to have one trained."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _add_mask(tokenizer: Tokenizer) -> None:
    """Give a tokenizer a token that hides others. It takes the space before it, as most of the tokens do that it hides."""
    tokenizer.add_special_tokens([AddedToken(MASK, lstrip=True, special=True)])


def end_of_text_of(tokenizer: Tokenizer) -> int:
    """Id of the token that ends a text.

    Raises:
        DataError: there is none that is known.
    """
    for text in KNOWN_ENDS:
        if (token := tokenizer.token_to_id(text)) is not None:
            return token
    raise DataError(f"the tokenizer has none of the end-of-text tokens {', '.join(KNOWN_ENDS)}. Add one of them to it.")


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes behind each id of a byte-level tokenizer, int64, shape (V,); special tokens count 0."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    bytes_V = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for text, id in tokenizer.get_vocab().items():
        bytes_V[id] = 0 if id in special else len(text)  # one character of the byte-level alphabet stands for one byte
    return bytes_V


def _encode_corpus(tokenizer: Tokenizer, corpus: Corpus, key: str, folder: Path, tick: Tick | None) -> None:
    end, bytes_V = end_of_text_of(tokenizer), token_bytes(tokenizer)
    dtype = "uint16" if len(bytes_V) <= 2**16 else "uint32"
    parts: list[dict[str, int]] = [{} for _ in range(max(1, len(corpus.facts.parts)))]
    with new_folder(folder) as new:
        for split in SPLITS:
            met = 0
            with (new / f"{split}.bin").open("wb") as file:
                for number, counts in enumerate(parts):
                    counts[split] = 0
                    documents = corpus.documents_of(number, split)
                    while batch := list(islice(documents, BATCH)):
                        for ids in encode(tokenizer, batch, end, dtype):
                            met += int(bytes_V[ids].sum())
                            counts[split] += len(ids)
                            file.write(ids.tobytes())
                        if tick:
                            tick(sum(len(text.encode()) for text in batch))
            check_bytes(met, corpus.facts.bytes[split], f"the {split} split")
        np.save(new / "bytes.npy", bytes_V)
        tokenizer.save(str(new / "tokenizer.json"))
        tokens = {split: sum(part[split] for part in parts) for split in SPLITS}
        several, mask = parts if corpus.facts.parts else [], tokenizer.token_to_id(MASK)
        facts = TokenFacts(key, len(bytes_V), end, dtype, tokens, asdict(corpus.facts), several, mask)
        write_json(new / "tokens.json", asdict(facts))


def encode(tokenizer: Tokenizer, documents: list[str], end: int, dtype: str) -> Iterator[np.ndarray]:
    """The token ids of each document, the end of text after it, shape (tokens,)."""
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" inside a document is text like any other
    try:
        encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    finally:
        tokenizer.encode_special_tokens = False
    return (np.asarray([*encoding.ids, end], dtype=dtype) for encoding in encodings)


def check_bytes(stood_for: int, met: int, what: str) -> None:
    """See that tokens stand for the bytes that they were made of.

    Raises:
        DataError: they do not.
    """
    if stood_for != met:
        raise DataError(
            f"the tokenizer stands for {stood_for:,} of the {met:,} bytes of {what}: it "
            "changes the text, so bits per byte would be wrong. Give one without a normalizer, or have one trained."
        )
