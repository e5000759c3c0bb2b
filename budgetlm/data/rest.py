"""The rest of a large source, read and encoded by a process of its own while training goes on.

Of a streamed source the head is prepared first: it decides tokenizer and validation split, and training begins on it.
What follows is appended beside it in shards of a fixed number of tokens, each whole or absent, and at the end a small
file says what all of it came to. Documents that chance would send to validation are left out, for the validation split is
the head's; exact duplicates are dropped as everywhere. The shards depend on the source alone: a writer that was killed is
followed by one that reads again what there was, encodes only what is missing, and writes the same.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.formats import Text
from budgetlm.data.sieve import Sieve
from budgetlm.data.sources import open_sources
from budgetlm.data.tokens import BATCH, COMPLETE, Tokens, check_bytes, encode
from budgetlm.errors import BudgetlmError, DataError
from budgetlm.files import write_atomic, write_json

NICENESS = 10
"""Where the processor trains, the writer takes about a tenth of a core from it: less would only be for longer."""
RESERVE_BYTES = 2**30
"""Room on the disk that shards leave to checkpoints and records."""
GOODBYE_SECONDS = 5.0
ORPHANED = 3


def write_rest(config: DataConfig, cache: Path, tokens: Tokens) -> None:
    """Write the shards that are missing, and then what they came to. Waits where another process is at it.

    Raises:
        DataError: the source cannot be read, is not the one that the head was cut from, or the disk has too little room.
        StudyError: the shards cannot be written.
    """
    tokens.rest.mkdir(exist_ok=True)
    with FileLock(f"{tokens.rest}.lock"):
        if tokens.complete:
            return
        corpus = prepare_corpus(config, cache)
        if corpus.facts.fingerprint != tokens.corpus.fingerprint:
            raise DataError(
                f"{corpus.facts.source} has changed since its head was read. Repeat the command to begin with it anew."
            )
        for left in tokens.rest.glob(".*.tmp"):  # by a writer that was killed
            left.unlink()
        sieve, (source,) = Sieve(config), open_sources(config, cache)  # several are not streamed
        for split in tokens.facts.tokens:
            for text in corpus.documents(split):
                sieve.sort(text)
        rest = _Rest(sieve, source.texts(), source.max_bytes)
        _write_shards(tokens, rest)
        totals = {
            "documents": rest.documents,
            "bytes": rest.bytes,
            "tokens": sum(map(len, tokens.shards())),
            "left_out": rest.left_out,
            "cut": rest.cut,
        }
        write_json(tokens.rest / COMPLETE, totals)


class _Rest:
    """The training documents that the head has not, in order, counted as they go by."""

    def __init__(self, sieve: Sieve, source: Iterator[Text], max_bytes: int) -> None:
        self._sieve, self._source, self._max_bytes = sieve, source, max_bytes
        self.documents = self.bytes = self.left_out = 0
        self.cut = False

    def __iter__(self) -> Iterator[str]:
        for text, _ in self._source:
            split, data = self._sieve.sort(text)
            self.left_out += split == "validation"
            if split == "train":
                self.documents += 1
                self.bytes += len(data)
                yield data.decode()
            if self._max_bytes and self._sieve.kept_bytes >= self._max_bytes:
                self.cut = True
                return


def _write_shards(tokens: Tokens, documents: _Rest) -> None:
    tokenizer, bytes_V, end = Tokenizer.from_file(str(tokens.tokenizer_file)), tokens.bytes_V, tokens.facts.end_of_text
    number, done, begun = _written(tokens)
    iterator, room = iter(documents), tokens.shard_tokens
    skipped = sum(1 for _ in islice(iterator, done))
    if skipped < done:
        raise DataError(
            f"{documents.documents} documents follow the head of {tokens.corpus.source} now, but {done} were read before: the "
            f"source has changed. Delete {tokens.folder} to have it read again."
        )
    waiting = np.empty(0, dtype=tokens.facts.dtype)
    while batch := list(islice(iterator, BATCH)):
        encoded = np.concatenate(list(encode(tokenizer, batch, end, tokens.facts.dtype)))
        check_bytes(int(bytes_V[encoded].sum()), sum(len(text.encode()) for text in batch), "some documents")
        if np.count_nonzero(encoded == end) != len(batch):  # by it documents are counted
            raise DataError(
                "the tokenizer makes its end of text from plain text, too. Mark that token as special in its file."
            )
        waiting, begun = np.concatenate([waiting, encoded[begun:]]), max(0, begun - len(encoded))
        while len(waiting) >= room:
            _write_shard(tokens, number, waiting[:room])
            number, waiting = number + 1, waiting[room:]
    if len(waiting):
        _write_shard(tokens, number, waiting)


def _written(tokens: Tokens) -> tuple[int, int, int]:
    """Shards that are there, the documents that are whole in them, and the tokens of the one that is not."""
    shards = tokens.shards()
    documents = since = 0
    for shard in shards:
        ends = np.flatnonzero(shard == tokens.facts.end_of_text)
        documents += len(ends)
        since = len(shard) - int(ends[-1]) - 1 if len(ends) else since + len(shard)
    return len(shards), documents, since


def _write_shard(tokens: Tokens, number: int, ids: np.ndarray) -> None:
    if (free := shutil.disk_usage(tokens.rest).free) < ids.nbytes + RESERVE_BYTES:
        raise DataError(
            f"the disk of {tokens.rest} has {free / 1e6:,.0f} MB free, and {RESERVE_BYTES / 1e6:,.0f} MB are left to checkpoints. "
            "Free some space; the next command goes on."
        )
    write_atomic(tokens.shard_file(number), ids.tobytes())


# --- the process ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Word:
    """What the writer says when it leaves."""

    failed: str = ""


@contextmanager
def rest_being_read(config: DataConfig, cache: Path, tokens: Tokens, note: Callable[[str], None]) -> Iterator[None]:
    """Have the rest of a streamed source read by a process of low priority, which ends with the block, or with this process.

    Args:
        note: told, from another thread, when all is there or why it cannot be; training goes on in either case.
    """
    if tokens.complete:
        yield
        return
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, config, cache, tokens), name="budgetlm-rest", daemon=True)
    # Ctrl-C goes to the whole group, and must not meet the process before it has learnt to leave that to this one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    leaving = threading.Event()
    listener = threading.Thread(target=_listen, args=(process, ours, tokens, note, leaving), daemon=True)
    listener.start()
    try:
        yield
    finally:
        leaving.set()
        process.kill()  # shards are whole or absent, so there is nothing for it to save
        process.join(GOODBYE_SECONDS)
        listener.join(GOODBYE_SECONDS)
        ours.close()


def _listen(
    process: BaseProcess, ours: Connection, tokens: Tokens, note: Callable[[str], None], leaving: threading.Event
) -> None:
    try:
        word = ours.recv()
    except (EOFError, OSError):
        process.join(GOODBYE_SECONDS)
        word = _Word(f"the process that reads it was ended (exit code {process.exitcode}). Repeat the command to go on.")
    if leaving.is_set():
        return
    if not word.failed:
        note(f"data      all text is read: {tokens.state()}")
    else:
        note(f"warning   the rest of {tokens.corpus.source} is not read on ({tokens.state()}): {_one_line(word.failed)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main(connection: Connection, config: DataConfig, cache: Path, tokens: Tokens) -> None:
    """The writer's process: do it, say how it went, leave; leave at once when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides what becomes of this
    threading.Thread(target=_leave_with, args=(connection,), daemon=True).start()
    os.nice(NICENESS)
    # Read by the tokenizer when it first encodes: a core is left to whoever trains.
    os.environ["RAYON_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) - 1))
    with suppress(OSError):  # where memory runs out, this goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        write_rest(config, cache, tokens)
        word = _Word()
    except BudgetlmError as error:
        word = _Word(str(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, training goes on, and one line says it
        word = _Word(f"{type(error).__name__}: {error}")
    with suppress(OSError):
        connection.send(word)
    os._exit(0)


def _leave_with(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv()
    os._exit(ORPHANED)
