"""What preparing text costs, and how soon training can begin with the rest of it read beside.

Reading, BPE training and encoding on a piece of the corpus, repeated in turn, each time in a process of its own; then the
time from nothing to the first batch, whole and streamed, each in an empty cache, and until the streamed rest is there, too.

    python -m tests.benchmarks.bench_data --source site --megabytes 10 --repeats 3
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from budgetlm.config import study_config
from budgetlm.data.batches import training_batches
from budgetlm.data.corpus import DataConfig, prepare_corpus
from budgetlm.data.rest import write_rest
from budgetlm.data.tokens import BATCH, encode, train_bpe
from budgetlm.search.study import prepare
from budgetlm.watch import Watcher

CONTEXT = 256


def read(config: DataConfig, cache: Path) -> tuple[float, float]:
    """Seconds, and MB of text."""
    import datasets

    datasets.disable_progress_bars()
    began = time.perf_counter()
    corpus = prepare_corpus(config, cache)
    return time.perf_counter() - began, corpus.facts.kept_bytes / 1e6


def train_tokenizer(config: DataConfig, cache: Path, vocab_size: int) -> tuple[float, float]:
    """Seconds, and MB of text; the tokenizer is left beside the cache."""
    corpus = prepare_corpus(config, cache)
    began = time.perf_counter()
    tokenizer = train_bpe(corpus, vocab_size)
    seconds = time.perf_counter() - began
    tokenizer.save(str(cache / "bpe.json"))
    return seconds, corpus.facts.bytes["train"] / 1e6


def encode_all(config: DataConfig, cache: Path) -> tuple[float, float]:
    """Seconds, and MB of text."""
    corpus, tokenizer = prepare_corpus(config, cache), Tokenizer.from_file(str(cache / "bpe.json"))
    documents = list(corpus.documents("train"))
    began = time.perf_counter()
    for start in range(0, len(documents), BATCH):
        list(encode(tokenizer, documents[start : start + BATCH], 0, "uint16"))
    return time.perf_counter() - began, corpus.facts.bytes["train"] / 1e6


def begin(data: dict[str, Any], vocab_size: int, cache: Path) -> tuple[float, float, float]:
    """Seconds until the first batch can be had, seconds until all text is there, and M training tokens in the end."""
    config = study_config({"budget": {"hours": 1.0}, "data": data})
    began = time.perf_counter()
    tokens = prepare(config, vocab_size, cache, Watcher())
    training_batches(tokens, CONTEXT, 0).take(0, 1)
    first = time.perf_counter() - began
    if not tokens.complete:
        write_rest(config.data, cache, tokens)
    return first, time.perf_counter() - began, tokens.train_tokens / 1e6


def apart(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fresh process whose tokenizer may use so many threads."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="site")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of text for the repeated measurements")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=8192)
    options = parser.parse_args()
    cores, vocab_size = len(os.sched_getaffinity(0)), options.vocab_size
    print(f"load average {os.getloadavg()[0]:.1f} on {cores} cores at the beginning")
    pieces(options, cores)
    for stream in ("on", "off"):
        with tempfile.TemporaryDirectory(prefix="budgetlm-bench-") as folder:
            data = {"source": options.source, "stream": stream}
            first, all_there, tokens = apart(cores, begin, data, vocab_size, Path(folder))
        print(
            f"stream {stream:4} first batch after {first:7.1f} s, {tokens:7.1f} M tokens there after {all_there:7.1f} s (n = 1)"
        )
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


def pieces(options: argparse.Namespace, cores: int) -> None:
    """Measure and print what a piece of the corpus costs, step by step."""
    config = DataConfig(source=options.source, stream="off", max_bytes=int(1e6 * options.megabytes))
    steps: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="budgetlm-bench-") as folder:
            cache = Path(folder)
            for name, threads, function, arguments in (
                ("read", cores, read, ()),
                ("train the BPE", cores, train_tokenizer, (options.vocab_size,)),
                ("encode, one thread", 1, encode_all, ()),
                (f"encode, {cores} threads", cores, encode_all, ()),
            ):
                steps.setdefault(name, []).append(apart(threads, function, config, cache, *arguments))
    for name, measured in steps.items():
        rates = sorted(megabytes / seconds for seconds, megabytes in measured)
        print(
            f"{name:20} {statistics.median(rates):6.2f} MB/s ({rates[0]:.2f} to {rates[-1]:.2f}), "
            f"{10 / statistics.median(rates):5.1f} s for 10 MB (n = {len(rates)})"
        )


if __name__ == "__main__":
    main()
