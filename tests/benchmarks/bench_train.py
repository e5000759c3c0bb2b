"""Tokens per second of budgetlm's training step against its peers, in several modes each, start and compilation included.

Every mode is a process of its own. All of a shape's are started one after the other, each up to its first step; then they take
turns, a burst of steps each, while the others wait. Tokens within 30 seconds and 5 minutes follow by arithmetic: steady speed times what
the start leaves of the horizon. The micro-batch is chosen in the first mode of each side and precision, out of 1,024 and 4,096 tokens, and
serves its other modes. Packages of the peers are installed beside the environment that runs this, in one of their own for each; what cannot
be installed is left out, with a line.

    python -m tests.benchmarks.bench_train results.jsonl      # on one thread; pin it to a core that nobody else uses
    python -m tests.benchmarks.bench_train --quick
    python -m tests.benchmarks.bench_train --two-at-once      # two trainings on a thread each against one on two threads
"""

import argparse
import ctypes.util
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from budgetlm.model.size import ModelConfig

CONTEXT, BATCH_TOKENS = 256, 4_096
SEQUENCES = BATCH_TOKENS // CONTEXT
MICRO_BATCHES = (1_024 // CONTEXT, 4_096 // CONTEXT)
HORIZONS = {"30 s": 30.0, "5 min": 300.0}
BURST_SECONDS = 0.5
"""A burst is as many steps as fit, at least one."""
MOST_ROUNDS, ROUNDS_SECONDS = 20, 120.0
"""More rounds than asked for are run where they are quick: so many, or as many as fit."""
IN_THE_WAY = {"litgpt": ["huggingface-hub"]}
"""What a package brings along in a version too old for others here; it works with theirs."""
ROOT = Path(__file__).parents[2]


def shape(depth: int, width: int, vocab_size: int) -> ModelConfig:
    return ModelConfig(depth=depth, width=width, vocab_size=vocab_size, context_length=CONTEXT)


SHAPES = [shape(2, 64, 1024), shape(4, 128, 2048), shape(6, 256, 4096), shape(4, 384, 4096)]
QUICK, TINY = SHAPES[:2], shape(1, 32, 256)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way to train."""

    name: str
    side: str
    """The function of `trainers` that builds it."""
    package: str = ""
    """What must be installed for it."""
    compiled: bool = False
    tcmalloc: bool = False
    medium: bool = False
    bf16: bool = False
    """Whether it trains under bf16 autocast."""
    products: bool = False
    """Whether attention is by plain products, as calibration has it where they are faster; budgetlm alone."""
    trainer: bool = False
    """Whether the loop is transformers' `Trainer`."""


MODES = [
    Mode(name="budgetlm", side="budgetlm"),
    Mode(name="budgetlm, tcmalloc", side="budgetlm", tcmalloc=True),
    Mode(name="budgetlm, compiled", side="budgetlm", compiled=True),
    Mode(name="budgetlm, compiled, tcmalloc", side="budgetlm", compiled=True, tcmalloc=True),
    Mode(name="nanoGPT style", side="nanogpt"),
    Mode(name="nanoGPT style, tcmalloc", side="nanogpt", tcmalloc=True),
    Mode(name="nanoGPT style, compiled", side="nanogpt", compiled=True),
    Mode(name="nanoGPT style, compiled, tcmalloc", side="nanogpt", compiled=True, tcmalloc=True),
    Mode(name='nanoGPT style, "medium"', side="nanogpt", medium=True),
    Mode(name="transformers GPT-2", side="gpt2", package="accelerate"),
    Mode(name="transformers GPT-2, Trainer", side="gpt2", package="accelerate", trainer=True),
    Mode(name="transformers Llama", side="llama", package="accelerate"),
    Mode(name="transformers Llama, compiled", side="llama", package="accelerate", compiled=True),
    Mode(name="litgpt", side="litgpt", package="litgpt"),
]
FP32_RECIPE = "nanoGPT style"
BF16_MODES = [
    *(mode for mode in MODES if mode.medium or mode.name in ("budgetlm", FP32_RECIPE)),
    Mode(name="budgetlm, fused attention, bf16", side="budgetlm", bf16=True),
    *(
        replace(mode, name=f"{mode.name}, bf16", bf16=True, products=mode.side == "budgetlm")
        for mode in MODES
        if not mode.medium
    ),
]
"""Where bf16 is fast. Attention is then by products, which is what calibration has chosen wherever it was."""
OURS = [mode.name for mode in MODES + BF16_MODES if mode.side == "budgetlm"]


# --- in the process of a mode -----------------------------------------------------------------------------------------


class Turns:
    """Counts steps, tells the parent what they took, and waits for the next turn."""

    def __init__(self, launched: float, micro: int) -> None:
        self.launched, self.micro, self.left, self.asked = launched, micro, 1, 0
        self.flops_per_token = 0

    def after_step(self) -> None:
        """Call it after every step. Returns when another is wanted, and ends the process when none is."""
        self.left -= 1
        if self.left:
            return
        now = time.monotonic()
        if self.asked:
            facts = {"wall": now - self.began, "processor": time.process_time() - self.began_processor, "steps": self.asked}
        else:
            facts = {"first_step_done": now - self.launched, "flops_per_token": self.flops_per_token}
        print(json.dumps(facts), flush=True)
        line = sys.stdin.readline().split()
        if not line:
            os._exit(0)
        self.asked, self.micro = map(int, line)
        self.left = self.asked
        self.began, self.began_processor = time.monotonic(), time.process_time()


def sampler(vocab_size: int) -> Callable[[int], np.ndarray]:
    """Random windows of a random text, as int64 of shape (B, L + 1)."""
    chance = np.random.default_rng(0)
    text = chance.integers(vocab_size, size=2**20).astype("uint16")

    def sample(count: int) -> np.ndarray:
        starts = chance.integers(len(text) - CONTEXT - 1, size=count)
        return np.stack([text[start : start + CONTEXT + 1] for start in starts]).astype(np.int64)

    return sample


def be(mode: Mode, model: ModelConfig, turns: Turns, threads: int) -> None:
    """Train in a mode, turn by turn."""
    import torch

    from tests.benchmarks import trainers

    torch.set_num_threads(threads)
    if mode.medium:
        torch.set_float32_matmul_precision("medium")
    sample = sampler(model.vocab_size)
    if mode.trainer:
        network = trainers.gpt2_network(model)
        turns.flops_per_token = trainers.flops_per_token(network, model)
        with tempfile.TemporaryDirectory() as folder:
            trainers.run_hugging_face_trainer(network, SEQUENCES, turns.micro, mode.bf16, sample, turns.after_step, folder)
    trainer = getattr(trainers, mode.side)(model, mode.compiled, mode.bf16, *[mode.products] * (mode.side == "budgetlm"))
    turns.flops_per_token = trainers.flops_per_token(trainer.network, model)
    while True:
        trainer.step(sample(SEQUENCES), turns.micro)
        turns.after_step()


# --- in the parent ----------------------------------------------------------------------------------------------------


class Gone(Exception):
    """A mode's process ended by itself."""


class Racer:
    """The process of a mode, at its first step when this returns, waiting for its turn."""

    clock = "wall"
    """What bursts are timed by: `wall`, or `processor` where others are at work on the machine."""

    def __init__(self, mode: Mode, model: ModelConfig, python: str, micro: int, threads: int = 1) -> None:
        self.mode, self.micro, self.folder = mode, micro, tempfile.TemporaryDirectory()
        self.errors = Path(self.folder.name) / "stderr"
        # A compiler's cache of its own makes every start a cold one.
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": f"{self.folder.name}/inductor",
        }
        if mode.tcmalloc:
            environment["LD_PRELOAD"] = str(tcmalloc())
        what = json.dumps([asdict(mode), asdict(model), micro, threads, time.monotonic()])
        command = [python, "-m", "tests.benchmarks.bench_train", "--be", what]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
            )
        facts = self.listen()
        self.first_step_done, self.flops_per_token = facts["first_step_done"], facts["flops_per_token"]

    def listen(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise Gone((self.errors.read_text().strip() or "it ended without a word").splitlines()[-1])

    def send(self, steps: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{steps} {self.micro}\n")
        self.process.stdin.flush()

    def burst(self, steps: int) -> dict[str, Any]:
        self.send(steps)
        return self.listen()

    def end(self) -> None:
        self.process.communicate("\n")
        self.folder.cleanup()


def tcmalloc() -> str | None:
    """The library's name, for the loader to find."""
    return ctypes.util.find_library("tcmalloc_minimal")


def python_with(package: str, folder: Path) -> str | None:
    """A Python that has a package beside all that this one has; nothing if it cannot be had."""
    if not package:
        return sys.executable
    python = folder / package / "bin" / "python"
    if not python.exists():
        venv.create(folder / package, with_pip=True)
        beside = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/beside.pth"
        (folder / package / beside).write_text(sysconfig.get_paths()["purelib"] + "\n")
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode:
        pip = [python, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", package], stdout=sys.stderr)
        for other in IN_THE_WAY.get(package, ()):
            subprocess.run([*pip, "uninstall", "--yes", other], stdout=sys.stderr)
        if subprocess.run([python, "-c", f"import {package}"]).returncode:
            return None
    return str(python)


def possible(modes: list[Mode], folder: Path) -> list[tuple[Mode, str]]:
    """The modes that can be run here, each with its Python; the others are named."""
    pythons = {package: python_with(package, folder) for package in sorted({mode.package for mode in modes})}
    found = []
    for mode in modes:
        python = pythons[mode.package]
        if not python:
            print(f"left out: {mode.name}, since {mode.package} cannot be installed")
        elif mode.tcmalloc and not tcmalloc():
            print(f"left out: {mode.name}, since there is no tcmalloc")
        else:
            found.append((mode, python))
    return found


@dataclass
class Result:
    """What a mode did at a shape."""

    mode: str
    shape: dict[str, Any]
    micro_batch_tokens: int
    flops_per_token: int
    first_step_done: float
    """Seconds from the launch of the process to the end of its first step."""
    ceiling_gflops: float
    tokens_per_second: list[float] = field(default_factory=list)
    processor_share: list[float] = field(default_factory=list)

    @property
    def steady(self) -> float:
        return statistics.median(self.tokens_per_second)

    @property
    def cold(self) -> float:
        """Seconds that the start took beyond what a step takes."""
        return max(0.0, self.first_step_done - BATCH_TOKENS / self.steady)

    @property
    def gflops(self) -> float:
        return self.steady * self.flops_per_token / 1e9

    def within(self, horizon: float) -> float:
        """Tokens trained in so many seconds, the start among them."""
        return self.steady * max(0.0, horizon - self.cold)

    def as_line(self) -> dict[str, Any]:
        """For the file of results."""
        derived = {"cold_seconds": self.cold, "gflops": self.gflops, "share_of_ceiling": self.gflops / self.ceiling_gflops}
        return asdict(self) | derived | {f"tokens in {name}": self.within(seconds) for name, seconds in HORIZONS.items()}


def tuned(racer: Racer) -> int:
    """The micro-batch that needs fewer seconds for a burst. Steps so quick that a burst has several warm up for each."""
    steps, seconds = burst_steps(racer.burst(1)[racer.clock]), {}
    for racer.micro in MICRO_BATCHES:
        if steps > 1:
            racer.burst(1)
        seconds[racer.micro] = racer.burst(steps)[racer.clock]
    return min(seconds, key=lambda micro: seconds[micro])


def burst_steps(step_seconds: float) -> int:
    return max(1, round(BURST_SECONDS / step_seconds))


def start(model: ModelConfig, modes: list[tuple[Mode, str]]) -> Iterator[Racer]:
    """Every mode, one after the other, with the micro-batch of its side."""
    micros: dict[tuple[str, bool], int] = {}
    for mode, python in modes:
        try:
            kind = mode.side, mode.bf16
            racer = Racer(mode, model, python, micros.get(kind, MICRO_BATCHES[-1]))
            if kind not in micros and not mode.trainer:
                racer.micro = micros[kind] = tuned(racer)
        except Gone as error:
            print(f"left out: {mode.name}, since its process ended: {error}")
            continue
        print(f"{title(model)}, {mode.name}: first step after {racer.first_step_done:.1f} s", file=sys.stderr)
        yield racer


def race(model: ModelConfig, modes: list[tuple[Mode, str]], rounds: int) -> list[Result]:
    """The modes at one shape, taking turns."""
    gflops = max(ceilings())
    racers = list(start(model, modes))
    steps = [burst_steps(racer.burst(1)[racer.clock]) for racer in racers]
    seconds = sum(racer.burst(count)[racer.clock] for racer, count in zip(racers, steps, strict=True))
    facts = [(r.mode.name, asdict(model), r.micro * CONTEXT, r.flops_per_token, r.first_step_done, gflops) for r in racers]
    results = [Result(*row) for row in facts]
    for _ in range(max(rounds, min(MOST_ROUNDS, int(ROUNDS_SECONDS / seconds)))):
        for racer, count, result in zip(racers, steps, results, strict=True):
            told = racer.burst(count)
            result.tokens_per_second.append(count * BATCH_TOKENS / told[racer.clock])
            result.processor_share.append(told["processor"] / told["wall"])
    for racer in racers:
        racer.end()
    return results


def ceilings() -> tuple[float, float]:
    """GFLOP/s of a matrix product on one thread in fp32 and in bf16, the best of three processes each."""
    take = "import torch; torch.set_num_threads(1); from budgetlm.passport import take_passport; p = take_passport('cpu')"
    command = [sys.executable, "-c", f"{take}; print(p.fp32_gflops, p.bf16_gflops)"]
    answers = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(3)]
    fp32, bf16 = zip(*(map(float, answer.split()) for answer in answers), strict=True)
    return max(fp32), max(bf16)


# --- tables -----------------------------------------------------------------------------------------------------------


def title(model: ModelConfig) -> str:
    return f"depth {model.depth} x width {model.width}, vocabulary {model.vocab_size:,}"


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_speeds(model: ModelConfig, results: list[Result]) -> None:
    print(
        f"\n{title(model)}; ceiling {results[0].ceiling_gflops:.0f} GFLOP/s; n = {len(results[0].tokens_per_second)} bursts"
    )
    columns = ("a pass", "start", "tokens/s", "processor", "GFLOP/s", "ceiling", *(f"in {name}" for name in HORIZONS))
    print(f"{'':36}{columns[0]:>7}{columns[1]:>8}{columns[2]:>27}" + "".join(f"{column:>11}" for column in columns[3:]))
    for r in results:
        within = "".join(f"{r.within(horizon):11,.0f}" for horizon in HORIZONS.values())
        print(
            f"{r.mode:36}{r.micro_batch_tokens:7,}{r.cold:6.1f} s{spread(r.tokens_per_second, ',.0f'):>27}"
            f"{statistics.median(r.processor_share):11.0%}{r.gflops:11.1f}{r.gflops / r.ceiling_gflops:11.0%}{within}"
        )


def print_ratios(results: list[Result]) -> None:
    """Ours against the peer that is best at each horizon, and against the plain fp32 recipe."""
    peers = [r for r in results if r.mode not in OURS]
    recipe = [r for r in peers if r.mode == FP32_RECIPE]
    for own in (r for r in results if r.mode in OURS and peers):
        for name, horizon in HORIZONS.items():
            best = max(peers, key=lambda peer: peer.within(horizon))
            said = [f"{ratio(own, peer, horizon)} {peer.mode}" for peer in [best, *recipe]]
            print(f"{own.mode} in {name}, tokens against the best peer and the fp32 recipe: {', '.join(said)}")


def ratio(own: Result, peer: Result, horizon: float) -> str:
    """Tokens against tokens, its range over the rounds: each burst against the other side's of the same round."""
    left, peers_left = (max(0.0, horizon - r.cold) for r in (own, peer))
    if not peers_left:
        return "(not yet begun)"
    rounds = zip(own.tokens_per_second, peer.tokens_per_second, strict=True)
    return spread([left * a / (peers_left * b) for a, b in rounds], ".2f")


# --- two at once ------------------------------------------------------------------------------------------------------


def two_at_once(mode: Mode, models: list[ModelConfig], rounds: int) -> None:
    """Two trainings on one thread each, side by side, against one training on two threads."""
    print(f"{'':44}{'one on two threads':>27}{'two on one each':>27}{'ratio':>21}    tokens/s, n = {rounds}")
    for model in models:
        pair = [Racer(mode, model, sys.executable, MICRO_BATCHES[0]) for _ in range(2)]
        alone = Racer(mode, model, sys.executable, MICRO_BATCHES[0], threads=2)
        for racer in (pair[0], alone):
            racer.micro = tuned(racer)
        pair[1].micro = pair[0].micro
        steps = burst_steps(alone.burst(1)["wall"])
        rows = [(together([alone], 2 * steps), together(pair, steps)) for _ in range(rounds)]
        one, two = (list(column) for column in zip(*rows, strict=True))
        ratios = [b / a for a, b in rows]
        print(f"{title(model):44}{spread(one, ',.0f'):>27}{spread(two, ',.0f'):>27}{spread(ratios, '.2f'):>21}", flush=True)
        for racer in (*pair, alone):
            racer.end()


def together(racers: list[Racer], steps: int) -> float:
    """Tokens per second of all, from the start of the burst until the last has done its steps."""
    for racer in racers:
        racer.send(steps)
    slowest = max(racer.listen()["wall"] for racer in racers)
    return len(racers) * steps * BATCH_TOKENS / slowest


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="where to write a line of JSON for each mode and shape")
    parser.add_argument("--quick", action="store_true", help="the two smaller shapes only")
    parser.add_argument("--tiny", action="store_true", help="one shape that says nothing of speed, to see that it works")
    parser.add_argument("--two-at-once", action="store_true")
    parser.add_argument("--modes", nargs="+", metavar="NAME", help="only these, named as in the table")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each mode, at least")
    parser.add_argument(
        "--peers", type=Path, default=Path(sys.prefix) / "peers", help="where packages of peers are installed"
    )
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: for busy machines")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        mode, model, micro, threads, launched = json.loads(options.be)
        be(Mode(**mode), ModelConfig(**model), Turns(launched, micro), threads)
    Racer.clock = options.clock
    models = [TINY] if options.tiny else QUICK if options.quick else SHAPES
    fp32, bf16 = ceilings()
    verdict = "so modes are in bf16 but for three" if bf16 > fp32 else "so bf16 modes are left out"
    print(f"matrix products on one thread: {fp32:.0f} GFLOP/s in fp32, {bf16:.1f} in bf16; {verdict}")
    every = BF16_MODES if bf16 > fp32 else MODES
    if options.two_at_once:
        plain = next(mode for mode in reversed(every) if mode.name in ("budgetlm", "budgetlm, bf16"))
        two_at_once(plain, [TINY] if options.tiny else SHAPES[:3], options.rounds)
        return
    wanted = [mode for mode in every if mode.name in (options.modes or [mode.name])]
    modes = possible(wanted, options.peers)
    for model in models:
        results = race(model, modes, options.rounds)
        print_speeds(model, results)
        print_ratios(results)
        if options.results:
            with options.results.open("a") as file:
                file.writelines(json.dumps(result.as_line()) + "\n" for result in results)


if __name__ == "__main__":
    main()
