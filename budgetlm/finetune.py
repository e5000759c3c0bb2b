"""A trained model, or any that transformers loads, taught labels of one's own: `budgetlm finetune`.

transformers' Trainer trains; the rate and the end go by the share of time or epochs that is used up, whichever is more, so that it always falls to its end. Folders are read
without running code of theirs or opening a pickle. What a study's final is taught is charged to an account of its own in that study's ledger.
"""

import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from budgetlm.budget.clock import Clock, Meter
from budgetlm.budget.ledger import open_ledger
from budgetlm.data.config import DataConfig
from budgetlm.data.labelled import Example, TaskName, check_examples, labels_of, read_examples, split
from budgetlm.errors import ConfigError, StudyError
from budgetlm.evaluation import SAFELY, SHARE, interval
from budgetlm.export import plain_folder
from budgetlm.files import check_new, new_folder, write_json
from budgetlm.interrupt import StopRequest
from budgetlm.passport import pick_device
from budgetlm.studies import FINETUNE, open_config
from budgetlm.tasks import TASKS, Row, Task, score_rows
from budgetlm.train.schedule import ScheduleConfig, lr_factor

RESULT = "finetune.json"
"""In the folder that is written: how it was made, and how good it is."""
BASE_RATE, BASE_WIDTH = 5e-5, 768
"""Rate of the model of that width (Devlin et al. 2019, appendix A.3, arXiv:1810.04805); that of others is inverse to the width, as for Adam in μP
(Yang et al. 2022, table 3, arXiv:2203.03466)."""
SCHEDULE = ScheduleConfig(shape="linear", warmup=0.06)
WEIGHT_DECAY = 0.01
TRAINING_SHARE = 0.8
"""Of the time, where that is what ends it; the rest is for measuring."""
MOST_TOKENS = 2048
"""That are read of a text, whatever more the model may see."""


@dataclass(frozen=True)
class Settings:
    """How it is done."""

    task: TaskName = "classify"
    label: str = "label"
    """Column of labels."""
    seeds: int = 1
    """How often it is done, each time with other new weights and another order."""
    from_scratch: bool = False
    """Whether the weights are fresh ones, to see what the trained ones were worth."""
    epochs: float = 3.0
    seconds: float = 3600.0
    """Most that it may take, all seeds together. Device-seconds."""
    rate: float = 0.0
    """Peak learning rate of AdamW; 0 for that of the model's width."""
    batch: int = 16
    """Rows in a step."""
    device: str = "auto"


@dataclass(frozen=True)
class Finetuned:
    """What came of it."""

    task: TaskName
    measure: str
    score: float
    """On the held-out rows, mean over seeds."""
    low: float
    """Of the 80 % interval over which rows are held out; how much seeds differ `by_seed` says."""
    high: float
    by_seed: list[float]
    chance: float | None
    """Score of always the commonest label that was trained on; None where there are no labels."""
    labels: int
    rows: int
    """That were trained on."""
    held_out: int
    repeated: int
    """Held-out rows whose text is among those trained on, which flatters."""
    rate: float
    steps: int
    """Of each seed, on average."""
    seconds: float
    """Device-seconds, all seeds together, but for the writing."""
    account: str | None
    """In the study's ledger; None of a model that belongs to none."""
    from_scratch: bool
    got: list[list[float]] = field(repr=False, default_factory=list)
    """By seed, what each held-out row got, and `of` what it counts for: to compare two fine-tunings row by row."""
    of: list[int] = field(repr=False, default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For scripts, without what each row got."""
        return {name: value for name, value in asdict(self).items() if name not in ("got", "of")}

    def summary(self, out: Path) -> str:
        """For people."""
        seeds = ", ".join(f"{score:.4f}" for score in self.by_seed)
        lines = [
            f"{out}: {self.measure} {self.score:.4f} on {self.held_out:,} held-out rows (80 % interval over these {self.low:.4f} to {self.high:.4f}); "
            f"by seed: {seeds}",
            f"trained on {self.rows:,} rows, {self.steps:,} steps at a rate of {self.rate:.2e}"
            + (", from fresh weights" if self.from_scratch else ""),
        ]
        if self.chance is not None:
            lines.append(f"{self.labels} labels; always the commonest would come to {self.chance:.4f}")
        if self.repeated:
            lines.append(f"{self.repeated} of the held-out rows have a text that was trained on, which flatters")
        if len(self.by_seed) > 1:
            lines.append("the folder has the first seed's model: the best by the held-out rows would be flattered by them")
        lines.append(
            f"spent: {self.seconds:.1f} device-seconds, {f'account {self.account}' if self.account else 'of no study'}"
        )
        return "\n".join(lines)


def finetune(
    model: Path,
    out: Path,
    data: DataConfig,
    settings: Settings,
    cache: Path,
    clock: Clock,
    *,
    validation: str = "",
    study: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Finetuned:
    """Teach a model labels, measure it on held-out rows, and write it as a folder that transformers loads.

    Args:
        model: a final's `model` folder, or another that transformers loads.
        out: the folder to be made.
        data: the labelled table, and its column or template of text.
        cache: where addresses are fetched to.
        validation: a table with the same columns to measure on, in place of a fifth of `data`.
        study: whose final it is, and whose ledger pays.

    Raises:
        DataError: the tables cannot be read, have not the columns, or too little to learn or measure on.
        ConfigError: something makes no sense, `out` is there already, or a package is missing.
        StudyError: the model cannot be loaded for this task.
        SystemExit: it was asked to stop; nothing is written.
    """
    transformers = _transformers()
    check_new(out)
    training = read_examples(settings.task, data, settings.label, cache)
    if validation:
        held = read_examples(settings.task, replace(data, source=validation), settings.label, cache)
    else:
        training, held = split(training)
    check_examples(settings.task, training, held, data.source)
    device = pick_device(settings.device, open_config(study).train.threads if study else 0)
    account = FINETUNE + re.sub(r"[^\w.-]", "-", out.resolve().name)[:64] if study else None
    with tempfile.TemporaryDirectory() as place, _paid(study, account, settings.seconds, clock) as meter:
        with meter.during("start"):
            school = _School(transformers, model, Path(place), settings, training, held, device, meter)
        ends = clock.now() + settings.seconds
        with StopRequest() as stop:
            for seed in range(settings.seeds):
                school.teach(seed, (ends - clock.now()) / (settings.seeds - seed), stop)
                if stop():
                    note("it is stopped, and nothing is written; the same command begins anew")
                    raise SystemExit(stop.exit_code)
                note(f"seed {seed}: {school.task.measure} {sum(school.got[-1]) / sum(school.of):.4f}")
        found = school.result(account)
        with meter.during("checkpoint"), new_folder(out) as new:
            school.save(new)
            write_json(new / RESULT, found.as_dict())
    return found


def _transformers() -> Any:
    for package in ("transformers", "accelerate"):
        if find_spec(package) is None:
            raise ConfigError(f"fine-tuning needs the package {package}: pip install 'budgetlm[finetune]'.")
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()  # new weights for new labels are what was asked for
    transformers.logging.disable_progress_bar()
    return transformers


@contextmanager
def _paid(study: str | None, account: str | None, seconds: float, clock: Clock) -> Iterator[Meter]:
    """A meter that charges the study's account, which gets so many seconds more; of no study one that only counts."""
    if study is None or account is None:
        yield Meter(clock)
        return
    config = open_config(study)
    ledger = open_ledger(config.database, config.scope)
    ledger.release_the_dead(time.sleep)
    before = ledger.balance(account).charged_seconds if account in ledger.accounts() else 0.0
    ledger.set_budget(account, before + seconds)
    lease = ledger.lease(account, ledger.balance(account).remaining_seconds, run=account)
    meter = Meter(clock, lease.charge, run=account)
    ended = "broken off"
    try:
        yield meter
        ended = "done"
    finally:
        meter.flush()
        lease.settle()
        ledger.stop(account, ended)


class _School:
    """Rows as the model takes them, and every seed's lesson and examination."""

    def __init__(
        self,
        transformers: Any,
        model: Path,
        place: Path,
        settings: Settings,
        training: Sequence[Example],
        held: Sequence[Example],
        device: str,
        meter: Meter,
    ) -> None:
        self.transformers, self.settings, self.place = transformers, settings, place
        self.folder = folder = plain_folder(model, place)
        self.training, self.held, self.device, self.meter = training, held, device, meter
        self.task: Task = TASKS[settings.task]
        self.labels = [] if settings.task == "continue" else labels_of([*training, *held])
        with self._named_faults():
            names: dict[str, Any] = {}
            if self.labels:
                numbers = {label: number for number, label in enumerate(self.labels)}
                names = {"id2label": dict(enumerate(self.labels)), "label2id": numbers}
            self.config = transformers.AutoConfig.from_pretrained(folder, **SAFELY, **names)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **SAFELY)
        if settings.task == "tag" and not self.tokenizer.is_fast:
            raise StudyError(
                f"{folder} has a tokenizer that does not say where its tokens stand, so words cannot be tagged."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        self.config.pad_token_id = self.tokenizer.pad_token_id
        self.collate = getattr(transformers, self.task.collator)(self.tokenizer)
        self.rate = settings.rate or BASE_RATE * BASE_WIDTH / getattr(self.config, "hidden_size", BASE_WIDTH)
        self.rows, self.questions = self._encoded(training), self._encoded(held)
        pairs = zip(held, self.questions, strict=True)
        self.of = [self.task.counts(self.tokenizer, example, row) for example, row in pairs]
        self.got: list[list[float]] = []
        self.steps: list[int] = []
        self.first: Any = None

    def _encoded(self, examples: Sequence[Example]) -> list[Row]:
        length = min(
            getattr(self.config, "max_position_embeddings", MOST_TOKENS), self.tokenizer.model_max_length, MOST_TOKENS
        )
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [self.task.encode(self.tokenizer, example, numbers, length) for example in examples]

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        """Say what transformers has to complain about of the folder."""
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise StudyError(
                f"transformers does not load {self.folder} as {self.task.loader}, which `--task {self.settings.task}` takes: {reason}"
            ) from error

    def _pupil(self) -> Any:
        loader = getattr(self.transformers, self.task.loader)
        with self._named_faults():
            if self.settings.from_scratch:
                return loader.from_config(self.config, dtype=torch.float32)
            options = {**SAFELY, "use_safetensors": True, "dtype": torch.float32}
            return loader.from_pretrained(self.folder, config=self.config, **options)

    def teach(self, seed: int, seconds: float, stop: Callable[[], bool]) -> None:
        """Train a model anew, for at most so many seconds with its examination, and see what each held-out row gets of it."""
        meter = self.meter
        ends, began = meter.clock.now() + TRAINING_SHARE * seconds, meter.clock.now()
        steps = math.ceil(self.settings.epochs * len(self.rows) / self.settings.batch)

        def progress(step: float) -> float:
            return max(step / steps, (meter.clock.now() - began) / max(ends - began, 1e-9))

        def on_step_end(_self: Any, _args: Any, state: Any, control: Any, **_: Any) -> Any:
            meter.tick()
            control.should_training_stop = stop() or progress(state.global_step) >= 1
            return control

        with meter.during("start"):
            self.transformers.set_seed(seed)
            model = self._pupil().to(self.device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=WEIGHT_DECAY)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(SCHEDULE, progress(step + 0.5)))
            trainer = self.transformers.Trainer(
                model=model,
                args=self._arguments(seed, steps),
                data_collator=self.collate,
                train_dataset=self.rows,
                optimizers=(optimizer, schedule),
                callbacks=[type("Pace", (self.transformers.TrainerCallback,), {"on_step_end": on_step_end})()],
            )
            trainer.remove_callback(self.transformers.PrinterCallback)
        with meter.during("train"):
            trainer.train()
        with meter.during("evaluate"):
            self.got.append(score_rows(self.task, model, self.questions, self.collate, self.settings.batch))
        self.steps.append(trainer.state.global_step)
        self.first = self.first or model.cpu()

    def _arguments(self, seed: int, steps: int) -> Any:
        on_gpu = self.device == "cuda"
        arguments = self.transformers.TrainingArguments(
            output_dir=str(self.place / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=self.settings.batch,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not on_gpu,
            bf16=on_gpu and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=on_gpu,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # it would take all there are, of which one is charged
        return arguments

    def result(self, account: str | None) -> Finetuned:
        """What came of it all."""
        got, of = np.array(self.got), np.array(self.of)
        score = float(got.mean(0).sum() / of.sum())
        sure = wilson(score, len(of)) if self.settings.task == "classify" else interval(got.mean(0), of)
        known = {example.text for example in self.training}
        self.meter.flush()
        return Finetuned(
            task=self.settings.task,
            measure=self.task.measure,
            score=score,
            low=sure[0],
            high=sure[1],
            by_seed=[float(one.sum() / of.sum()) for one in got],
            chance=_chance(self.training, self.held) if self.labels else None,
            labels=len(self.labels),
            rows=len(self.rows),
            held_out=len(of),
            repeated=sum(example.text in known for example in self.held),
            rate=self.rate,
            steps=round(sum(self.steps) / len(self.steps)),
            seconds=sum(self.meter.spent.values()),
            account=account,
            from_scratch=self.settings.from_scratch,
            got=self.got,
            of=self.of,
        )

    def save(self, folder: Path) -> None:
        """Write the first seed's model, and its tokenizer."""
        self.first.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _chance(training: Sequence[Example], held: Sequence[Example]) -> float:
    taught = Counter(label for example in training for label in example.labels)
    asked = [label for example in held for label in example.labels]
    return asked.count(taught.most_common(1)[0][0]) / len(asked)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 80 % interval of a share of `count` cases (Wilson 1927, JASA 22, pages 209 to 212). Of a mean over seeds it is on the wide side."""
    z = NormalDist().inv_cdf((1 + SHARE) / 2)
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, min(share, (middle - half) / scale)), min(1.0, max(share, (middle + half) / scale))  # rounding
