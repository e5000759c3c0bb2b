"""What preparing text costs, and how soon training can begin with the rest of it read beside.

Reading, BPE training and encoding on a piece of the corpus, repeated in turn, each time in a process of its own; then the
time from nothing to the first batch, whole and streamed, each in an empty cache, and until the streamed rest is there, too.

    python -m tests.benchmarks.bench_data --source site --megabytes 10 --repeats 3

With --cleaning only what reading formats, cleaning and comparing cost, in turns, by processor time, beside the `datasets` library as a reader.
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from budgetlm.config import study_config
from budgetlm.data.batches import training_batches
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.formats import read_file, zstd
from budgetlm.data.overlap import overlap
from budgetlm.data.rest import write_rest
from budgetlm.data.sieve import Sieve
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


def read_with_datasets(path: Path) -> None:
    """Read a file as budgetlm did before it had readers of its own."""
    import datasets

    kind = {".jsonl": "json", ".gz": "json", ".zst": "json", ".parquet": "parquet", ".csv": "csv"}[path.suffix]
    for row in datasets.load_dataset(kind, data_files=[str(path)], split="train", streaming=True):
        row["text"].encode()


def read_with_ours(path: Path) -> None:
    """Read a file as budgetlm does."""
    for text, _ in read_file(path, DataConfig(source=str(path))):
        text.encode(errors="replace")


def sift(documents: list[str], **settings: Any) -> Sieve:
    """Sort documents as reading does."""
    sieve = Sieve(DataConfig(**settings))
    for document in documents:
        sieve.sort(document)
    return sieve


def cleaning(options: argparse.Namespace) -> None:
    """Measure and print what reading formats, cleaning and comparing cost."""
    import datasets
    import pandas as pd

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="budgetlm-bench-") as folder:
        home = Path(folder)
        source = DataConfig(source=options.source, stream="off", max_bytes=int(1e6 * options.megabytes))
        corpus = prepare_corpus(source, home / "cache")
        train, validation = (list(corpus.documents(split)) for split in ("train", "validation"))
        documents = train + validation
        encoded = [[text.encode() for text in split] for split in (validation, train)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
        (home / "a.jsonl").write_bytes(lines)
        (home / "a.jsonl.gz").write_bytes(gzip.compress(lines, 6))
        (home / "a.jsonl.zst").write_bytes(zstd.compress(lines))
        frame = pd.DataFrame({"text": documents})
        frame.to_parquet(home / "a.parquet")
        frame.to_csv(home / "a.csv", index=False)
        work: dict[str, Callable[[], Any]] = {
            f"{who} {path.name}": partial(reader, path)
            for path in sorted(home.glob("a.*"))
            for who, reader in (("budgetlm", read_with_ours), ("datasets", read_with_datasets))
        }
        work |= {
            "sort (exact duplicates, split)": partial(sift, documents),
            "sort, cleaned": partial(sift, documents, clean=True),
            "sort, near-duplicates": partial(sift, documents, near_duplicates=0.8),
            "overlap of the splits": partial(overlap, *encoded),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(options.repeats):
            for name, do in work.items():
                began = time.process_time()
                do()
                seconds[name].append(time.process_time() - began)
        print(f"{corpus.facts.kept_bytes / 1e6:.1f} MB in {len(documents):,} documents of {options.source}")
        for name, each in seconds.items():
            rates = sorted(corpus.facts.kept_bytes / 1e6 / s for s in each)
            print(f"{name:31} {statistics.median(rates):7.1f} MB/s ({rates[0]:.1f} to {rates[-1]:.1f}, n = {len(rates)})")
        near = sift(documents, near_duplicates=0.8)
        print(
            f"near-duplicates (0.8): {near.near_duplicates:,}; validation documents in training, by half or more: {corpus.facts.overlapping:,} of "
            f"{corpus.facts.documents['validation']:,}"
        )


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
    parser.add_argument("--cleaning", action="store_true", help="only formats, cleaning and comparing")
    options = parser.parse_args()
    cores, vocab_size = len(os.sched_getaffinity(0)), options.vocab_size
    print(f"load average {os.getloadavg()[0]:.1f} on {cores} cores at the beginning")
    if options.cleaning:
        cleaning(options)
        return
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
