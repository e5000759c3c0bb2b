"""Where the text comes from, which of it is kept, and how it becomes tokens: the `[data]` section of a study file."""

import re
import string
from dataclasses import dataclass

from budgetlm.errors import ConfigError

STREAM_CHOICES = ("auto", "on", "off")
TOGETHER = " + "
"""Between sources that are read together."""
WEIGHTED = re.compile(r"(.*):([+-]?\d*\.?\d+(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True)
class Share:
    """One of the sources that are read together."""

    source: str
    weight: float
    """Share of the training tokens that are read from it; 0 where all sources are read equally often."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    source: str = "stdlib"
    """`stdlib`, `site`, a file or folder, a file's web address, or a data set of the Hub, its name after hf and a colon. Several are joined by a plus between
    spaces, each with a colon and its weight behind it, or all without."""
    column: str = "text"
    """Column that holds the text, in tables."""
    text: str = ""
    """In place of one column, a text with columns in braces, e.g. `{title}\\n\\n{body}`; `{{` and `}}` stand for braces."""
    config: str = ""
    """Configuration (subset) of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set; our own validation split is cut from it."""
    validation_fraction: float = 0.05
    """Share of the documents kept for validation."""
    max_bytes: int = 0
    """Stop reading a source after this much text; 0 reads everything, or 1 GB from the Hub."""
    clean: bool = False
    """Whether text is brought to Unicode's NFC, lines end with a line feed, and other control characters but tabs are taken out."""
    least_chars: int = 0
    """Shorter documents than this are dropped."""
    near_duplicates: float = 0.0
    """Documents as alike as this to an earlier one are dropped (Jaccard similarity of their passages, e.g. 0.8); 0 keeps them. Needs the
    extra `near`."""
    drop_overlap: bool = True
    """Whether validation documents are dropped of which half or more is in training documents, too: a model that has learnt those by heart
    looks better than it is."""
    vocab_size: int = 0
    """Size of the byte-level BPE to be trained; 0 for one suited to the budget."""
    tokenizer: str = ""
    """A byte-level `tokenizer.json` to be used instead of training one."""
    stream: str = "auto"
    """Whether training begins on the head while the rest is read: `on`, `off`, or `auto` for one source larger than two heads."""
    head_bytes: int = 32 * 2**20
    """Text that is prepared before training begins: it decides the validation split and the tokenizer."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 0.5:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}, but must lie between 0 and 0.5. 0.05 is usual."
            )
        if self.vocab_size and not 257 <= self.vocab_size <= 2**20:
            raise ConfigError(
                f"data.vocab_size is {self.vocab_size}, but a byte-level vocabulary has from 257 (256 bytes and the end "
                f"of a text) to {2**20} tokens. 0 chooses one for you."
            )
        if min(self.max_bytes, self.least_chars) < 0:
            raise ConfigError(
                f"data.max_bytes ({self.max_bytes}) and data.least_chars ({self.least_chars}) must not be negative; 0 is no limit."
            )
        if not (self.near_duplicates == 0 or 0.3 <= self.near_duplicates <= 1):
            raise ConfigError(
                f"data.near_duplicates is {self.near_duplicates}, but must lie between 0.3 and 1, or be 0 to keep them. 0.8 is usual."
            )
        if self.stream not in STREAM_CHOICES:
            raise ConfigError(f"data.stream cannot be {self.stream!r}. Use {', '.join(STREAM_CHOICES)}.")
        if self.head_bytes < 1:
            raise ConfigError(f"data.head_bytes is {self.head_bytes}, but must be above 0. {32 * 2**20} is usual.")
        if len(self.shares) > 1 and self.stream == "on":
            raise ConfigError(
                f"data.stream is 'on', but {self.source!r} is several sources: the rest of each would arrive at a pace of its own, and their "
                "weights could not be kept. Leave it out (all is prepared first; `data.max_bytes` limits each source)."
            )
        columns_of(self.text)

    @property
    def shares(self) -> list[Share]:
        """The sources, and how much is read of each; the weights add up to 1, or are all 0."""
        return shares_of(self.source)

    @property
    def columns(self) -> list[str]:
        """The columns that a document is made of."""
        return columns_of(self.text) or [self.column]


def shares_of(source: str) -> list[Share]:
    """What `data.source` says.

    Raises:
        ConfigError: a name or a weight is missing, a weight is not above 0, or a source is named twice.
    """
    parts = [part.strip() for part in source.split(TOGETHER)]
    if len(parts) == 1:
        return [Share(source, 0.0)]
    found = [WEIGHTED.fullmatch(part) for part in parts]
    names = [match[1].strip() if match else part for match, part in zip(found, parts, strict=True)]
    weights = [float(match[2]) if match else None for match in found]
    for name, weight, part in zip(names, weights, parts, strict=True):
        if not name:
            raise ConfigError(f"{part!r} in {source!r} names no source. Write `name:weight`, e.g. `texts/:0.7`.")
        if weight is not None and not 0 < weight < 1e9:
            raise ConfigError(
                f"the weight of {name} is {weight:g}, but must be above 0. Leave that source out, or give it a share."
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"{source!r} names a source twice. Name it once, with both weights added.")
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        raise ConfigError(
            f"{names[weights.index(None)]} has no weight in {source!r}, but others have. Give all of them one, or none: then all are "
            "read equally often."
        )
    total = sum(given) or 1.0
    return [Share(name, (weight or 0.0) / total) for name, weight in zip(names, weights, strict=True)]


def columns_of(template: str) -> list[str]:
    """The columns that a template names, in its order.

    Raises:
        ConfigError: it has braces that name none, or asks for more than the column as it is.
    """
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ConfigError(f"data.text is {template!r}, but {error}. Write `{{{{` and `}}}}` for braces.") from error
    for name, format, conversion in fields:
        # Attributes and indices (`{a.b}`) would be looked up in the values by Python.
        if not name or format or conversion or re.search(r"[.\[\]]", name):
            raise ConfigError(
                f"data.text is {template!r}, but between braces it takes the name of a column and nothing else, e.g. `{{title}}`. "
                "Write `{{` and `}}` for braces."
            )
    if template and not fields:
        raise ConfigError(f"data.text is {template!r}, but names no column. Write one in braces, e.g. `{{body}}`.")
    return list(dict.fromkeys(str(name) for name, *_ in fields))
